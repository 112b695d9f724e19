"""Operations against SciPy's functions of the same name, in both precisions.

Options, shapes and what is refused: test_ops.py.
"""

import math

import numpy as np
import pytest
import scipy.signal
import scipy.special

from ldm_numpy import ops
from ldm_numpy.backend import erf
from ldm_numpy.ops.activation import normal_cdf, stable_softmax
from ldm_numpy.ops.attention import softmax_over_keys
from ldm_numpy.ops.conv import Conv2d
from ldm_numpy.ops.linear import Linear
from ldm_numpy.ops.winograd import WinogradConv2d
from ldm_numpy.tensor import Tensor, gradients

TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


def check(ours, expected, dtype: str) -> None:
    """Equal relative to the norm; `expected` was computed in float64 from the same numbers."""
    ours = ours.data if isinstance(ours, Tensor) else ours
    assert ours.dtype == dtype and ours.shape == expected.shape and expected.dtype == np.float64
    assert np.linalg.norm(ours - expected) <= TOLERANCES[dtype] * np.linalg.norm(expected)


def draw(rng, dtype: str, *shape: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Random numbers of the type, and the same ones in float64."""
    x = (scale * rng.standard_normal(shape)).astype(dtype)
    return x, x.astype(np.float64)


# Elementwise: value and slope ---------------------------------------------------------------


def logistic(x, rate: float = 1.0):
    """x s(rate x) and its slope s + rate x s (1 - s), s the logistic function."""
    s = scipy.special.expit(rate * x)
    return x * s, s + rate * x * s * scipy.special.expit(-rate * x)


def sigmoid(x):
    s = scipy.special.expit(x)
    return s, s * scipy.special.expit(-x)


def by_erf(x):
    """x P(x) and its slope P + x p, P and p the normal distribution function and density."""
    distribution = (1 + scipy.special.erf(x / math.sqrt(2))) / 2
    return x * distribution, distribution + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


ACTIVATIONS = {
    ops.sigmoid: sigmoid,
    ops.tanh: lambda x: (2 * scipy.special.expit(2 * x) - 1, 1 / np.cosh(x) ** 2),
    ops.silu: logistic,
    ops.quick_gelu: lambda x: logistic(x, 1.702),
    ops.gelu: by_erf,
}


@every_dtype
@pytest.mark.parametrize("scale", [1e-3, 1, 10])
@pytest.mark.parametrize("op", ACTIVATIONS, ids=lambda op: op.__name__)
def test_activations_and_their_slopes(rng, op, scale, dtype):
    data, double = draw(rng, dtype, 50, 80, scale=scale)
    x = Tensor(data, requires_grad=True)
    y = op(x)
    expected, slope = ACTIVATIONS[op](double)
    check(y, expected, dtype)
    gy, gy_double = draw(rng, dtype, 50, 80)
    check(gradients(y, [x], gy)[0], gy_double * slope, dtype)


@every_dtype
def test_geglu(rng, dtype):
    data, double = draw(rng, dtype, 30, 5, 40, scale=2)
    h = Tensor(data, requires_grad=True)
    y = ops.geglu(h)
    a, b = np.split(double, 2, axis=-1)
    gelu, slope = by_erf(b)
    check(y, a * gelu, dtype)
    gy, gy_double = draw(rng, dtype, 30, 5, 20)
    expected = np.concatenate([gy_double * gelu, gy_double * a * slope], axis=-1)
    check(gradients(y, [h], gy)[0], expected, dtype)


@every_dtype
@pytest.mark.parametrize("scale", [1e-3, 1, 10])
def test_the_error_function(rng, scale, dtype):
    data, double = draw(rng, dtype, 5000, scale=scale)
    check(erf(data), scipy.special.erf(double), dtype)
    check(normal_cdf(data), scipy.special.ndtr(double), dtype)


# Softmax and logarithms of sums --------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("scale", [1e-3, 1, 100])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(rng, axis, scale, dtype):
    data, double = draw(rng, dtype, 6, 7, 8, scale=scale)
    expected = scipy.special.softmax(double, axis=axis)
    check(ops.softmax(Tensor(data), axis), expected, dtype)
    check(stable_softmax(data, axis), expected, dtype)


@every_dtype
@pytest.mark.parametrize("scale", [1e-3, 1, 100])
def test_cross_entropy_by_log_softmax(rng, scale, dtype):
    data, double = draw(rng, dtype, 40, 7, scale=scale)
    x, ids = Tensor(data, requires_grad=True), rng.integers(7, size=40)
    loss = ops.softmax_cross_entropy(x, ids)
    log_p = scipy.special.log_softmax(double, axis=1)
    check(loss, -log_p[np.arange(40), ids].mean(), dtype)
    (gx,) = gradients(loss, [x])
    check(gx, (np.exp(log_p) - np.eye(7)[ids]) / 40, dtype)


@every_dtype
@pytest.mark.parametrize("scale", [1e-3, 1, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_weights_and_their_logsumexp(rng, masked, scale, dtype):
    scores, double = draw(rng, dtype, 2, 3, 6, 5, scale=scale)  # (N, heads, S, T)
    if masked:
        hidden = rng.random(scores.shape) > 0.6
        hidden[:, :, 0] = False  # every query has something to look at
        scores[hidden] = double[hidden] = -np.inf
    highest = scores.max(2, keepdims=True)
    log_sum = softmax_over_keys(scores, highest, masked, with_sum=True)  # scores become weights
    check(scores, scipy.special.softmax(double, axis=2), dtype)
    check(log_sum, scipy.special.logsumexp(double, axis=2, keepdims=True), dtype)


# Convolution ---------------------------------------------------------------------------------


def correlate(image, kernel, stride: int):
    """(H, W, Cin) with (KH, KW, Cin, Cout) by scipy.signal.correlate, one output at a time."""
    outputs = [
        scipy.signal.correlate(image, kernel[..., o], mode="valid", method="direct")[..., 0]
        for o in range(kernel.shape[3])
    ]
    return np.stack(outputs, axis=-1)[::stride, ::stride]


# Which operation is taken, image (N, H, W, C), kernel, stride and padding.
CONVOLUTIONS = {
    "windows": (Conv2d, (2, 7, 9, 3), (3, 2), 1, (1, 0, 0, 1)),
    "padding above the kernel": (Conv2d, (2, 7, 9, 3), (3, 2), 1, (1, 0, 2, 1)),
    "stride": (Conv2d, (2, 9, 8, 3), (3, 3), 2, (0, 1, 0, 1)),
    "pixels": (Linear, (2, 6, 5, 4), (1, 1), 1, (0, 0, 0, 0)),
    "winograd": (WinogradConv2d, (2, 13, 14, 16), (3, 3), 1, (1, 1, 1, 1)),
}


@every_dtype
@pytest.mark.parametrize(
    "name",
    [
        *[name for name in CONVOLUTIONS if name != "winograd"],
        pytest.param("winograd", marks=pytest.mark.host),
    ],
)
def test_convolution_and_its_gradients(rng, name, dtype):
    operation, image, (height, width), stride, padding = CONVOLUTIONS[name]
    x, x_double = draw(rng, dtype, *image)
    w, w_double = draw(rng, dtype, height, width, image[3], 5)
    top, bottom, left, right = padding
    borders = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = np.pad(x_double, borders)
    x, w = Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)
    y = ops.conv2d(x, w, stride=stride, padding=padding)
    assert isinstance(y.op, operation)
    check(y, np.stack([correlate(one, w_double, stride) for one in padded]), dtype)

    # gx: gy with zeros between its elements, convolved with w; gw: x correlated with the same.
    gy, gy_double = draw(rng, dtype, *y.shape)
    spread = np.zeros((*(n - k + 1 for n, k in zip(padded.shape[1:3], (height, width))), 5))
    gx, gw = np.zeros_like(padded), np.zeros_like(w_double)
    for i, one in enumerate(gy_double):
        spread[::stride, ::stride] = one
        for c, o in np.ndindex(image[3], 5):
            gx[i, ..., c] += scipy.signal.convolve(spread[..., o], w_double[:, :, c, o])
            gw[:, :, c, o] += scipy.signal.correlate(padded[i, ..., c], spread[..., o], "valid")
    gx = gx[:, top : top + image[1], left : left + image[2]]
    for ours, expected in zip(gradients(y, [x, w], gy), (gx, gw)):
        check(ours, expected, dtype)
