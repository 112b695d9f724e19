"""The fused operations, forward: against SciPy, a naive loop or the formula; and what they refuse.

Gradients: test_gradients.py.
"""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import scipy.signal
import scipy.special

from ldm_numpy import ops
from ldm_numpy.ops import activation
from ldm_numpy.ops.activation import normal_cdf, row_blocks
from ldm_numpy.ops.conv import Conv2d, col2im, im2col
from ldm_numpy.ops.linear import column_sum
from ldm_numpy.ops.winograd import WinogradConv2d
from ldm_numpy.tensor import Tensor, gradients, no_grad


def check(actual, expected, tolerance=1e-12):
    """Equal up to rounding, relative to the norm; a NaN fails."""
    actual = actual.data if isinstance(actual, Tensor) else np.asarray(actual)
    assert actual.shape == np.shape(expected)
    assert np.linalg.norm(actual - expected) <= tolerance * max(1, np.linalg.norm(expected))


# Elementwise -------------------------------------------------------------------------------

REFERENCES = {
    ops.sigmoid: scipy.special.expit,
    ops.tanh: np.tanh,
    ops.relu: lambda x: np.where(x > 0, x, 0),
    ops.silu: lambda x: x * scipy.special.expit(x),
    ops.gelu: lambda x: x * scipy.special.ndtr(x),
    ops.quick_gelu: lambda x: x * scipy.special.expit(1.702 * x),
    ops.softmax: lambda x: scipy.special.softmax(x, axis=-1),
}
every_activation = pytest.mark.parametrize("op", REFERENCES, ids=lambda op: op.__name__)


@every_activation
def test_activation(op, rng):
    x = 3 * rng.standard_normal((4, 5))
    check(op(Tensor(x)), REFERENCES[op](x))
    assert isinstance(op(x), np.ndarray)


