"""The engine: Function, Tensor, the graph and the walk back through it."""

import threading
import tracemalloc
import weakref

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.backend import to_host
from ldm_numpy.function import Function, _mode, raw
from ldm_numpy.tensor import Tensor, gradients, no_grad


def leaf(*shape, seed=0):
    data = np.random.default_rng(seed).standard_normal(shape)
    return Tensor(data, requires_grad=True)


class Spy(Function):
    """y = x; remembers its instances, and the order and gy of every backward."""

    def forward(self, *arrays, **options):
        Spy.instances.append(self)
        self.options = options
        self.save(*arrays)
        return arrays[0] + 0

    def backward(self, gy):
        Spy.backwards.append(gy)
        return tuple(gy if i == 0 else np.zeros_like(a) for i, a in enumerate(self.saved))


@pytest.fixture(autouse=True)
def _fresh_spy():
    Spy.instances, Spy.backwards = [], []
    yield
    Spy.instances, Spy.backwards = [], []


# Function.apply ----------------------------------------------------------------------------


@pytest.mark.host
def test_raw_arrays_in_raw_array_out(rng):
    x = rng.standard_normal((2, 3))
    y = Spy.apply(x, None)
    assert type(y) is np.ndarray
    assert np.array_equal(y, x)
    assert Spy.instances[0].saved == ()


def test_any_tensor_gives_a_tensor(rng):
    x = rng.standard_normal((2, 3))
    assert isinstance(Spy.apply(Tensor(x)), Tensor)
    assert isinstance(Spy.apply(x, Tensor(x)), Tensor)


@pytest.mark.host  # as the others below: which memory, not which numbers
def test_forward_sees_arrays_and_options(rng):
    seen = []

    class Look(Function):
        def forward(self, *arrays, **options):
            seen.append((arrays, options))
            return arrays[0]

    x = rng.standard_normal(2)
    Look.apply(Tensor(x), x, None, axis=3)
    (arrays, options), *_ = seen
    assert arrays[0] is x and arrays[1] is x and arrays[2] is None
    assert options == {"axis": 3}


def test_needs_follow_requires_grad():
    x, constant = leaf(2), Tensor(np.ones(2))
    Spy.apply(constant, x, np.ones(2), x)
    assert Spy.instances[0].needs == (False, True, False, True)


def test_result_joins_the_graph_only_if_some_input_requires_a_gradient():
    x = leaf(2)
    y = Spy.apply(x)
    assert y.requires_grad and y.op is Spy.instances[0]
    assert y.op.inputs[0] is x
    constant = Spy.apply(Tensor(np.ones(2)))
    assert not constant.requires_grad and constant.op is None
    assert Spy.instances[1].saved == () and Spy.instances[1].inputs is None


def test_base_class_is_abstract():
    with pytest.raises(NotImplementedError):
        Function().forward()
    with pytest.raises(NotImplementedError):
        Function().backward(1)


@pytest.mark.host
def test_raw():
    x = np.ones(2)
    assert raw(Tensor(x)) is x
    assert raw(x) is x
    assert raw(None) is None


# Recording ---------------------------------------------------------------------------------


def test_no_grad_records_and_saves_nothing():
    x = leaf(3)
    with no_grad():
        assert not _mode.recording
        y = Spy.apply(x)
    assert _mode.recording
    assert isinstance(y, Tensor) and not y.requires_grad and y.op is None
    assert Spy.instances[0].saved == ()
    assert Spy.instances[0].needs == (False,)


def test_no_grad_nests_and_survives_an_exception():
    with no_grad():
        with no_grad():
            pass
        assert not _mode.recording
        with pytest.raises(ZeroDivisionError), no_grad():
            _ = 1 / 0
        assert not _mode.recording
    assert _mode.recording


def test_grad_mode_is_of_its_thread():
    inside, looked, seen = threading.Event(), threading.Event(), {}

    def silent():
        with no_grad():
            inside.set()
            looked.wait(10)
            seen["silent"] = (leaf(2) * 2).requires_grad

    thread = threading.Thread(target=silent)
    thread.start()
    assert inside.wait(10)
    seen["main"] = (leaf(2) * 2).requires_grad
    looked.set()
    thread.join()
    assert seen == {"main": True, "silent": False}
    with no_grad():
        thread = threading.Thread(target=lambda: seen.update(new=_mode.recording))
        thread.start()
        thread.join()
    assert seen["new"]


