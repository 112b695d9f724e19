import math
from itertools import pairwise

import numpy as np
import pytest

from ldm_numpy import optim
from ldm_numpy.nn import Linear, Module, Parameter
from ldm_numpy.optim import EMA, AdamW, Muon, orthogonal, warmup_cosine
from ldm_numpy.parallel import Shards


class Net(Module):
    """A vector before a matrix, a scalar, a kernel: the optimizer must sort them."""

    def __init__(self, seed=0):
        self.shift = Parameter((3,))
        self.linear = Linear(3, 2)
        self.scale = Parameter(())
        self.kernel = Parameter((2, 2, 1, 3))
        rng = np.random.default_rng(seed)
        for p in self.parameters():
            p.data = rng.normal(size=p.shape)


def set_gradients(net, rng, size=1.0):
    """Random gradients, written in place; returns copies."""
    for p in net.parameters():
        p.grad[...] = size * rng.normal(size=p.shape)
    return [p.grad.copy() for p in net.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_the_papers_loop(rng, decay):
    """Loshchilov and Hutter 2019, algorithm 2, a parameter at a time, for six steps."""
    net, (b1, b2), eps = Net(), (0.8, 0.95), 1e-3  # an eps large enough to be seen
    weights = [p.data.copy() for p in net.parameters()]
    m, v = [0.0] * len(weights), [0.0] * len(weights)
    optimizer = AdamW(net.parameters(), betas=(b1, b2), eps=eps, weight_decay=decay)
    for t in range(1, 7):
        lr = 0.1 / t
        for i, g in enumerate(set_gradients(net, rng)):
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            m_hat, v_hat = m[i] / (1 - b1**t), v[i] / (1 - b2**t)
            own_decay = decay if weights[i].ndim >= 2 else 0.0
            update = m_hat / (np.sqrt(v_hat) + eps) + own_decay * weights[i]
            weights[i] = weights[i] - lr * update
        optimizer.step(lr)
        for p, expected in zip(net.parameters(), weights):
            np.testing.assert_allclose(p.data, expected, rtol=1e-12, atol=1e-14)
    assert optimizer.step_count == 6


@pytest.mark.parametrize("kind", [AdamW, Muon])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("piece", [1, 5, 18, 23])  # 18 of the 24 numbers decay
def test_pieces_and_threads_change_no_bit(kind, piece, threads, monkeypatch, rng):
    """Where a piece ends, and who works on it, in float32; decay ends inside a piece or with it."""

    def train(shards):
        net = Net().astype(np.float32)
        optimizer = kind(net.parameters(), weight_decay=0.1, shards=shards)
        average = EMA(optimizer, 0.9)
        for gradient in gradients:
            optimizer.gradient[...] = gradient
            optimizer.step(0.1)
            average.update()
        return [optimizer.weights, optimizer.m, optimizer.v, average.average]

    gradients = rng.normal(size=(4, 24))
    expected = train(None)
    monkeypatch.setattr(optim, "PIECE", piece)
    for a, b in zip(train(Shards(None, threads)), expected):
        np.testing.assert_array_equal(a, b)


@pytest.mark.host  # on a GPU the buffers are one piece
@pytest.mark.parametrize("piece, ends", [(10, [10, 20, 24]), (24, [24]), (100, [24])])
def test_pieces_cover_the_buffers(piece, ends, monkeypatch):
    monkeypatch.setattr(optim, "PIECE", piece)
    pieces = []
    AdamW(Net().parameters()).each_piece(pieces.append)
    assert [p.stop for p in pieces] == ends
    assert [p.start for p in pieces] == [0, *ends[:-1]]


@pytest.mark.host
def test_an_error_in_a_piece_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(optim, "PIECE", 10)
    for shards in (None, Shards(None, 2)):
        with pytest.raises(ZeroDivisionError):
            optimizer = AdamW(Net().parameters(), shards=shards)
            optimizer.each_piece(lambda piece: 1 // (piece.start - 10))


def test_a_step_leaves_the_gradient_alone(rng):
    net = Net()
    optimizer = AdamW(net.parameters())
    gradients = set_gradients(net, rng)
    optimizer.step(0.1)
    for p, g in zip(net.parameters(), gradients):
        np.testing.assert_array_equal(p.grad, g)
    optimizer.zero_grad()
    assert not any(p.grad.any() for p in net.parameters())


# Muon --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 7, 4), (3, 4, 7), (1, 5, 5), (2, 1, 3)])
def test_orthogonal_is_roughly_the_svd_without_its_singular_values(rng, shape):
    size = min(shape[1:])
    u, v = (np.linalg.qr(rng.normal(size=(shape[0], n, size)))[0] for n in shape[1:])
    singular = rng.uniform(0.05, 1, (shape[0], 1, size))
    x = 30 * (u * singular) @ v.swapaxes(1, 2)
    y = orthogonal(x)
    assert y.shape == shape
    inside = u.swapaxes(1, 2) @ y @ v  # diagonal where U and V are those of x
    np.testing.assert_allclose(y, u @ inside @ v.swapaxes(1, 2), atol=1e-12)
    diagonal = np.einsum("bii->bi", inside)
    assert ((diagonal > 0.6) & (diagonal < 1.25)).all()
    np.testing.assert_allclose(inside, diagonal[:, None] * np.eye(size), atol=1e-10)
    assert not orthogonal(0 * x).any()  # a gradient of zero is no division by zero


@pytest.mark.parametrize("shape", [(2, 7, 4), (3, 4, 7), (1, 5, 5), (2, 1, 3)])
@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_orthogonal_is_five_steps_on_the_matrix_itself(rng, shape, size):
    """As the iteration is written: x <- a x + x (b x^T x + c (x^T x)^2)."""
    matrices = size * rng.normal(size=shape)
    expected = []
    for x in matrices:
        x = x / (np.linalg.norm(x) + 1e-7)
        x = x.T if x.shape[0] < x.shape[1] else x
        for _ in range(5):
            gram = x.T @ x
            x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
        expected.append(x.T if shape[1] < shape[2] else x)
    np.testing.assert_allclose(orthogonal(matrices), expected, rtol=1e-9, atol=1e-12)
    single = orthogonal(matrices.astype(np.float32))
    assert single.dtype == np.float32
    assert np.linalg.norm(single - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_is_its_formula_for_matrices_and_adamw_for_vectors(rng, decay):
    net, adamw_net = Net(), Net()
    optimizer = Muon(net.parameters(), momentum=0.8, weight_decay=decay)
    adamw = AdamW(adamw_net.parameters(), weight_decay=decay)
    weights = [p.data.copy() for p in net.parameters()]
    momenta = [0.0] * len(weights)
    for t in range(1, 5):
        lr = 0.1 / t
        gradients = set_gradients(net, rng)
        for p, g in zip(adamw_net.parameters(), gradients):
            p.grad[...] = g
        adamw.step(lr)
        optimizer.step(lr)
        for i, (p, same) in enumerate(zip(net.parameters(), adamw_net.parameters())):
            if p.ndim < 2:
                np.testing.assert_allclose(p.data, same.data, rtol=1e-12)
                continue
            momenta[i] = 0.8 * momenta[i] + gradients[i]
            u = gradients[i] + 0.8 * momenta[i]
            rows, columns = u.size // u.shape[-1], u.shape[-1]
            update = orthogonal(u.reshape(1, rows, columns)).reshape(u.shape)
            size = 0.2 * max(rows, columns) ** 0.5
            weights[i] = weights[i] - lr * (size * update + decay * weights[i])
            np.testing.assert_allclose(p.data, weights[i], rtol=1e-10, atol=1e-12)
    assert optimizer.step_count == 4


@pytest.mark.host
def test_muon_stacks_matrices_of_one_shape():
    """Each where the buffer has it, whatever lies between them in the network."""

    class Layers(Module):
        def __init__(self):
            self.a, self.b, self.c = Linear(4, 3), Linear(2, 5), Linear(4, 3)
            self.kernel = Parameter((2, 2, 1, 3))  # as a matrix, 4 x 3 too

    net = Layers()
    optimizer = Muon(net.parameters())
    assert [stack[1:] for stack in optimizer.stacks] == [(3, 4, 3), (1, 2, 5)]
    for place, *shape in optimizer.stacks:
        optimizer.weights[place].reshape(shape)[-1] = 7
    assert (net.b.weight.data == 7).all() and (net.kernel.data == 7).all()
    assert not (net.c.weight.data == 7).any()
    assert optimizer.v.size == 3 + 5 + 3


@pytest.mark.host
def test_muon_cuts_a_tall_stack(monkeypatch):
    """Where many matrices have one shape, several threads share them; the result is the same."""

    def trained(piece):
        monkeypatch.setattr(optim, "PIECE", piece)
        parameters = [Parameter((3, 4), "ones") for _ in range(5)]
        parameters += [Parameter((6, 5), "ones") for _ in range(2)]
        optimizer = Muon(parameters)
        rng = np.random.default_rng(0)
        for _ in range(3):
            optimizer.gradient[...] = rng.standard_normal(optimizer.gradient.shape)
            optimizer.step(0.1)
        return [stack[1:] for stack in optimizer.stacks], optimizer.weights

    whole, expected = trained(1000)
    cut, got = trained(2 * 12 + 1)
    assert whole == [(5, 3, 4), (2, 6, 5)]  # the largest first: the last to be taken are small
    assert cut == [(1, 6, 5), (1, 6, 5), (2, 3, 4), (2, 3, 4), (1, 3, 4)]  # 6 x 5 is above a piece
    np.testing.assert_array_equal(got, expected)


@pytest.mark.host
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_parameters_and_gradients_are_views_into_flat_buffers(kind, rng):
    net, other = Net(0), Net(1)
    before = net.state_dict()
    optimizer = kind(net.parameters())
    for p in net.parameters():
        assert np.shares_memory(p.data, optimizer.weights)
        assert np.shares_memory(p.grad, optimizer.gradient)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert optimizer.weights.size == net.count_parameters() == 3 + 6 + 2 + 1 + 12

    net.load_state_dict(other.state_dict())  # copies into the buffer
    sums = sum(float(p.data.sum()) for p in other.parameters())
    assert optimizer.weights.sum() == pytest.approx(sums, rel=1e-12)
    optimizer.weights.fill(7)
    assert all((p.data == 7).all() for p in net.parameters())


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_the_type_of_the_weights_is_kept(kind):
    net = Linear(3, 2)  # float32
    optimizer = kind(net.parameters(), weight_decay=0.1)
    average = EMA(optimizer, 0.9)
    optimizer.gradient.fill(1)
    optimizer.clip_gradient(0.5)
    optimizer.step(1e-3)
    average.update()
    for array in (optimizer.weights, optimizer.gradient, optimizer.m, optimizer.v, average.average):
        assert array.dtype == np.float32
    assert net.weight.dtype == np.float32


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 7, 3), (2, 4, 4)])
def test_muon_multiplies_the_smaller_gram_matrix(shape, rng, monkeypatch):
    sizes, polynomial = [], optim.polynomial
    monkeypatch.setattr(optim, "polynomial", lambda g: sizes.append(g.shape) or polynomial(g))
    assert orthogonal(rng.standard_normal(shape)).shape == shape
    side = min(shape[1:])
    assert set(sizes) == {(2, side, side)}