@every_activation
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_of_huge_values(op, dtype):
    data = np.array([[-1e4, -100, 0, 100, 1e4]], dtype)
    x = Tensor(data, requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = op(x)
        check(y, REFERENCES[op](data.astype(np.float64)), 1e-6)
        (gx,) = gradients(y, [x], np.ones_like(data))
    assert np.isfinite(gx).all()
    if op in (ops.relu, ops.silu, ops.gelu, ops.quick_gelu):  # slopes 0 and 1 far out
        np.testing.assert_allclose(gx[0, [0, 1, 3, 4]], [0, 0, 1, 1], atol=1e-12)


def test_relu_has_slope_zero_at_zero():
    x = Tensor(np.array([-1.0, 0.0, 1.0]), requires_grad=True)
    check(gradients(ops.relu(x), [x], np.ones(3))[0], [0, 0, 1])


def test_gelu_in_single_precision(rng):
    """Within a few roundings of x or of 1, also in the tail, where P(x) is lost below 6e-8."""
    data = np.linspace(-8, 8, 20_001, dtype=np.float32)
    x, double = (Tensor(data.astype(d), requires_grad=True) for d in (np.float32, np.float64))
    y, exact = ops.gelu(x), ops.gelu(double)
    assert (np.abs(y.data - exact.data) <= 2e-7 * np.maximum(np.abs(data), 1)).all()
    (gx,) = gradients(y, [x], np.ones_like(data))
    (expected,) = gradients(exact, [double], np.ones(data.shape))
    assert np.abs(gx - expected).max() < 5e-7


def test_normal_cdf_of_special_numbers():
    x = np.array([np.inf, -np.inf, np.nan, 0, 3.4e38, -3.4e38, 1e-45], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        y = normal_cdf(x)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, [1, 0, np.nan, 0.5, 1, 0, 0.5])


def half_gelu(h):
    """The plain geglu."""
    half = h.shape[-1] // 2
    return h[..., :half] * ops.gelu(h[..., half:])


# The last two are cut into several blocks, one of them with rows that are left over.
@pytest.mark.parametrize("shape", [(2,), (3, 6), (2, 3, 4, 10), (2, 150, 512), (1001, 202)])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_geglu(rng, shape, dtype, tolerance):
    data = 2 * rng.standard_normal(shape)
    h = Tensor(data.astype(dtype), requires_grad=True)
    double = Tensor(h.data.astype(np.float64), requires_grad=True)
    y, expected = ops.geglu(h), half_gelu(double)
    assert y.dtype == dtype
    check(y, expected.data, tolerance)
    # A gradient that is the middle of a larger array, as behind a concatenation.
    gy = rng.standard_normal((*shape[:-1], 3 * y.shape[-1])).astype(dtype)
    gy = gy[..., y.shape[-1] : 2 * y.shape[-1]]
    (gh,) = gradients(y, [h], gy)
    assert gh.dtype == dtype
    check(gh, gradients(expected, [double], gy.astype(np.float64))[0], tolerance)


@pytest.mark.parametrize("name", ["silu", "gelu", "geglu", "quick_gelu"])
def test_no_slope_is_computed_that_nobody_wants(name, monkeypatch):
    asked = []
    for slope in ("gelu_slope", "twice_silu_slope"):
        original = getattr(activation, slope)
        monkeypatch.setattr(activation, slope, lambda *a, f=original: asked.append(1) or f(*a))
    function = getattr(ops, name)
    x = Tensor(np.ones((3, 4)), requires_grad=True)
    with no_grad():
        function(x)
    function(x.data)
    assert not asked
    function(x)
    assert asked


def test_geglu_of_nothing():
    assert ops.geglu(np.zeros((0, 3, 4))).shape == (0, 3, 2)


def test_geglu_refuses():
    with pytest.raises(ValueError, match=r"geglu: .*\(2, 5\) must be even"):
        ops.geglu(np.ones((2, 5)))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_axis(rng, axis):
    x = rng.standard_normal((3, 4, 5))
    check(ops.softmax(x, axis=axis), scipy.special.softmax(x, axis=axis))


def test_softmax_ignores_a_shift_of_its_input(rng):
    x = rng.standard_normal((3, 4))
    check(ops.softmax(x + 1e3), ops.softmax(x))


# Dropout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_statistics(rng, p):
    x = np.full((100, 1000), 2.0)
    y = ops.dropout(x, p, rng)
    n = x.size
    assert abs((y == 0).mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose(y[y != 0], 2 / (1 - p))
    assert abs(y.mean() - 2) < 5 * 2 * math.sqrt(p / (1 - p) / n)
    # Each element on its own: neither rows nor columns share a fate.
    for axis in (0, 1):
        assert (y == 0).mean(axis).std() == pytest.approx(
            math.sqrt(p * (1 - p) / y.shape[axis]), rel=0.25
        )


def test_dropout_repeats_with_its_generator():
    x = np.ones((4, 5))
    a = ops.dropout(x, 0.5, np.random.default_rng(1))
    assert np.array_equal(a, ops.dropout(x, 0.5, np.random.default_rng(1)))
    assert not np.array_equal(a, ops.dropout(x, 0.5, np.random.default_rng(2)))


def test_dropout_gradient_has_the_mask_of_the_output(rng):
    x = Tensor(np.ones((4, 5)), requires_grad=True)
    y = ops.dropout(x, 0.5, rng)
    check(gradients(y, [x], np.ones((4, 5)))[0], y.data)


def test_dropout_of_nothing(rng):
    x = rng.standard_normal((3, 4))
    check(ops.dropout(x, 0.0, rng), x)


@pytest.mark.parametrize("p", [-0.1, 1, 1.5])
def test_dropout_refuses(rng, p):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        ops.dropout(np.ones(3), p, rng)


# Linear and convolution --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (2, 1, 4, 3)])
def test_linear(rng, shape):
    x, w, b = (rng.standard_normal(s) for s in (shape, (3, 4), (4,)))
    check(ops.linear(x, w, b), np.einsum("...i,io->...o", x, w) + b)
    check(ops.linear(x, w), np.einsum("...i,io->...o", x, w))


def test_linear_refuses(rng):
    with pytest.raises(ValueError, match=r"linear: .*\(2, 4\)"):
        ops.linear(rng.standard_normal((2, 4)), rng.standard_normal((3, 4)))


def convolve(x, w, stride, padding):
    """The same convolution with scipy.signal.correlate."""
    top, bottom, left, right = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    kernels = range(w.shape[3])
    full = [
        [scipy.signal.correlate(image, w[..., o], mode="valid")[..., 0] for o in kernels]
        for image in x
    ]
    return np.stack(full).transpose(0, 2, 3, 1)[:, ::stride, ::stride]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, (0, 1, 0, 1), (2, 0, 1, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (5, 2), (3, 3)])
def test_conv2d(rng, kernel, padding, stride):
    x, w, b = (rng.standard_normal(s) for s in ((2, 6, 7, 3), (*kernel, 3, 4), (4,)))
    sides = (padding,) * 4 if isinstance(padding, int) else padding
    expected = convolve(x, w, stride, sides)
    check(ops.conv2d(x, w, stride=stride, padding=padding), expected)
    check(ops.conv2d(Tensor(x), Tensor(w), b, stride=stride, padding=padding), expected + b)


def test_conv2d_by_a_naive_loop(rng):
    x, w = rng.standard_normal((1, 5, 6, 2)), rng.standard_normal((2, 3, 2, 1))
    y = np.zeros((1, 2, 2, 1))
    for i, j, a, b, c in itertools.product(range(2), range(2), range(2), range(3), range(2)):
        y[0, i, j, 0] += x[0, 2 * i + a, 2 * j + b, c] * w[a, b, c, 0]
    check(ops.conv2d(x, w, stride=2), y)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[..., 0][..., None],  # the last axis has stride 0
        lambda x: x.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1),  # or that of an image
        lambda x: x[:, ::-1, ::-1],
    ],
    ids=["new axis", "channels first", "reversed"],
)
@pytest.mark.parametrize("padding", [0, 1])
def test_conv2d_of_views(rng, view, padding):
    x, w = rng.standard_normal((2, 5, 6, 1)), rng.standard_normal((3, 3, 1, 2))
    expected = convolve(view(x).copy(), w, 1, (padding,) * 4)
    check(ops.conv2d(view(x), w, padding=padding), expected)


