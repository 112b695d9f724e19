"""Elementwise non-linearities, softmax and dropout."""

import math

import numpy as np

from ..backend import array_module, erf
from ..function import Function


def sigmoid_gate(half_x):
    """2 s(x) = 1 + tanh(x / 2), s the sigmoid, from x / 2; it cannot overflow. Arrays in and out.

    silu(x) = x s(x) is then x / 2 times the gate: whoever can fold the half into a scale that he
    applies anyway spares a pass over the array.
    """
    gate = array_module(half_x).tanh(half_x)
    gate += 1
    return gate


def twice_silu_slope(y, gate):
    """2 silu'(x) = 2 (s + y (1 - s)) from y = silu(x) and gate = 2 s(x). Arrays in and out."""
    slope = 2 - gate
    slope *= y
    slope += gate
    return slope


def normal_cdf(x, out=None):
    """P(x) = (1 + erf(x / sqrt 2)) / 2, into `out` when given. Arrays in and out.

    In float32 on the host erf(x / sqrt 2) is tanh(x Q(x^2)): these passes run in NumPy's vector
    instructions, where SciPy's erf works element by element. Q is a polynomial of degree 6 with
    the smallest relative error of erf, 1e-7, on |x| < 4 sqrt 2, found by linear programming. From
    4.5 sqrt 2 on the tanh is 1, and x is cut off there, lest a power of it overflow.
    """
    xp = array_module(x)
    if xp is np and x.dtype == np.float32:
        z = np.clip(x, -4.5 * math.sqrt(2), 4.5 * math.sqrt(2))
        square = z * z
        cdf = np.multiply(square, CDF_POLYNOMIAL[0], out=out)
        for coefficient in CDF_POLYNOMIAL[1:-1]:
            cdf += coefficient
            cdf *= square
        cdf += CDF_POLYNOMIAL[-1]
        cdf *= z
        cdf = np.tanh(cdf, out=out)
        cdf *= 0.5
    else:
        cdf = xp.multiply(erf(x * math.sqrt(0.5)), 0.5, out=out)
    cdf += 0.5
    return cdf


# Powers 6 to 0 of Q in erf(x / sqrt 2) = tanh(x Q(x^2)).
CDF_POLYNOMIAL = (
    1.5672246e-09,
    -1.2525547e-07,
    3.8730421e-06,
    -5.4781644e-05,
    -3.3911457e-05,
    0.03633435,
    0.79788465,
)


def gelu_slope(x, cdf):
    """gelu'(x) = P + x p, the density p = exp(-x^2 / 2) / sqrt(2 pi). Arrays in and out."""
    xp = array_module(x)
    slope = xp.multiply(x, x, out=xp.empty_like(x))
    slope *= -0.5
    xp.exp(slope, out=slope)
    slope *= 1 / math.sqrt(2 * math.pi)
    slope *= x
    slope += cdf
    return slope


def halves(h):
    """The two halves of the last axis, as views: (..., 2 D) -> (..., D), (..., D)."""
    half = h.shape[-1] // 2
    return h[..., :half], h[..., half:]


def row_blocks(rows):
    """Slices that cut `rows` (M, D) into blocks of 2^17 elements or so; on a GPU, into one.

    A function of many passes takes one block after the other, so that its temporaries stay in a
    processor's cache from pass to pass. Smaller blocks would cost more in calls than they save.
    """
    size = 2**17 if array_module(rows) is np else rows.size
    step = max(1, size // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def stable_softmax(x, axis: int = -1):
    """exp(x_i) / sum_j exp(x_j), with the maximum subtracted first. Arrays in and out."""
    y = x - x.max(axis=axis, keepdims=True)
    array_module(y).exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


class Sigmoid(Function):
    """y = 1 / (1 + e^-x);  gx = gy y (1 - y)."""

    def forward(self, x):
        y = sigmoid_gate(0.5 * x)
        y *= 0.5
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
    """y = x s(x), s the sigmoid;  gx = gy (s + y (1 - s)). (Elfwing et al. 2017)"""

    def forward(self, x):
        y = 0.5 * x
        gate = sigmoid_gate(y)
        y *= gate
        self.save(y, gate)
        return y

    def backward(self, gy):
        gx = twice_silu_slope(*self.saved)
        gx *= 0.5
        gx *= gy
        return (gx,)


class GELU(Function):
    """y = x P(x), P the normal distribution function (1 + erf(x / sqrt 2)) / 2 (exact, no tanh).

    gx = gy (P + x p), with the density p = exp(-x^2 / 2) / sqrt(2 pi).
    (Hendrycks and Gimpel 2016)
    """

    def forward(self, x):
        cdf = normal_cdf(x)
        self.save(x, cdf)
        return x * cdf

    def backward(self, gy):
        gx = gelu_slope(*self.saved)
        gx *= gy
        return (gx,)


class GEGLU(Function):
    """y = a gelu(b), the last axis of h being a and b side by side.  (..., 2 D) -> (..., D).

    ga = gy gelu(b),  gb = gy a gelu'(b), written side by side into one array.
    (Shazeer 2020, "GLU variants improve transformer")
    """

    def forward(self, h):
        rows = h.reshape(-1, h.shape[-1])  # (M, 2 D)
        xp = array_module(h)
        y = xp.empty((len(rows), rows.shape[1] // 2), h.dtype)  # (M, D)
        cdf = xp.empty_like(y) if True in self.needs else None
        for block in row_blocks(y):
            (a, b), product = halves(rows[block]), y[block]
            p = normal_cdf(b, out=None if cdf is None else cdf[block])
            xp.multiply(b, p, out=product)
            product *= a
        self.save(rows, cdf)
        return y.reshape(*h.shape[:-1], y.shape[1])

    def backward(self, gy):
        rows, cdf = self.saved
        xp = array_module(gy)
        gy_rows = gy.reshape(cdf.shape)  # (M, D)
        gh = xp.empty_like(rows)  # (M, 2 D)
        for block in row_blocks(cdf):
            (a, b), (ga, gb) = halves(rows[block]), halves(gh[block])
            p, g = cdf[block], gy_rows[block]
            xp.multiply(b, p, out=ga)
            ga *= g
            slope = gelu_slope(b, p)
            slope *= a
            xp.multiply(slope, g, out=gb)
        return (gh.reshape(*gy.shape[:-1], gh.shape[1]),)


class QuickGELU(Function):
    """y = x s(1.702 x) = silu(1.702 x) / 1.702, s the sigmoid: CLIP's approximation of GELU.

    gx = gy silu'(1.702 x).
    """

    def forward(self, x):
        y = (1.702 / 2) * x
        gate = sigmoid_gate(y)
        y *= gate
        y *= 1 / 1.702
        self.save(y, gate)
        return y

    def backward(self, gy):
        y, gate = self.saved
        gx = twice_silu_slope(1.702 * y, gate)
        gx *= 0.5
        gx *= gy
        return (gx,)


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


def geglu(h):
    """a gelu(b), where h (..., 2 D) is a and b side by side. ValueError for an odd last axis."""
    if h.shape[-1] % 2:
        raise ValueError(f"geglu: the last axis of {h.shape} must be even")
    return GEGLU.apply(h)


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