def test_a_gradient_is_scaled_when_every_process_has_its_norm():
    class Recording(Shards):
        def barrier(self):
            order.append("barrier")

        def each(self, work, items):
            order.append("scale")

    order = []
    AdamW([Parameter((3,), "ones")], shards=Recording(threads=1)).clip_gradient(1.0)
    assert order == ["barrier", "scale"]


def test_clip_gradient(rng):
    net = Net()
    optimizer = AdamW(net.parameters())
    gradients = set_gradients(net, rng)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))

    assert optimizer.clip_gradient(2 * norm) == pytest.approx(norm)  # small enough: untouched
    for p, g in zip(net.parameters(), gradients):
        np.testing.assert_array_equal(p.grad, g)
    assert optimizer.clip_gradient(norm / 4) == pytest.approx(norm)  # the norm before
    for p, g in zip(net.parameters(), gradients):
        np.testing.assert_allclose(p.grad, g / 4, rtol=1e-5)
    optimizer.zero_grad()
    assert optimizer.clip_gradient(1.0) == 0 and not optimizer.gradient.any()
    optimizer.gradient[0] = 5e-7  # less than what keeps the division from being one by zero
    assert optimizer.clip_gradient(1.0) > 0 and optimizer.gradient[0] == pytest.approx(5e-7)