def test_conv2d_refuses(rng):
    x, w = rng.standard_normal((1, 4, 5, 1)), rng.standard_normal((3, 2, 1, 4))
    with pytest.raises(ValueError, match=r"conv2d: x \(1, 4, 5, 2\)"):
        ops.conv2d(np.concatenate([x, x], axis=3), w)
    with pytest.raises(ValueError, match=r"conv2d: x \(4, 5, 1\)"):
        ops.conv2d(x[0], w)
    with pytest.raises(ValueError, match="kernel 3x2 is larger than the padded image 2x5"):
        ops.conv2d(x[:, :2], w)
    with pytest.raises(ValueError, match="kernel 3x2 is larger than the padded image 6x1"):
        ops.conv2d(x[:, :, :1], w, padding=(1, 1, 0, 0))
    assert ops.conv2d(x[:, :1, :1], w, padding=(0, 2, 1, 0)).shape == (1, 1, 1, 4)
    for stride, padding in [(0, 1), (-1, 1), (1, -1), (2, (1, 1, 0, -1))]:
        with pytest.raises(ValueError, match=rf"stride {stride} must be >= 1, padding .* >= 0"):
            ops.conv2d(x, w, stride=stride, padding=padding)


# Winograd's convolution ---------------------------------------------------------------------


@pytest.mark.host
@pytest.mark.parametrize("size", [(4, 4), (8, 8), (16, 4), (7, 7), (9, 14), (6, 5), (1, 1)])
def test_winograd_is_the_same_convolution(rng, size):
    x, w, b = (rng.standard_normal(s) for s in ((3, *size, 5), (3, 3, 5, 2), (2,)))
    expected = convolve(x, w, 1, (1, 1, 1, 1))
    check(WinogradConv2d.apply(x, w, None), expected)
    check(WinogradConv2d.apply(x, w, b), expected + b)


@pytest.mark.host
def test_winograd_rounds_little(rng):
    x = rng.standard_normal((4, 16, 16, 64), np.float32)
    w = rng.standard_normal((3, 3, 64, 32), np.float32)
    exact = Conv2d.apply(x.astype(float), w.astype(float), None, stride=1, padding=(1, 1, 1, 1))
    y = WinogradConv2d.apply(x, w, None)
    assert y.dtype == np.float32
    assert np.linalg.norm(y - exact) < 2e-6 * np.linalg.norm(exact)


