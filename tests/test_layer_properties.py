"""The fused operations for any shape and option: against naive loops, and what must hold of them.

Convolution arithmetic, masks of attention, resampling, normalisation, softmax, embedding.
"""

import itertools
import sys
from unittest import mock

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_numpy import ops
from ldm_numpy.ops.attention import Attention
from ldm_numpy.ops.winograd import WinogradConv2d
from ldm_numpy.tensor import Tensor, gradients

from .test_ops import naive_attention, naive_group_norm

ATTENTION = sys.modules[Attention.__module__]  # ops.attention itself names the function
seeds = st.integers(0, 2**32 - 1)
small = st.integers(1, 4)


def normal(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def leaves(*arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(a, requires_grad=True) for a in arrays]


def check(actual, expected) -> None:
    actual = actual.data if isinstance(actual, Tensor) else actual
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-10)


# Convolution ---------------------------------------------------------------------------------


def loop(x, w, gy, stride: int):
    """x (N, H, W, Cin), already padded, with w: the output, and the gradients of <gy, y>."""
    shape = [(n - k) // stride + 1 for n, k in zip(x.shape[1:3], w.shape)]
    y = np.zeros((len(x), *shape, w.shape[3]))
    gx, gw = np.zeros_like(x), np.zeros_like(w)
    for i, j, a, b in itertools.product(*map(range, (*shape, *w.shape[:2]))):
        pixel = (slice(None), stride * i + a, stride * j + b)
        y[:, i, j] += x[pixel] @ w[a, b]
        gx[pixel] += gy[:, i, j] @ w[a, b].T
        gw[a, b] += x[pixel].T @ gy[:, i, j]
    return y, gx, gw


@st.composite
def convolutions(draw):
    """Shapes of an image and a kernel, stride and padding; the kernel may turn out too large.

    A stride of 1 and padding below the size of the kernel, where the gradient is a convolution
    itself, come more often than they would by themselves.
    """
    image = (draw(st.integers(0, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(small))
    kernel = (draw(small), draw(small), image[3], draw(small))
    below = [st.integers(0, kernel[axis] - 1) for axis in (0, 0, 1, 1)]
    padding = draw(st.tuples(*below) | st.integers(0, 2) | st.tuples(*[st.integers(0, 4)] * 4))
    return image, kernel, draw(st.just(1) | small), padding


@given(convolutions(), seeds)
def test_convolution_arithmetic(convolution, seed):
    image, kernel, stride, padding = convolution
    x, w, b = normal(seed, image, kernel, kernel[3:])
    top, bottom, left, right = (padding,) * 4 if isinstance(padding, int) else padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    if padded.shape[1] < kernel[0] or padded.shape[2] < kernel[1]:
        with pytest.raises(ValueError, match=r"conv2d: the kernel .* is larger than"):
            ops.conv2d(x, w, b, stride=stride, padding=padding)
        return
    height = (image[1] + top + bottom - kernel[0]) // stride + 1
    width = (image[2] + left + right - kernel[1]) // stride + 1
    inputs = leaves(x, w, b)
    y = ops.conv2d(*inputs, stride=stride, padding=padding)
    assert y.shape == (image[0], height, width, kernel[3])

    (gy,) = normal(seed + 1, y.shape)
    expected, gx, gw = loop(padded, w, gy, stride)
    gx = gx[:, top : top + image[1], left : left + image[2]]
    check(y, expected + b)
    for ours, theirs in zip(gradients(y, inputs, gy), (gx, gw, gy.sum((0, 1, 2)))):
        check(ours, theirs)


@given(st.integers(-3, 2), st.lists(st.integers(-2, 2), min_size=4, max_size=4))
def test_strides_and_paddings_that_cannot_be_are_refused(stride, padding):
    x, w = np.ones((1, 5, 5, 2)), np.ones((2, 2, 2, 3))
    if stride >= 1 and min(padding) >= 0:
        ops.conv2d(x, w, stride=stride, padding=tuple(padding))
    else:
        with pytest.raises(ValueError, match=r"conv2d: stride .* must be >= 1"):
            ops.conv2d(x, w, stride=stride, padding=tuple(padding))


@pytest.mark.host
@given(st.tuples(small, st.integers(1, 13), st.integers(1, 13), small), small, seeds)
def test_tiles_of_any_image(image, channels, seed):
    """Winograd's convolution, whose tiles of 4 x 4 seldom fit."""
    x, w = normal(seed, image, (3, 3, image[3], channels))
    inputs = leaves(x, w)
    y = WinogradConv2d.apply(*inputs, None)
    (gy,) = normal(seed + 1, y.shape)
    expected, gx, gw = loop(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), w, gy, 1)
    check(y, expected)
    for ours, theirs in zip(gradients(y, inputs, gy), (gx[:, 1:-1, 1:-1], gw)):
        check(ours, theirs)


@given(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), small, small, seeds)
def test_linear_over_any_axes(rows, din, dout, seed):
    inputs = leaves(*normal(seed, (*rows, din), (din, dout), (dout,)))
    x, w, b = (t.data for t in inputs)
    y = ops.linear(*inputs)
    check(y, np.einsum("...i,io->...o", x, w) + b)
    (gy,) = normal(seed + 1, y.shape)
    gx, gw, gb = gradients(y, inputs, gy)
    check(gx, np.einsum("...o,io->...i", gy, w))
    check(gw, np.tensordot(x, gy, (range(len(rows)),) * 2))
    check(gb, gy.sum(tuple(range(len(rows)))))


# Attention -----------------------------------------------------------------------------------


@st.composite
def attentions(draw):
    """(N, heads, T, S, d), a mask of a shape that broadcasts or None, causal, bytes of a block."""
    n = draw(st.integers(0, 3))
    heads, t, s, d = (draw(st.integers(1, high)) for high in (3, 6, 6, 3))
    mask = None
    if draw(st.booleans()):
        whole = (n, heads, t, s)
        shape = tuple(side if draw(st.booleans()) else 1 for side in whole)
        shape = shape[draw(st.integers(0, 4)) :]  # leading axes may be missing
        mask = draw(hnp.arrays(bool, shape))
    block = draw(st.sampled_from([0, 100, 500, 2**20]))
    return (n, heads, t, s, d), mask, draw(st.booleans()), block


def softmax_gradients(p, q, k, v, gy):
    """Of heads (N, heads, T or S, d) and weights p (N, heads, T, S), by the chain rule."""
    gp = np.einsum("nhtd,nhsd->nhts", gy, v)
    jacobian = np.einsum("nhts,su->nhtsu", p, np.eye(p.shape[3])) - p[..., None] * p[..., None, :]
    gs = np.einsum("nhts,nhtsu->nhtu", gp, jacobian) / np.sqrt(q.shape[3])
    return (
        np.einsum("nhts,nhsd->nhtd", gs, k),
        np.einsum("nhts,nhtd->nhsd", gs, q),
        np.einsum("nhts,nhtd->nhsd", p, gy),
    )


def heads_of(x, heads: int):
    return np.stack(np.split(x, heads, axis=2), axis=1)


@given(attentions(), seeds)
def test_attention_with_any_mask(attention, seed):
    (n, heads, t, s, d), given_mask, causal, block = attention
    q, k, v, gy = normal(seed, *[(n, rows, heads * d) for rows in (t, s, s, t)])
    look = np.broadcast_to(True if given_mask is None else given_mask, (n, heads, t, s))
    if causal:
        look = look & np.tri(t, s, dtype=bool)
    expected, weights = naive_attention(q, k, v, heads, look)
    inputs, recorded = leaves(q, k, v), []
    with mock.patch.object(ATTENTION, "CPU_BLOCK", block):
        y = ops.attention(
            *inputs, heads=heads, mask=given_mask, causal=causal, recorder=recorded.append
        )
    check(y, expected)
    check(recorded[0], weights)
    assert not recorded[0][~look].any()  # what may not be seen has no weight at all
    check(recorded[0].sum(3), look.any(3).astype(float))
    wanted = softmax_gradients(weights, *(heads_of(x, heads) for x in (q, k, v, gy)))
    slopes = gradients(y, inputs, gy)
    for ours, theirs in zip(slopes, wanted):
        check(heads_of(ours, heads), theirs)
    unseen = ~look.any(2)  # (N, heads, S): keys that no query sees
    for g in slopes[1:]:
        assert not heads_of(g, heads)[unseen].any()


# Resampling ----------------------------------------------------------------------------------

images = st.tuples(st.integers(0, 3), small, small, small)


@given(images, small, seeds)
def test_resampling(image, factor, seed):
    n, h, w, c = image
    large = (n, factor * h, factor * w, c)
    x, gy = normal(seed, image, large)
    rows, columns = np.arange(large[1]) // factor, np.arange(large[2]) // factor
    (t,) = leaves(x)
    y = ops.upsample_nearest(t, factor)
    check(y, x[:, rows][:, :, columns])
    sums = np.zeros(image)
    np.add.at(sums, (slice(None), rows[:, None], columns), gy)
    check(gradients(y, [t], gy)[0], sums)

    (t,) = leaves(gy)
    y = ops.average_pool(t, factor)
    check(y, sums / factor**2)
    check(gradients(y, [t], x)[0], x[:, rows][:, :, columns] / factor**2)


@given(images, small, seeds)
def test_space_to_depth(image, block, seed):
    n, h, w, c = image
    large, deep = (n, block * h, block * w, c), (n, h, w, block**2 * c)
    x, other = normal(seed, large, deep)
    expected = np.zeros(deep)
    for i, j in np.ndindex(block, block):
        at = (i * block + j) * c
        expected[..., at : at + c] = x[:, i::block, j::block]
    (t,) = leaves(x)
    y = ops.space_to_depth(t, block)
    check(y, expected)
    check(ops.depth_to_space(expected, block), x)
    back = gradients(y, [t], other)[0]
    check(back, ops.depth_to_space(other, block))
    (t,) = leaves(other)
    check(gradients(ops.depth_to_space(t, block), [t], x)[0], expected)


@given(st.tuples(small, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), st.integers(2, 4))
def test_sizes_that_do_not_divide_are_refused(image, size):
    x = np.zeros(image)
    for op, fits in (
        (ops.average_pool, image[1] % size == image[2] % size == 0),
        (ops.space_to_depth, image[1] % size == image[2] % size == 0),
        (ops.depth_to_space, image[3] % size**2 == 0),
    ):
        if fits:
            assert op(x, size).size == (x.size / size**2 if op is ops.average_pool else x.size)
        else:
            with pytest.raises(ValueError, match=f"{op.__name__}: .* does not divide"):
                op(x, size)


# Normalisation, softmax, embedding -------------------------------------------------------------


@given(
    st.integers(0, 3), hnp.array_shapes(min_dims=0, max_dims=2, max_side=4), small, small,
    st.booleans(), seeds,
)  # fmt: skip
def test_group_norm(n, space, groups, width, silu, seed):
    c, rows = groups * width, (n, *space)
    x, gamma, beta, gy = normal(seed, (*rows, c), (c,), (c,), (*rows, c))
    inputs = leaves(x, gamma, beta)
    y = ops.group_norm(*inputs, groups=groups, eps=0.1, silu=silu)
    expected = naive_group_norm(x, gamma, beta, groups, 0.1)
    check(y, expected / (1 + np.exp(-expected)) if silu else expected)
    gx, ggamma, gbeta = gradients(y, inputs, gy)
    # What a group has in common is taken away, so no gradient leads there.
    by_group = gx.reshape(n, int(np.prod(space)), groups, width)
    check(by_group.sum((1, 3)), np.zeros((n, groups)))
    assert ggamma.shape == gbeta.shape == (c,)


@given(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), small, seeds)
def test_layer_norm(rows, width, seed):
    x, gamma, beta, gy = normal(seed, (*rows, width), (width,), (width,), (*rows, width))
    inputs = leaves(x, gamma, beta)
    y = ops.layer_norm(*inputs, eps=0.1)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)
    check(y, normed * gamma + beta)
    gx, ggamma, gbeta = gradients(y, inputs, gy)
    axes = tuple(range(len(rows)))
    check(gx.sum(-1), np.zeros(rows))
    check(ggamma, (gy * normed).sum(axes))
    check(gbeta, gy.sum(axes))


