import sys
import threading
import time
import weakref

import numpy as np
import pytest

from ldm_numpy import ops, parallel, processes
from ldm_numpy.function import _mode
from ldm_numpy.nn import Linear, Module, Parameter
from ldm_numpy.parallel import Shards
from ldm_numpy.tensor import Tensor

THREADS = (1, 2, 3)
N = 11  # in shards of 4: 4, 4, 3


class Net(Module):
    def __init__(self, dtype=np.float64):
        self.first, self.second, self.scale = Linear(5, 16), Linear(16, 3), Parameter(())
        self.initialise(0)
        self.scale.data[...] = 0.7
        self.astype(dtype)

    def forward(self, x):
        return self.second(ops.silu(self.first(x)))


@pytest.fixture
def data(rng):
    """Inputs whose size grows from row to row: a shard's loss differs much from another's."""
    x = rng.normal(size=(N, 5)) * np.arange(1, N + 1)[:, None]
    return x, rng.normal(size=(N, 3))


def whole_batch(net, x, target):
    net_loss = ops.mse_loss(net(x), target)
    net_loss.backward()
    return net_loss.data, [p.grad for p in net.parameters()[:4]]


def sharded(net, x, target, size, threads):
    parameters = net.parameters()[:4]

    def loss(rows):
        y = net(x[rows])
        return [ops.mse_loss(y, target[rows]), y.mean()]

    values = Shards(size, threads).backward(loss, len(x), parameters)
    return values, [p.grad for p in parameters]


@pytest.mark.parametrize("size", [1, 4, N, 100, None])
def test_backward_is_the_gradient_of_the_whole_batch(data, size):
    net = Net()
    (loss, mean), gradients = sharded(net, *data, size, threads=2)
    assert mean == pytest.approx(float(net(data[0]).data.mean()), rel=1e-12)
    expected_loss, expected = whole_batch(Net(), *data)
    assert loss == pytest.approx(float(expected_loss), rel=1e-12)
    for g, e in zip(gradients, expected):
        np.testing.assert_allclose(g, e, rtol=1e-10, atol=1e-12)


def test_backward_does_not_depend_on_the_number_of_threads(data):
    """To the last bit, in float32, with shards that finish in any order."""
    x, target = (a.astype(np.float32) for a in data)
    runs = [sharded(Net(np.float32), x, target, 2, threads) for threads in THREADS]
    for values, gradients in runs:
        for a, b in zip([*values, *gradients], [*runs[0][0], *runs[0][1]]):
            np.testing.assert_array_equal(a, b)


def test_gradients_are_added_in_shard_order_whoever_is_first(data):
    """Shard 0 is held back until the others are done; float32 sums would tell."""
    x, target = (a.astype(np.float32) for a in data)
    net = Net(np.float32)
    parameters = net.parameters()[:4]

    def loss(rows):
        y = ops.mse_loss(net(x[rows]), target[rows])
        time.sleep(0.1 if rows.start == 0 else 0)
        return [y]

    Shards(2, 6).backward(loss, N, parameters)
    _, expected = sharded(Net(np.float32), x, target, 2, 1)
    for p, e in zip(parameters, expected):
        np.testing.assert_array_equal(p.grad, e)


@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_do_not_wait_in_memory(data, threads, monkeypatch):
    """Those of as many shards as threads, even while the first shard keeps all others waiting."""
    net, lock, alive, most = Net(), threading.Lock(), [], []
    gradients = parallel.gradients

    def counted(y, parameters, gy=None):
        parts = gradients(y, parameters, gy)
        with lock:
            alive.append(weakref.ref(parts[0]))
            most.append(sum(part() is not None for part in alive))
        return parts

    def loss(rows):
        time.sleep(0.1 if rows.start == 0 else 0)
        return [ops.mse_loss(net(data[0][rows]), data[1][rows])]

    monkeypatch.setattr(parallel, "gradients", counted)
    Shards(2, threads).backward(loss, N, net.parameters()[:4])
    assert len(most) == 6 and max(most) <= threads


@pytest.mark.host
def test_backward_adds_to_what_is_there(data):
    """In place: an optimizer's flat buffer stays the storage."""
    net, other = Net(), Net()
    parameters = net.parameters()[:4]
    buffers = [np.full(p.shape, 2.0) for p in parameters]
    for p, buffer in zip(parameters, buffers):
        p.grad = buffer
    sharded(net, *data, 4, 2)
    _, expected = sharded(other, *data, 4, 2)
    for p, buffer, e in zip(parameters, buffers, expected):
        assert p.grad is buffer
        np.testing.assert_allclose(buffer, e + 2)


def contrastive(net, images, texts, positives):
    """The loss and gradients from one graph over the whole batch."""
    net_loss = ops.contrastive_loss(
        unit(net.first(images)), unit(net.first(texts)), net.scale, positives
    )
    net_loss.backward()
    return net_loss.data, [net.first.weight.grad, net.first.bias.grad, net.scale.grad]


def unit(x):
    return x / (x * x).sum(axis=-1, keepdims=True) ** 0.5


def coupled(net, images, texts, positives, size, threads):
    own = net.first.parameters()
    loss = Shards(size, threads).coupled_backward(
        lambda rows: [unit(net.first(images[rows])), unit(net.first(texts[rows]))],
        lambda a, b: ops.contrastive_loss(a, b, net.scale, positives),
        len(images),
        own,
        [net.scale],
    )
    return loss, [*(p.grad for p in own), net.scale.grad]


@pytest.fixture
def pairs(rng):
    images, texts = rng.normal(size=(2, N, 5))
    which = np.arange(N) % 8  # three captions occur twice
    return images, texts, which[:, None] == which[None, :]