@pytest.mark.host
def test_winograd_of_views(rng):
    """As it stands in memory, neither an image nor a gradient need be contiguous."""
    x = rng.standard_normal((2, 3, 8, 9)).transpose(0, 3, 2, 1)[:, ::-1]  # (N, 9, 8, 3)
    gy = rng.standard_normal((2, 4, 9, 8)).transpose(0, 2, 3, 1)  # (N, 9, 8, 4)
    w = Tensor(rng.standard_normal((3, 3, 3, 4)), requires_grad=True)
    options = {"stride": 1, "padding": (1, 1, 1, 1)}
    results = []
    for op, keywords in ((WinogradConv2d, {}), (Conv2d, options)):
        image = Tensor(x, requires_grad=True)
        results.append(gradients(op.apply(image, w, None, **keywords), [image, w], gy))
    for got, expected in zip(*results):
        check(got, expected)


@pytest.mark.parametrize(
    ("image", "kernel", "options", "pays"),
    [
        ((16, 8, 8, 16), (3, 3, 16, 4), {"padding": 1}, True),
        ((16, 7, 7, 16), (3, 3, 16, 4), {"padding": 1}, True),
        ((16, 8, 8, 4), (3, 3, 4, 16), {"padding": 1}, False),  # few channels
        ((2, 8, 8, 16), (3, 3, 16, 4), {"padding": 1}, False),  # few outputs
        ((64, 2, 2, 16), (3, 3, 16, 4), {"padding": 1}, False),  # tiles mostly outside
        ((16, 8, 8, 16), (3, 3, 16, 4), {"padding": 1, "stride": 2}, False),
        ((16, 8, 8, 16), (3, 3, 16, 4), {}, False),
        ((16, 8, 8, 16), (1, 3, 16, 4), {"padding": 1}, False),
    ],
)
@pytest.mark.host  # a GPU has im2col alone
def test_where_winograd_is_chosen(rng, image, kernel, options, pays):
    x, w = rng.standard_normal(image), rng.standard_normal(kernel)
    y = ops.conv2d(Tensor(x, requires_grad=True), w, **options)
    assert isinstance(y.op, WinogradConv2d if pays else Conv2d)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_col2im_is_the_adjoint_of_im2col(rng, kernel, stride):
    x = rng.standard_normal((2, 5, 6, 3))
    columns = im2col(x, *kernel, stride)
    other = rng.standard_normal(columns.shape)
    back = col2im(other, x.shape, *kernel, stride)
    np.testing.assert_allclose(np.vdot(columns, other), np.vdot(x, back))


def test_column_sum(rng):
    x = rng.standard_normal((7, 3))
    check(column_sum(x), x.sum(0))


# Normalisation -----------------------------------------------------------------------------


def naive_group_norm(x, gamma, beta, groups, eps):
    y = np.empty_like(x)
    width = x.shape[-1] // groups
    for n in range(len(x)):
        for g in range(groups):
            part = x[n, ..., g * width : (g + 1) * width]
            y[n, ..., g * width : (g + 1) * width] = (part - part.mean()) / np.sqrt(
                part.var() + eps
            )
    return y * gamma + beta


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (3, 6), (1, 5, 6)])
def test_group_norm(rng, shape, groups, eps):
    x, gamma, beta = (rng.standard_normal(s) for s in (shape, 6, 6))
    x = 3 * x + 5
    expected = naive_group_norm(x, gamma, beta, groups, eps)
    check(ops.group_norm(x, gamma, beta, groups=groups, eps=eps), expected)
    fused = ops.group_norm(x, gamma, beta, groups=groups, eps=eps, silu=True)
    check(fused, expected * scipy.special.expit(expected))


def test_layer_norm(rng):
    x, gamma, beta = rng.standard_normal((2, 3, 5)), *rng.standard_normal((2, 5))
    for eps in (1e-5, 0.3):
        normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        check(ops.layer_norm(x, gamma, beta, eps=eps), normed * gamma + beta)


def test_default_eps(rng):
    x, ones, zeros = 1e-3 * rng.standard_normal((2, 6)), np.ones(6), np.zeros(6)
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    check(ops.layer_norm(x, ones, zeros), expected)
    check(ops.group_norm(x, ones, zeros, groups=1), expected)