def test_threads_differentiate_on_shared_parameters():
    w = leaf(4, 4)
    xs = [np.random.default_rng(i).standard_normal((5, 4)) for i in range(4)]
    results = [None] * len(xs)

    def work(i):
        for _ in range(20):
            results[i] = gradients((ops.tanh(Tensor(xs[i]) @ w)).sum(), [w])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert w.grad is None
    for x, got in zip(xs, results):
        y = np.tanh(x @ w.data)
        np.testing.assert_allclose(got, x.T @ (1 - y * y), rtol=1e-12)


# backward ----------------------------------------------------------------------------------


def test_scalar_backward_seeds_with_one():
    x = leaf(3)
    (x * x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.data)


def test_one_element_of_any_shape_needs_no_seed():
    x = leaf(1, 1)
    (x * 3.0).backward()
    assert x.grad.shape == (1, 1) and x.grad[0, 0] == 3


def test_backward_takes_any_cotangent(rng):
    x, gy = leaf(2, 3), rng.standard_normal((2, 3))
    (x * 2.0).backward(gy)
    np.testing.assert_allclose(x.grad, 2 * gy)
    x.grad = None
    (x * 2.0).backward(Tensor(gy))
    np.testing.assert_allclose(x.grad, 2 * gy)


def test_backward_takes_a_number_for_a_scalar():
    x = leaf(3)
    (x * 2.0).sum().backward(5.0)
    np.testing.assert_allclose(x.grad, 10)


def test_grad_of_a_scalar_is_an_array():
    x = leaf()
    (x * 2.0).backward()
    assert isinstance(x.grad, np.ndarray) and x.grad.shape == ()


def test_the_cotangent_takes_the_dtype_of_the_result():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    (x * 2.0).backward(np.ones(3))
    assert x.grad.dtype == np.float32


def test_backward_of_a_leaf():
    x = leaf(3)
    x.backward(np.arange(3.0))
    assert np.array_equal(x.grad, np.arange(3.0))


def test_backward_refuses():
    with pytest.raises(ValueError, match="nothing that requires a gradient"):
        Tensor(np.ones(1)).backward()
    with pytest.raises(ValueError, match=r"shape \(2,\) needs gy"):
        (leaf(2) * 1.0).backward()
    with pytest.raises(ValueError, match=r"gy has shape \(1, 2\), the result has \(2,\)"):
        (leaf(2) * 1.0).backward(np.ones((1, 2)))


def test_grad_adds_up_over_calls():
    x = leaf(3)
    (x * 2.0).sum().backward()
    (x * 3.0).sum().backward()
    np.testing.assert_allclose(x.grad, 5)


def test_grad_only_on_leaves_that_require_it():
    x, constant = leaf(3), Tensor(np.ones(3))
    h = x * constant
    h.sum().backward()
    assert h.grad is None and constant.grad is None
    assert x.grad is not None


def test_grad_shares_no_memory_with_gy_or_another_grad():
    a, b, gy = leaf(3), leaf(3), np.ones(3)
    (a + b).backward(gy)
    a.grad += 1
    assert np.array_equal(b.grad, np.ones(3))
    assert np.array_equal(gy, np.ones(3))


def test_same_input_twice():
    x = leaf(3)
    (x * x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.data)
    x.grad = None
    (x - x).sum().backward()
    np.testing.assert_allclose(x.grad, 0)


def test_diamond_runs_each_backward_once_with_the_summed_gradient():
    x = leaf(2)
    h = Spy.apply(x)
    left, right = h * 2.0, h * 3.0
    deep = right * 5.0 + left  # the paths have different lengths
    (deep + h).backward(np.ones(2))
    assert len(Spy.backwards) == 1
    np.testing.assert_allclose(to_host(Spy.backwards[0]), 18)
    np.testing.assert_allclose(x.grad, 18)


def test_summing_paths_does_not_write_into_a_gradient_in_use():
    x, gy = leaf(2), np.ones(2)
    h = x * 1.0
    (h + h + h).backward(gy)
    np.testing.assert_allclose(x.grad, 3)
    assert np.array_equal(gy, np.ones(2))


