"""Elementwise non-linearities, softmax and dropout."""

import math

from ..backend import array_module, erf
from ..function import Function


def stable_sigmoid(x):
    """1 / (1 + exp(-x)) as (1 + tanh(x / 2)) / 2, which cannot overflow. Arrays in and out."""
    y = array_module(x).tanh(x * 0.5)
    y *= 0.5
    y += 0.5
    return y


def stable_softmax(x, axis: int = -1):
    """exp(x_i) / sum_j exp(x_j), with the maximum subtracted first. Arrays in and out."""
    y = x - x.max(axis=axis, keepdims=True)
    array_module(y).exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


class Sigmoid(Function):
    """y = 1 / (1 + e^-x);  gx = gy y (1 - y)."""

    def forward(self, x):
        y = stable_sigmoid(x)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return (gy * y * (1 - y),)


class Tanh(Function):
    """y = tanh x;  gx = gy (1 - y^2)."""

    def forward(self, x):
        y = array_module(x).tanh(x)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return (gy * (1 - y * y),)


class ReLU(Function):
    """y = max(x, 0);  gx = gy where x > 0, else 0."""

    def forward(self, x):
        self.save(x > 0)
        return array_module(x).maximum(x, 0)

    def backward(self, gy):
        (positive,) = self.saved
        return (gy * positive,)


class SiLU(Function):
    """y = x s(x), s the sigmoid;  gx = gy s (1 + x (1 - s)). (Elfwing et al. 2017)"""

    def forward(self, x):
        s = stable_sigmoid(x)
        self.save(x, s)
        return x * s

    def backward(self, gy):
        x, s = self.saved
        return (gy * s * (1 + x * (1 - s)),)


class GELU(Function):
    """y = x P(x), P the normal distribution function (1 + erf(x / sqrt 2)) / 2 (exact, no tanh).

    gx = gy (P + x p), with the density p = exp(-x^2 / 2) / sqrt(2 pi).
    (Hendrycks and Gimpel 2016)
    """

    def forward(self, x):
        cdf = 0.5 * (1 + erf(x * math.sqrt(0.5)))
        self.save(x, cdf)
        return x * cdf

    def backward(self, gy):
        x, cdf = self.saved
        density = array_module(x).exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return (gy * (cdf + x * density),)


class QuickGELU(Function):
    """y = x s(1.702 x), s the sigmoid: CLIP's approximation of GELU.

    gx = gy s (1 + 1.702 x (1 - s)).
    """

    def forward(self, x):
        s = stable_sigmoid(1.702 * x)
        self.save(x, s)
        return x * s

    def backward(self, gy):
        x, s = self.saved
        return (gy * s * (1 + 1.702 * x * (1 - s)),)


class Softmax(Function):
    """y_i = e^x_i / sum_j e^x_j along `axis`;  gx = y (gy - sum_j gy_j y_j)."""

    def forward(self, x, *, axis: int):
        self.axis = axis
        y = stable_softmax(x, axis)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return (y * (gy - (gy * y).sum(axis=self.axis, keepdims=True)),)


class Dropout(Function):
    """y = x m / (1 - p), each m being 0 with probability p and otherwise 1;  gx = gy m / (1 - p).

    (Srivastava et al. 2014)
    """

    def forward(self, x, *, p: float, rng):
        xp = array_module(x)
        keep = (rng.random(x.shape, dtype="float32") >= p) / (1 - p)
        keep = xp.asarray(keep, dtype=x.dtype)
        self.save(keep)
        return x * keep

    def backward(self, gy):
        (keep,) = self.saved
        return (gy * keep,)


def sigmoid(x):
    """1 / (1 + e^-x), elementwise."""
    return Sigmoid.apply(x)


def tanh(x):
    """Hyperbolic tangent, elementwise."""
    return Tanh.apply(x)


def relu(x):
    """max(x, 0), elementwise."""
    return ReLU.apply(x)


def silu(x):
    """x sigmoid(x), elementwise; also called swish."""
    return SiLU.apply(x)


def gelu(x):
    """x times the normal distribution function of x, exactly, elementwise."""
    return GELU.apply(x)


def quick_gelu(x):
    """x sigmoid(1.702 x), elementwise; what CLIP uses."""
    return QuickGELU.apply(x)


def softmax(x, axis: int = -1):
    """Softmax along `axis`."""
    return Softmax.apply(x, axis=axis)


def dropout(x, p: float, rng):
    """Zero each element with probability `p`, scale the others by 1 / (1 - p).

    `rng` is a NumPy Generator: the mask is drawn on the host. ValueError unless 0 <= p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p = {p} must be in [0, 1)")
    return Dropout.apply(x, p=p, rng=rng)