def test_norms_in_single_precision_far_from_zero(rng):
    """E[x^2] - E[x]^2 would lose every digit here; the two-pass variance does not."""
    x = (1000 + rng.standard_normal((2, 8, 8, 4))).astype(np.float32)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    double = x.astype(np.float64)
    expected = naive_group_norm(double, 1, 0, 2, 1e-5)
    check(ops.group_norm(x, ones, zeros, groups=2), expected, 1e-3)
    expected = naive_group_norm(double.reshape(-1, 4), 1, 0, 1, 1e-5).reshape(x.shape)
    check(ops.layer_norm(x, ones, zeros), expected, 1e-3)


@pytest.mark.parametrize(
    "offset, spread, tolerance", [(3, 1, 2e-6), (1000, 1, 1e-3), (0, 1e-4, 2e-6), (1, 1e-2, 1e-4)]
)
@pytest.mark.parametrize(
    "norm",
    [
        ops.layer_norm,
        partial(ops.group_norm, groups=2),
        partial(ops.group_norm, groups=2, silu=True),
    ],
    ids=["layer", "group", "group and silu"],
)
def test_norms_in_single_precision(rng, norm, offset, spread, tolerance):
    """Output and gradients, far from zero and of small variance, as those of float64."""
    data = offset + spread * rng.standard_normal((3, 6, 5, 8))
    single = [a.astype(np.float32) for a in (data, *rng.standard_normal((2, 8)))]
    double = [a.astype(np.float64) for a in single]
    # A gradient that is the middle of a larger array, as behind a concatenation.
    gy = rng.standard_normal((3, 6, 5, 24)).astype(np.float32)[..., 8:16]
    results = []
    for arrays in (single, double):
        inputs = [Tensor(a, requires_grad=True) for a in arrays]
        y = norm(*inputs)
        results.append([y.data, *gradients(y, inputs, gy.astype(y.dtype))])
    for actual, expected in zip(*results):
        assert actual.dtype == np.float32
        assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def test_norms_of_a_constant_are_beta():
    x, gamma, beta = np.full((1, 3, 4), 7.0), np.ones(4), np.arange(4.0)
    check(ops.group_norm(x, gamma, beta, groups=2), np.broadcast_to(beta, x.shape), 1e-9)
    check(ops.layer_norm(x, gamma, beta), np.broadcast_to(beta, x.shape), 1e-9)


def test_group_norm_refuses(rng):
    with pytest.raises(ValueError, match="4 groups do not divide 6 channels"):
        ops.group_norm(np.ones((1, 6)), np.ones(6), np.ones(6), groups=4)


# Attention ---------------------------------------------------------------------------------


def naive_attention(q, k, v, heads, mask):
    """Query by query, head by head; mask (N, heads, T, S). Returns the result and the weights."""
    (n, t, d), s = q.shape, k.shape[1]
    y, weights = np.zeros((n, t, d)), np.zeros((n, heads, t, s))
    for b, h, i in itertools.product(range(n), range(heads), range(t)):
        part = slice(h * d // heads, (h + 1) * d // heads)
        allowed = np.flatnonzero(mask[b, h, i])
        if allowed.size:
            scores = k[b, allowed, part] @ q[b, i, part] / math.sqrt(d // heads)
            weights[b, h, i, allowed] = scipy.special.softmax(scores)
            y[b, i, part] = weights[b, h, i, allowed] @ v[b, allowed, part]
    return y, weights


@pytest.fixture
def qkv(rng):
    return [rng.standard_normal(s) for s in ((2, 3, 4), (2, 5, 4), (2, 5, 4))]


MASKS = {
    "none": None,
    "pairs": np.array([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]], bool),
    "keys of each sample": np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]], bool)[:, None, None],
    "nowhere": np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], bool),
    "heads": np.random.default_rng(1).random((1, 2, 3, 5)) > 0.5,
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_attention(qkv, name, causal):
    mask = MASKS[name]
    whole = np.broadcast_to(True if mask is None else mask, (2, 2, 3, 5))
    if causal:
        whole = whole & (np.arange(5) <= np.arange(3)[:, None])
    expected, weights = naive_attention(*qkv, 2, whole)
    recorded = []
    y = ops.attention(*qkv, heads=2, mask=mask, causal=causal, recorder=recorded.append)
    check(y, expected)
    assert len(recorded) == 1
    check(recorded[0], weights)
    check(ops.attention(*map(Tensor, qkv), heads=2, mask=mask, causal=causal), expected)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_heads(qkv, heads):
    everywhere = np.ones((2, heads, 3, 5), bool)
    check(ops.attention(*qkv, heads=heads), naive_attention(*qkv, heads, everywhere)[0])
    if heads == 1:
        check(ops.attention(*qkv), naive_attention(*qkv, 1, everywhere)[0])