def test_ladder_of_diamonds_takes_linear_time():
    x = h = leaf(1)
    for _ in range(60):  # 2^60 paths
        h = h + h
    h.backward()
    assert x.grad[0] == 2.0**60


def test_walking_a_graph_twice_is_an_error():
    x = leaf(3)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(ValueError, match="already walked"):
        y.backward()
    with pytest.raises(ValueError, match="already walked"):
        gradients(y, [x])
    np.testing.assert_allclose(x.grad, 2 * x.data)


def test_a_shared_part_cannot_be_walked_from_two_results():
    h = leaf(3) * 2.0
    a, b = h.sum(), (h * h).sum()
    a.backward()
    with pytest.raises(ValueError, match="already walked"):
        b.backward()


@pytest.mark.parametrize("shape", [(3,), (1, 2), (2, 1), ()])
def test_wrong_gradient_shape_names_the_operation(shape):
    class Crooked(Function):
        def forward(self, a, b):
            return a + b

        def backward(self, gy):
            return gy, np.ones(shape)

    with pytest.raises(ValueError, match=r"Crooked\.backward: gradient 1 has shape .* has \(2,\)"):
        Crooked.apply(leaf(2), leaf(2)).backward(np.ones(2))


def test_missing_gradient_names_the_operation():
    class Forgetful(Function):
        def forward(self, a):
            return a + 0

        def backward(self, gy):
            return (None,)

    with pytest.raises(ValueError, match=r"Forgetful\.backward: gradient 0 has shape None"):
        Forgetful.apply(leaf(2)).backward(np.ones(2))


def test_too_few_gradients_are_an_error():
    class Short(Function):
        def forward(self, a, b):
            return a + b

        def backward(self, gy):
            return (gy,)

    with pytest.raises(ValueError):
        Short.apply(leaf(2), leaf(2)).backward(np.ones(2))


def test_gradients_nobody_asked_for_may_be_anything():
    class Lazy(Function):
        def forward(self, a, b, c):
            return a + b

        def backward(self, gy):
            return gy, None, np.ones(17)

    x = leaf(2)
    Lazy.apply(x, np.ones(2), None).backward(np.ones(2))
    np.testing.assert_allclose(x.grad, 1)


# gradients ---------------------------------------------------------------------------------


@pytest.mark.host
def test_gradients_in_the_order_asked_and_grad_left_alone():
    a, b, unrelated = leaf(2), leaf(2, seed=1), leaf(3, 2)
    before = a.grad = np.full(2, 7.0)
    gb, gu, ga, gb_again = gradients((a * b).sum(), [b, unrelated, a, b])
    np.testing.assert_allclose(ga, b.data)
    np.testing.assert_allclose(gb, a.data)
    np.testing.assert_allclose(gb_again, a.data)
    assert gu.shape == (3, 2) and not gu.any()
    assert a.grad is before and (before == 7).all()
    assert b.grad is None and unrelated.grad is None


def test_gradients_takes_an_iterator_and_a_cotangent():
    a, b = leaf(2), leaf(2, seed=1)
    ga, gb = gradients(a * b, iter((a, b)), np.array([1.0, 10.0]))
    np.testing.assert_allclose(ga, b.data * [1, 10])
    np.testing.assert_allclose(gb, a.data * [1, 10])


def test_gradients_of_intermediate_tensors_and_the_leaves_below():
    x = leaf(3)
    h = x * 2.0
    y = h * h
    gh, gx, gy = gradients(y.sum(), [h, x, y])
    np.testing.assert_allclose(gh, 2 * h.data)
    np.testing.assert_allclose(gx, 4 * h.data)
    np.testing.assert_allclose(gy, 1)


def test_gradients_refuses_what_backward_refuses():
    with pytest.raises(ValueError, match="nothing that requires a gradient"):
        gradients(Tensor(np.ones(1)), [])
    with pytest.raises(ValueError, match="needs gy"):
        gradients(leaf(2) * 1.0, [])