@given(hnp.array_shapes(max_dims=4, max_side=4), st.data(), seeds)
def test_softmax_along_any_axis(shape, data, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, gy, shift = normal(seed, shape, shape, ())
    (t,) = leaves(x)
    y = ops.softmax(t, axis)
    powers = np.exp(x)
    check(y, powers / powers.sum(axis, keepdims=True))
    check(ops.softmax(x + 100 * shift, axis), y.data)
    mean = (gy * y.data).sum(axis, keepdims=True)
    check(gradients(y, [t], gy)[0], y.data * (gy - mean))


@given(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5), small, small, seeds)
def test_embedding(shape, rows, width, seed):
    ids = np.random.default_rng(seed).integers(rows, size=shape)
    w, gy = normal(seed, (rows, width), (*shape, width))
    (t,) = leaves(w)
    y = ops.embedding(t, ids)
    check(y, np.eye(rows)[ids] @ w)
    check(gradients(y, [t], gy)[0], np.tensordot(np.eye(rows)[ids], gy, (range(len(shape)),) * 2))


@given(st.tuples(st.integers(1, 2), small, small), st.integers(1, 3), seeds)
def test_a_loss_of_class_ids_is_that_of_their_indicator(shape, scale, seed):
    n, k = shape[0] * shape[1], shape[2]
    (logits,) = normal(seed, (n, k))
    ids = np.random.default_rng(seed).integers(k, size=n)
    both = []
    for target in (ids, np.eye(k)[ids]):
        (x,) = leaves(scale * logits)
        loss = ops.softmax_cross_entropy(x, target)
        both.append((loss.data, gradients(loss, [x])[0]))
    for one, other in zip(*both):
        check(one, other)