def test_attention_does_not_see_what_is_masked(qkv):
    q, k, v = qkv
    mask = np.array([True, True, False, True, False])
    y = ops.attention(q, k, v, mask=mask)
    k[:, ~mask], v[:, ~mask] = 1e6, -1e6
    check(ops.attention(q, k, v, mask=mask), y)


@pytest.mark.parametrize("mask", [None, np.array([True, True, False, True, True])])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_with_huge_scores(qkv, mask, dtype):
    q, k, v = (Tensor(a.astype(dtype), requires_grad=True) for a in qkv)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = ops.attention(q * 1e4, k * 1e4, v, mask=mask)
        gs = gradients(y, [q, k, v], np.ones_like(y.data))
    seen = np.arange(5)[slice(None) if mask is None else mask]
    best = seen[(qkv[0] @ qkv[1].swapaxes(1, 2))[..., seen].argmax(-1)]
    check(y, np.take_along_axis(qkv[2], best[..., None], 1), 1e-6)
    assert all(np.isfinite(g).all() for g in gs)


def test_a_query_that_may_look_nowhere_gives_zero_and_takes_no_gradient(qkv):
    q, k, v = (Tensor(a, requires_grad=True) for a in qkv)
    with np.errstate(all="raise", under="ignore"):
        y = ops.attention(q, k, v, mask=MASKS["nowhere"])
        gq, *_ = gradients(y, [q, k, v], np.ones_like(y.data))
    assert not y.data[:, 1].any() and not gq[:, 1].any()
    assert gq[:, 0].any()


def test_a_single_key_gives_queries_and_keys_no_gradient(rng):
    """Its softmax is 1 whatever they are: why a condition must be a sequence of tokens."""
    q, k, v = (Tensor(rng.standard_normal((2, t, 4)), requires_grad=True) for t in (3, 1, 1))
    y = ops.attention(q, k, v, heads=2)
    check(y, np.broadcast_to(v.data, (2, 3, 4)))
    gq, gk, gv = gradients(y, [q, k, v], rng.standard_normal(y.shape))
    assert not gq.any() and not gk.any() and gv.any()


def test_attention_refuses(qkv):
    q, k, v = qkv
    with pytest.raises(ValueError, match="3 heads do not divide the width 4"):
        ops.attention(q, k, v, heads=3)
    for bad in ((q, k, v[:, :4]), (q[:1], k, v), (q[..., :2], k, v), (q, k[..., :2], v)):
        with pytest.raises(ValueError, match="attention: q"):
            ops.attention(*bad)


# Embedding ---------------------------------------------------------------------------------


def test_embedding_adds_up_gradients_of_equal_ids(rng):
    w = Tensor(rng.standard_normal((5, 3)), requires_grad=True)
    ids = np.array([[0, 4, 4], [2, 4, 0]])
    y = ops.embedding(w, ids)
    check(y, w.data[ids])
    gy = rng.standard_normal((2, 3, 3))
    (gw,) = gradients(y, [w], gy)
    expected = np.zeros((5, 3))
    for row, column in np.ndindex(2, 3):
        expected[ids[row, column]] += gy[row, column]
    check(gw, expected)
    assert not gw[[1, 3]].any()


@pytest.mark.parametrize("ids", [np.array(3), np.array([], np.int64), np.array([0, 4], np.uint8)])
def test_embedding_shapes(rng, ids):
    w = rng.standard_normal((5, 2))
    assert np.array_equal(ops.embedding(w, ids), w[ids])


def test_embedding_refuses(rng):
    w = Tensor(rng.standard_normal((5, 2)))
    for ids in ([0, 5], [-1, 2]):
        with pytest.raises(ValueError, match=f"ids from {min(ids)} to {max(ids)} .* 5 rows"):
            ops.embedding(w, np.array(ids))


