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


def normal_cdf(x):
    """P(x) = (1 + erf(x / sqrt 2)) / 2. Arrays in and out.

    In float32 on the host erf(x / sqrt 2) is tanh(x Q(x^2)): these passes run in NumPy's vector
    instructions, where SciPy's erf works element by element. Q is a polynomial of degree 6 with
    the smallest relative error of erf, 1e-7, on |x| < 4 sqrt 2, found by linear programming. From
    4.5 sqrt 2 on the tanh is 1, and x is cut off there, lest a power of it overflow.
    """
    if array_module(x) is np and x.dtype == np.float32:
        z = x.clip(-4.5 * math.sqrt(2), 4.5 * math.sqrt(2))
        square = z * z
        cdf = square * CDF_POLYNOMIAL[0]
        for coefficient in CDF_POLYNOMIAL[1:-1]:
            cdf += coefficient
            cdf *= square
        cdf += CDF_POLYNOMIAL[-1]
        cdf *= z
        cdf = np.tanh(cdf)
    else:
        cdf = erf(x * math.sqrt(0.5))
    cdf *= 0.5
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
    """gelu'(x) = P + x p, the density p = exp(-x^2 / 2) / sqrt(2 pi). Arrays in and out.

    Where the square is beyond the type's range, it may be infinite: the density is 0 there anyway.
    """
    xp = array_module(x)
    with np.errstate(over="ignore"):
        slope = xp.multiply(x, x, out=xp.empty_like(x))
    slope *= -0.5
    xp.exp(slope, out=slope)
    slope *= 1 / math.sqrt(2 * math.pi)
    slope *= x
    slope += cdf
    return slope


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
    """y = x s(x), s the sigmoid;  gx = gy (s + y (1 - s)). (Elfwing et al. 2017)

    Here and in GELU, GEGLU and QuickGELU forward computes the slope too, where backward will want
    it: of all that was computed on the way, it is the one array that has to be kept.
    """

    def forward(self, x):
        y = 0.5 * x
        gate = sigmoid_gate(y)
        y *= gate
        if True in self.needs:
            slope = twice_silu_slope(y, gate)
            slope *= 0.5
            self.save(slope)
        return y

    def backward(self, gy):
        (slope,) = self.saved
        return (gy * slope,)


class GELU(Function):
    """y = x P(x), P the normal distribution function (1 + erf(x / sqrt 2)) / 2 (exact, no tanh).

    gx = gy (P + x p), with the density p = exp(-x^2 / 2) / sqrt(2 pi).
    (Hendrycks and Gimpel 2016)
    """

    def forward(self, x):
        cdf = normal_cdf(x)
        if True in self.needs:
            self.save(gelu_slope(x, cdf))
        cdf *= x
        return cdf

    def backward(self, gy):
        (slope,) = self.saved
        return (gy * slope,)


class GEGLU(Function):
    """y = a gelu(b), the last axis of h being a and b side by side.  (..., 2 D) -> (..., D).

    ga = gy gelu(b),  gb = gy a gelu'(b): gy times two slopes, kept side by side as a and b are.
    (Shazeer 2020, "GLU variants improve transformer")
    """

    def forward(self, h):
        d = h.shape[-1] // 2
        rows = h.reshape(math.prod(h.shape[:-1]), 2, d)  # (M, 2, D)
        xp = array_module(h)
        y = xp.empty((len(rows), d), h.dtype)
        slopes = xp.empty_like(rows) if True in self.needs else None
        for block in row_blocks(y):
            a, b = rows[block, 0], rows[block, 1]
            cdf = normal_cdf(b)
            gelu = cdf
            if slopes is not None:
                gelu = slopes[block, 0]
                xp.multiply(a, gelu_slope(b, cdf), out=slopes[block, 1])
            xp.multiply(b, cdf, out=gelu)
            xp.multiply(a, gelu, out=y[block])
        self.save(slopes)
        return y.reshape(*h.shape[:-1], d)

    def backward(self, gy):
        (slopes,) = self.saved
        m, _, d = slopes.shape
        gh = slopes * gy.reshape(m, 1, d)  # (M, 2, D)
        return (gh.reshape(*gy.shape[:-1], 2 * d),)


class QuickGELU(Function):
    """y = x s(1.702 x) = silu(1.702 x) / 1.702, s the sigmoid: CLIP's approximation of GELU.

    gx = gy silu'(1.702 x).
    """

    def forward(self, x):
        y = (1.702 / 2) * x
        gate = sigmoid_gate(y)
        y *= gate  # silu(1.702 x)
        if True in self.needs:
            slope = twice_silu_slope(y, gate)
            slope *= 0.5
            self.save(slope)
        y *= 1 / 1.702
        return y

    def backward(self, gy):
        (slope,) = self.saved
        return (gy * slope,)


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
    """1 / (1 + e^-x), elementwise, to within a rounding of 1: what is far smaller may become 0, in
    float32 from x = -17 or so."""
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
    """a gelu(b), where h (..., 2 D) is a and b side by side. ValueError for an odd or no D."""
    if not h.ndim or not h.shape[-1] or h.shape[-1] % 2:
        raise ValueError(f"geglu: the last axis of {h.shape} must be even, and 2 or more")
    return GEGLU.apply(h)


def quick_gelu(x):
    """x sigmoid(1.702 x), elementwise; what CLIP uses."""
    return QuickGELU.apply(x)


def softmax(x, axis: int = -1):
    """Softmax along `axis`. ValueError where it has no element."""
    if not x.ndim or not x.shape[axis]:
        raise ValueError(f"softmax: axis {axis} of {x.shape} has no element")
    return Softmax.apply(x, axis=axis)


def dropout(x, p: float, rng):
    """Zero each element with probability `p`, scale the others by 1 / (1 - p).

    `rng` is a NumPy Generator: the mask is drawn on the host. ValueError unless 0 <= p < 1.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p = {p} must be in [0, 1)")
    return Dropout.apply(x, p=p, rng=rng)