def test_cut_and_continue():
    def bottom(x, w):
        return ops.tanh(x @ w)

    def top(h, u):
        return ((h @ u) ** 2).sum()

    x, w, u = leaf(4, 3), leaf(3, 5, seed=1), leaf(5, 2, seed=2)
    whole = gradients(top(bottom(x, w), u), [x, w, u])

    h = bottom(x, w)
    cut = Tensor(h.data, requires_grad=True)
    gh, gu = gradients(top(cut, u), [cut, u])
    gx, gw = gradients(h, [x, w], gh)
    for a, b in zip(whole, (gx, gw, gu)):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.host
def test_detach_cuts():
    x = leaf(3)
    (x * x.detach()).sum().backward()
    np.testing.assert_allclose(x.grad, x.data)
    assert x.detach().data is x.data and not x.detach().requires_grad


# Depth and memory --------------------------------------------------------------------------


def test_ten_thousand_operations_need_no_recursion():
    x = leaf(2)
    h = x
    for _ in range(10_000):
        h = h + x
    h.backward(np.ones(2))
    np.testing.assert_allclose(x.grad, 10_001)


def test_a_deep_graph_is_freed_without_being_walked(no_collector):
    h = leaf(2)
    first = weakref.ref(h)
    for _ in range(10_000):
        h = h * 1.0
    del h
    assert first() is None


@pytest.mark.parametrize("walk", ["backward", "gradients", "error", "never"])
def test_a_graph_is_freed_by_reference_counting_alone(no_collector, walk):
    x, w = leaf(4, 3), leaf(3, 3, seed=1)

    def step():
        h = ops.silu(ops.linear(x, w))
        h = ops.attention(h[None], h[None], h[None])
        y = (h * h).mean()
        references = [weakref.ref(t) for t in (h, y, h.op, y.op)]
        if walk in ("backward", "error"):
            y.backward()
        if walk == "gradients":
            gradients(y, [x, w])
        if walk == "error":
            with pytest.raises(ValueError, match="already walked"):
                y.backward()
        return references

    assert [r() for r in step()] == [None] * 4


def test_the_walk_drops_what_it_has_passed(no_collector):
    alive_at_backward = []
    arrays = []

    class Holder(Function):
        def forward(self, x):
            y = x + 0.0
            arrays.append(weakref.ref(y))
            self.save(y)
            return y

        def backward(self, gy):
            alive_at_backward.append(sum(r() is not None for r in arrays))
            return (gy + 0.0,)

    def chain():
        h = leaf(3)
        for _ in range(8):
            h = Holder.apply(h)
        return h.sum()

    y = chain()
    y.backward()
    assert alive_at_backward == [8, 7, 6, 5, 4, 3, 2, 1]
    assert y.requires_grad and not any(r() is not None for r in arrays)


@pytest.mark.host
def test_memory_does_not_grow_over_training_steps(no_collector):
    x, w = leaf(256, 64), leaf(64, 64, seed=1)
    tracemalloc.start()
    levels = []
    for _ in range(50):
        loss = (ops.gelu(ops.linear(x, w)) ** 2).mean()
        loss.backward()
        w.data -= 0.01 * w.grad
        x.grad = w.grad = loss = None
        levels.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(levels[10:]) - levels[9] < w.data.nbytes  # not even one array was kept


# Tensor ------------------------------------------------------------------------------------


@pytest.mark.host
def test_tensor_describes_its_data():
    x = Tensor(np.zeros((2, 3), np.float64), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, np.float64, 2)
    assert repr(x * 2.0).endswith("shape=(2, 3), requires_grad=True, op=Mul)")
    assert repr(Tensor([1])) == "Tensor([1.], shape=(1,), requires_grad=False)"
    assert np.shares_memory(x.numpy(), x.data)


def test_tensor_from_python_numbers_is_float32():
    assert Tensor(2).dtype == Tensor([1, 2]).dtype == np.float32
    assert Tensor(np.arange(3)).dtype == np.int64
    assert isinstance(Tensor(np.float32(2)).data, np.ndarray)


def test_item():
    assert Tensor([[2.5]]).item() == 2.5
    assert type(Tensor(2.5).item()) is float
    with pytest.raises(ValueError):
        Tensor([1, 2]).item()


def test_tensor_refuses():
    with pytest.raises(ValueError, match="not another Tensor"):
        Tensor(Tensor(1.0))
    with pytest.raises(ValueError, match=r"floating point.*int64"):
        Tensor(np.arange(3), requires_grad=True)