@pytest.mark.host  # carried over, they would be no NumPy array
def test_embedding_refuses_numbers_that_are_no_ids(rng):
    with pytest.raises(ValueError, match="must be integers, not float64"):
        ops.embedding(rng.standard_normal((5, 2)), np.array([0.0]))


# Resampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsample_nearest(rng, factor):
    x = rng.standard_normal((2, 3, 4, 2))
    check(ops.upsample_nearest(x, factor), x.repeat(factor, axis=1).repeat(factor, axis=2))


def test_upsample_nearest_doubles_by_default(rng):
    assert ops.upsample_nearest(rng.standard_normal((1, 2, 3, 1))).shape == (1, 4, 6, 1)


def test_average_pool(rng):
    x = rng.standard_normal((2, 4, 6, 3))
    expected = [[x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in (0, 2, 4)] for i in (0, 2)]
    check(ops.average_pool(x, 2), np.array(expected).transpose(2, 0, 1, 3))
    check(ops.average_pool(ops.upsample_nearest(x, 3), 3), x)


def test_space_to_depth_order(rng):
    x = rng.standard_normal((2, 4, 6, 3))
    y = ops.space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    for i, j, c in np.ndindex(2, 2, 3):
        check(y[..., (2 * i + j) * 3 + c], x[:, i::2, j::2, c])


@pytest.mark.parametrize("block", [1, 2, 3])
def test_depth_to_space_inverts_space_to_depth(rng, block):
    x = rng.standard_normal((2, 2 * block, 3 * block, 4))
    y = ops.space_to_depth(x, block)
    assert y.shape == (2, 2, 3, 4 * block**2)
    np.testing.assert_array_equal(ops.depth_to_space(y, block), x)


def test_resampling_refuses(rng):
    for shape in ((1, 5, 4, 3), (1, 4, 5, 3)):
        for op in (ops.average_pool, ops.space_to_depth):
            with pytest.raises(ValueError, match=f"{op.__name__}: 2 does not divide .*{shape[1]}x"):
                op(np.ones(shape), 2)
    with pytest.raises(ValueError, match="depth_to_space: 4 does not divide 6 channels"):
        ops.depth_to_space(np.ones((1, 2, 2, 6)), 2)


# Losses ------------------------------------------------------------------------------------


def test_mse_loss(rng):
    x, target = rng.standard_normal((2, 2, 3, 4))
    weight = rng.uniform(0, 2, (2, 1, 1))
    check(ops.mse_loss(x, target), np.mean((x - target) ** 2))
    check(ops.mse_loss(x, target, weight), np.mean(weight * (x - target) ** 2))
    with pytest.raises(ValueError, match=r"x \(2, 3, 4\) and target \(3, 4\)"):
        ops.mse_loss(x, target[0])


def test_softmax_cross_entropy(rng):
    x = 3 * rng.standard_normal((5, 3))
    ids, soft = np.array([2, 0, 0, 1, 2]), rng.uniform(0, 1, (5, 3))
    log_p = scipy.special.log_softmax(x, axis=1)
    for dtype in (np.int64, np.uint8):
        expected = -log_p[np.arange(5), ids].mean()
        check(ops.softmax_cross_entropy(Tensor(x), ids.astype(dtype)), expected)
    check(ops.softmax_cross_entropy(x, soft), -(soft * log_p).sum(1).mean())