def test_ema_warms_up(rng):
    """By a loop: d_t = min(decay, (1 + t) / (10 + t)), t = 1, 2, ... updates."""
    net = Net()
    optimizer = AdamW(net.parameters())
    average = EMA(optimizer, 0.35)
    expected = optimizer.weights.copy()
    decays = []
    for t in range(1, 9):
        set_gradients(net, rng)
        optimizer.step(0.3)
        average.update()
        decays.append(min(0.35, (1 + t) / (10 + t)))
        expected = decays[-1] * expected + (1 - decays[-1]) * optimizer.weights
        np.testing.assert_allclose(average.average, expected, rtol=1e-12)
    assert decays[0] == 2 / 11 and decays[-1] == 0.35  # both sides of the minimum were met


@pytest.mark.host
def test_ema_applied_restores_even_after_an_exception(rng):
    net = Net()
    optimizer = AdamW(net.parameters())
    average = EMA(optimizer, 0.9)
    set_gradients(net, rng)
    optimizer.step(0.3)
    average.update()
    trained, averaged = optimizer.weights.copy(), average.average.copy()
    assert not np.allclose(trained, averaged)
    with average.applied():
        np.testing.assert_array_equal(optimizer.weights, averaged)
        assert np.shares_memory(net.shift.data, optimizer.weights)  # the networks see it
    np.testing.assert_array_equal(optimizer.weights, trained)
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    np.testing.assert_array_equal(optimizer.weights, trained)
    np.testing.assert_array_equal(average.average, averaged)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_state_round_trip(kind, rng):
    """Two steps, saved and loaded into a fresh optimizer, two more: as four without a break."""
    gradients = rng.normal(size=(4, Net().count_parameters()))

    def steps(optimizer, rows):
        for g in rows:
            optimizer.gradient[...] = g
            optimizer.step(0.1)

    whole = kind(Net().parameters(), weight_decay=0.1)
    steps(whole, gradients)
    net, again = Net(), Net(1)
    first = kind(net.parameters(), weight_decay=0.1)
    steps(first, gradients[:2])
    second = kind(again.parameters(), weight_decay=0.1)
    again.load_state_dict(net.state_dict())
    second.load_state_dict(first.state_dict())
    assert not np.shares_memory(second.m, first.m) and not np.shares_memory(second.v, first.v)
    steps(second, gradients[2:])
    np.testing.assert_array_equal(second.weights, whole.weights)
    assert second.step_count == 4