@pytest.mark.parametrize("size", [1, 4, None])
def test_coupled_backward_is_one_graph_over_the_batch(pairs, size):
    loss, gradients = coupled(Net(), *pairs, size, threads=2)
    expected_loss, expected = contrastive(Net(), *pairs)
    assert loss == pytest.approx(float(expected_loss), rel=1e-12)
    for g, e in zip(gradients, expected):
        assert np.abs(e).max() > 1e-3
        np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-12)


def test_coupled_backward_does_not_depend_on_the_number_of_threads(pairs):
    images, texts, positives = pairs
    images, texts = images.astype(np.float32), texts.astype(np.float32)
    runs = [coupled(Net(np.float32), images, texts, positives, 3, t) for t in THREADS]
    for loss, gradients in runs:
        for a, b in zip([loss, *gradients], [runs[0][0], *runs[0][1]]):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("size", [1, 4, N, None])
def test_forward(data, size, threads):
    """Rows in order, of several arguments, from functions of Tensors and of arrays."""
    net, (x, target) = Net(), data
    shards = Shards(size, threads)
    y = shards.forward(net, x)
    assert isinstance(y, np.ndarray)
    np.testing.assert_allclose(y, net(x).data, rtol=1e-12)
    total = shards.forward(lambda a, b: a[:, :3] + b, x, target)
    np.testing.assert_array_equal(total, x[:, :3] + target)


@pytest.mark.parametrize("threads", [1, 3])
def test_forward_records_no_graph_and_leaves_recording_on(data, threads):
    net, seen = Net(), []
    shards = Shards(4, threads)

    def function(x):
        seen.append(_mode.recording)
        y = net(x)
        assert not y.requires_grad and y.op is None
        return y

    shards.forward(function, data[0])
    assert seen == [False] * 3
    # Caller and workers record again: the same threads now differentiate.
    after = list(shards.map(lambda _: _mode.recording, range(6)))
    assert _mode.recording and all(after)
    sharded_after = shards.backward(
        lambda rows: [ops.mse_loss(net(data[0][rows]), data[1][rows])], N, net.parameters()[:4]
    )
    assert sharded_after[0] > 0 and np.abs(net.first.weight.grad).max() > 0


@pytest.mark.parametrize("threads", THREADS)
def test_an_exception_in_a_shard_reaches_the_caller(data, threads):
    """Whether forward, backward or a tower fails; recording and the threads survive it."""
    net, shards = Net(), Shards(4, threads)
    parameters = net.parameters()[:4]

    def fail(rows):
        if isinstance(rows, np.ndarray) or rows.start == 4:
            raise FloatingPointError("in the second shard")
        return [net(data[0][rows]).mean()]

    for call in (
        lambda: shards.forward(fail, data[0]),
        lambda: shards.backward(fail, N, parameters),
        lambda: shards.coupled_backward(fail, lambda y: y.sum(), N, parameters),
    ):
        with pytest.raises(FloatingPointError, match="second shard"):
            call()
    assert all(shards.map(lambda _: _mode.recording, range(6)))


def test_no_thread_is_begun_where_there_is_nothing_to_share():
    """With one thread or one item: `work` may then count on the thread that it is called in."""
    for threads, items in ((1, range(3)), (2, range(1))):
        shards = Shards(4, threads)
        assert set(shards.map(lambda _: threading.get_ident(), items)) == {threading.get_ident()}


def test_processes_are_for_linux(monkeypatch):
    """The tests of processes are skipped elsewhere: this one is not."""
    for platform, fork in (("linux", True), ("darwin", False), ("win32", False)):
        monkeypatch.setattr(sys, "platform", platform)
        assert processes.can_fork() is fork


def test_threads_work_at_the_same_time():
    meet = threading.Barrier(2)
    assert len(list(Shards(1, 2).map(lambda _: meet.wait(10), range(2)))) == 2


def test_slices():
    assert Shards(4).slices(11) == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert Shards(4).slices(8) == [slice(0, 4), slice(4, 8)]
    assert Shards(4).slices(3) == [slice(0, 3)]
    assert Shards().slices(11) == [slice(0, 11)]
    # Two where one would do, unless they are tiny; a rule that no number of threads enters.
    assert Shards(64).slices(100) == [slice(0, 50), slice(50, 100)]
    assert Shards(64).slices(130) == [slice(0, 64), slice(64, 128), slice(128, 130)]
    assert Shards(64).slices(20) == [slice(0, 16), slice(16, 20)]
    assert Shards(64).slices(16) == [slice(0, 16)]
    assert Shards().slices(100) == [slice(0, 100)]
    assert Shards().threads >= 1


@pytest.mark.parametrize("options", [{"size": 0}, {"size": -3}, {"threads": 0}, {"threads": -1}])
def test_errors(options):
    with pytest.raises(ValueError, match="must be a whole number >= 1, not"):
        Shards(**options)


def test_a_shard_that_needs_no_gradient_says_so(data):
    with pytest.raises(ValueError, match="nothing that requires a gradient"):
        Shards(4, 2).backward(lambda rows: [Tensor(data[0][rows]).mean()], N, [])


def test_batches_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"different sizes: \[2, 3\]"):
        Shards(1).forward(lambda a, b: a, np.zeros(2), np.zeros(3))


@pytest.mark.parametrize("size", [None, 40])
def test_a_forward_pass_over_more_than_fits_at_once(size):
    rows = np.arange(1100.0).reshape(1100, 1)
    seen = []

    def double(x):
        seen.append(len(x))
        return Tensor(2 * x)

    y = Shards(size, threads=1).forward(double, rows)
    np.testing.assert_array_equal(y, 2 * rows)
    assert sum(seen) == 1100 and max(seen) == (size or 512)