def test_softmax_cross_entropy_of_huge_logits():
    x = Tensor(np.array([[1e4, 0.0, -1e4], [0.0, 1e4, 0.0]]), requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        loss = ops.softmax_cross_entropy(x, np.array([1, 1]))
        (gx,) = gradients(loss, [x])
    check(loss, 5000.0)
    check(gx, [[0.5, -0.5, 0], [0, 0, 0]])


def test_softmax_cross_entropy_refuses(rng):
    x = rng.standard_normal((2, 3))
    with pytest.raises(ValueError, match="must be integers, not float64"):
        ops.softmax_cross_entropy(x, np.array([0.0, 1.0]))
    for target in (np.zeros((2, 4)), np.array([0]), np.zeros((2, 3, 1))):
        with pytest.raises(ValueError, match=r"target .* must be \(N,\) or \(2, 3\)"):
            ops.softmax_cross_entropy(x, target)


@pytest.mark.parametrize("ids", [[0, 3], [-1, 0]])
def test_softmax_cross_entropy_refuses_ids_that_are_no_class(ids):
    with pytest.raises(ValueError, match="softmax_cross_entropy"):
        ops.softmax_cross_entropy(np.zeros((2, 3)), np.array(ids))


def test_contrastive_loss(rng):
    image, text = rng.standard_normal((2, 4, 3))
    log_scale = np.array(0.7)
    positives = np.eye(4, dtype=bool)
    positives[0, 2] = positives[2, 0] = positives[3, 1] = True
    z = math.exp(0.7) * image @ text.T
    rows = positives / positives.sum(1, keepdims=True)
    columns = positives / positives.sum(0, keepdims=True)
    over_texts = -(rows * scipy.special.log_softmax(z, axis=1)).sum(1).mean()
    over_images = -(columns * scipy.special.log_softmax(z, axis=0)).sum(0).mean()
    expected = (over_texts + over_images) / 2
    check(ops.contrastive_loss(image, text, log_scale, positives), expected)
    swapped = ops.contrastive_loss(text, image, log_scale, positives.T)
    check(swapped, expected)


def test_contrastive_loss_spread_over_equal_captions():
    """At a perfect match nothing pulls, and the loss is the entropy of the targets."""
    text = np.array([[1.0, 0], [1, 0], [0, 1]])
    image = Tensor(text.copy(), requires_grad=True)
    loss = ops.contrastive_loss(image, text, np.array(5.0), text @ text.T > 0.5)
    check(loss, 2 / 3 * math.log(2))
    (gx,) = gradients(loss, [image])
    assert np.linalg.norm(gx) < 1e-9


@pytest.mark.host  # a GPU is not waited for
def test_contrastive_loss_refuses(rng):
    x = rng.standard_normal((3, 2))
    with pytest.raises(ValueError, match=r"positives \(2, 2\) must be \(3, 3\)"):
        ops.contrastive_loss(x, x, np.array(0.0), np.eye(2, dtype=bool))
    for column in (True, False):
        positives = np.eye(3, dtype=bool)
        positives[2, 2] = False
        positives[(0, 2) if column else (2, 0)] = True  # the last row, or column, has none
        with pytest.raises(ValueError, match="contrastive_loss: every"):
            ops.contrastive_loss(x, x, np.array(0.0), positives)


def test_gaussian_kl(rng):
    mean, logvar = rng.standard_normal((2, 3, 2, 4))
    expected = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)
    check(ops.gaussian_kl(mean, logvar), expected.sum((1, 2)).mean())
    check(ops.gaussian_kl(np.zeros((2, 3)), np.zeros((2, 3))), 0.0)


def test_gaussian_kl_by_sampling(rng):
    """E[log q(z) - log p(z)] under q = N(m, e^l)."""
    mean, logvar = np.array([[0.5, -1.0]]), np.array([[-0.7, 0.3]])
    z = mean + np.exp(logvar / 2) * rng.standard_normal((200_000, 2))
    log_ratio = -0.5 * (logvar + (z - mean) ** 2 / np.exp(logvar)) + 0.5 * z**2
    assert ops.gaussian_kl(mean, logvar) == pytest.approx(log_ratio.sum(1).mean(), rel=0.02)


def test_fourier_features_are_waves(rng):
    x = rng.standard_normal((2, 3, 2))
    y = ops.fourier_features(x, (0, 3))
    assert y.shape == (2, 3, 10)
    waves = [x, np.sin(np.pi * x), np.sin(8 * np.pi * x), np.cos(np.pi * x), np.cos(8 * np.pi * x)]
    np.testing.assert_allclose(y, np.concatenate(waves, axis=-1), atol=1e-12)
    shifted = ops.fourier_features(x + 2 / 8, (3,))  # a period later
    np.testing.assert_allclose(shifted[..., 2:], ops.fourier_features(x, (3,))[..., 2:], atol=1e-9)


@pytest.mark.host
def test_rows_come_in_blocks_that_a_cache_holds():
    rows = np.empty((1000, 1000))
    blocks = row_blocks(rows)
    assert [block.start for block in blocks] == [131 * i for i in range(8)]  # of 2^17 numbers
    assert sum(len(rows[block]) for block in blocks) == 1000
    assert len(row_blocks(np.empty((3, 1 << 18)))) == 3  # a row at least