def test_warmup_cosine():
    factors = [warmup_cosine(step, 14, 4, 0.02) for step in range(15)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0  # the cosine's top
    assert factors[9] == pytest.approx(0.51)  # half way: the middle of 1 and 0.02
    assert factors[14] == pytest.approx(0.02)
    assert warmup_cosine(10_000, 14, 4, 0.02) == pytest.approx(0.02)  # and stays there
    assert warmup_cosine(7, 10, 4) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert all(high >= low for high, low in pairwise(factors[3:]))
    assert warmup_cosine(0, 1, 0) == 1 and warmup_cosine(0, 1, 1) == 1
    assert warmup_cosine(3, 3, 3) == 1  # nothing but warm-up: no division by zero


def test_errors():
    with pytest.raises(ValueError, match="no parameters"):
        AdamW([])
    optimizer = AdamW(Net().parameters())
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"decay .* must be in \[0, 1\)"):
            EMA(optimizer, decay)
    state, before = optimizer.state_dict(), optimizer.m.copy()
    with pytest.raises(ValueError, match="'v' has 3 numbers, the networks have 24"):
        optimizer.load_state_dict(state | {"m": before + 1, "v": np.zeros(3)})
    np.testing.assert_array_equal(optimizer.m, before)  # refused before anything was changed
