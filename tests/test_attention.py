"""Attention in blocks: cutting changes no number, and the weights are never there as a whole."""

import sys
import tracemalloc

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.ops.attention import Attention, split_heads
from ldm_numpy.tensor import Tensor

from .test_ops import naive_attention

MODULE = sys.modules[Attention.__module__]  # ops.attention itself names the function
N, HEADS, T, S, D = 3, 2, 5, 7, 8
A_HEAD = 8 * T * S  # bytes of its scores in float64
BLOCKS = {  # budget in bytes: how many blocks there are
    "everything": (10 * N * HEADS * A_HEAD, 1),
    "two images": (2 * HEADS * A_HEAD, 2),
    "an image": (HEADS * A_HEAD, N),
    "a head": (A_HEAD, N * HEADS),
    "three queries": (A_HEAD * 3 // T, N * HEADS * 2),
    "a query": (A_HEAD // T, N * HEADS * T),
    "less than a query": (0, N * HEADS * T),
}


def results(inputs, gy, **options):
    """The op, its output, the weights it recorded and the gradients of q, k and v."""
    inputs, seen = [Tensor(x, requires_grad=True) for x in inputs], []
    y = ops.attention(*inputs, heads=HEADS, recorder=seen.append, **options)
    op = y.op
    y.backward(gy)
    return op, y.data, seen[0], *[x.grad for x in inputs]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.host  # a GPU has no blocks
def test_blocks_change_nothing(rng, monkeypatch, name, masked, causal):
    q, gy = rng.standard_normal((2, N, T, D))
    k, v = rng.standard_normal((2, N, S, D))
    mask = rng.random((N, 1, T, S)) > 0.4 if masked else None
    if masked:
        mask[1, 0, 2] = False  # a query that may look nowhere
    budget, count = BLOCKS[name]
    _, y, weights, *gradients = results((q, k, v), gy, mask=mask, causal=causal)
    monkeypatch.setattr(MODULE, "CPU_BLOCK", budget)
    op, *cut = results((q, k, v), gy, mask=mask, causal=causal)
    assert len(op.blocks) == count
    for ours, whole in zip(cut, (y, weights, *gradients)):
        np.testing.assert_allclose(ours, whole, rtol=0, atol=1e-13)
    look = np.broadcast_to(True if mask is None else mask, (N, HEADS, T, S))
    if causal:
        look = look & np.tri(T, S, dtype=bool)
    expected, expected_weights = naive_attention(q, k, v, HEADS, look)
    np.testing.assert_allclose(cut[0], expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(cut[1], expected_weights, rtol=0, atol=1e-13)
    if masked:
        gq = cut[2]
        assert (gq[1, 2] == 0).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_are_those_of_the_formula(rng, monkeypatch, name):
    """Against the formula of the docstring, written down plainly."""
    q, gy = rng.standard_normal((2, N, T, D))
    k, v = rng.standard_normal((2, N, S, D))
    monkeypatch.setattr(MODULE, "CPU_BLOCK", BLOCKS[name][0])
    _, _, p, *gradients = results((q, k, v), gy)
    q, k, v, gy, *gradients = [split_heads(x, HEADS) for x in (q, k, v, gy, *gradients)]
    gp = gy @ v.swapaxes(2, 3)
    gs = p * (gp - (gp * p).sum(3, keepdims=True)) / np.sqrt(D // HEADS)
    for g, expected in zip(gradients, (gs @ k, gs.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ gy)):
        np.testing.assert_allclose(g, expected, rtol=0, atol=1e-13)


def test_only_wanted_gradients_are_computed(rng):
    q, k, v = rng.standard_normal((3, 2, 4, 6))
    for wanted in range(3):
        inputs = [Tensor(x, requires_grad=i == wanted) for i, x in enumerate((q, k, v))]
        y = ops.attention(*inputs, heads=2)
        assert [g is not None for g in y.op.backward(y.data)] == [i == wanted for i in range(3)]


def test_inputs_are_left_as_they_were(rng):
    """One query, or heads of width 1: a transpose is then the same memory."""
    for shape in ((2, 1, 4), (2, 3, 4)):
        q, k, v, gy = rng.standard_normal((4, *shape))
        before = [x.copy() for x in (q, k, v, gy)]
        inputs = [Tensor(x, requires_grad=True) for x in (q, k, v)]
        ops.attention(*inputs, heads=4).backward(gy)
        for x, same in zip((q, k, v, gy), before):
            np.testing.assert_array_equal(x, same)


@pytest.mark.host
@pytest.mark.parametrize("causal", [False, True])
def test_memory_of_many_tokens(rng, causal):
    """4096 queries and keys: forward and backward stay far below one array of 4096 x 4096."""
    t, d = 4096, 16
    inputs = [Tensor(x, requires_grad=True) for x in rng.standard_normal((3, 1, t, d), "float32")]
    gy = np.ones((1, t, d), "float32")
    tracemalloc.start()
    try:
        y = ops.attention(*inputs, causal=causal)
        held, forward = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        y.backward(gy)
        _, backward = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    full = 4 * t * t
    assert held < full / 50
    assert forward < full / 10
    assert backward < full / 10


def test_nothing_is_kept_without_a_gradient(rng):
    q = rng.standard_normal((2, 4, 6))
    op = Attention()
    op.needs = (False,) * 3
    op.forward(q, q, q, heads=2, mask=None, causal=False, recorder=None)
    assert op.saved == ()
