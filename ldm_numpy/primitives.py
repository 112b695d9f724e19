"""The operations behind Tensor's operators and methods, each with broadcasting.

Where NumPy broadcasts in the forward pass, the backward pass sums: an element that was used many
times receives the sum of the gradients of its uses (`unbroadcast`).

What is beyond the range of its type, as e^1000, is infinite, and NumPy warns. What is no number, as
1 / 0, log 0 or the mean of nothing, is a ValueError. (On a GPU, where looking at numbers means to
wait for them, 1 / 0 and log 0 are infinite.)
"""

import math

import numpy as np

from .backend import array_module
from .function import Function


def unbroadcast(g, shape: tuple[int, ...]):
    """Sum `g` over the axes along which an array of `shape` was broadcast; result has `shape`."""
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    stretched = [i + extra for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1]
    g = g.sum(axis=(*range(extra), *stretched))
    return g.reshape(shape)


def on_host(x) -> bool:
    """Whether `x` is a number or an array that can be looked at without waiting for a GPU."""
    return array_module(x) is np


def shape_of(x) -> tuple[int, ...]:
    """Shape of an array, or () for a Python number."""
    return getattr(x, "shape", ())


class Add(Function):
    """y = a + b;  ga = gy, gb = gy."""

    def forward(self, a, b):
        self.save(shape_of(a), shape_of(b))
        return a + b

    def backward(self, gy):
        a_shape, b_shape = self.saved
        return (
            unbroadcast(gy, a_shape) if self.needs[0] else None,
            unbroadcast(gy, b_shape) if self.needs[1] else None,
        )


class Sub(Function):
    """y = a - b;  ga = gy, gb = -gy."""

    def forward(self, a, b):
        self.save(shape_of(a), shape_of(b))
        return a - b

    def backward(self, gy):
        a_shape, b_shape = self.saved
        return (
            unbroadcast(gy, a_shape) if self.needs[0] else None,
            -unbroadcast(gy, b_shape) if self.needs[1] else None,
        )


class Mul(Function):
    """y = a b;  ga = gy b, gb = gy a."""

    def forward(self, a, b):
        self.save(a, b)
        return a * b

    def backward(self, gy):
        a, b = self.saved
        return (
            unbroadcast(gy * b, shape_of(a)) if self.needs[0] else None,
            unbroadcast(gy * a, shape_of(b)) if self.needs[1] else None,
        )


class Div(Function):
    """y = a / b;  ga = gy / b, gb = -gy y / b. (b^2 may be out of range where y / b is not.)

    ValueError for a zero in b.
    """

    def forward(self, a, b):
        if on_host(b) and not np.all(b):
            raise ValueError("division by zero")
        y = a / b
        self.save(shape_of(a), b, y)
        return y

    def backward(self, gy):
        a_shape, b, y = self.saved
        ga = gy / b
        return (
            unbroadcast(ga, a_shape) if self.needs[0] else None,
            unbroadcast(-ga * y, shape_of(b)) if self.needs[1] else None,
        )


class Neg(Function):
    """y = -x;  gx = -gy."""

    def forward(self, x):
        return -x

    def backward(self, gy):
        return (-gy,)


class Pow(Function):
    """y = x^p for a constant number p;  gx = gy p x^(p-1).

    ValueError for a negative x where p is no integer, for zero where p < 0, and in backward for
    zero where p < 1: there the slope is infinite. (But for p = 0: y is constant.)
    """

    def forward(self, x, *, exponent: float):
        if on_host(x):
            if exponent % 1 and (x < 0).any():
                raise ValueError(f"x ** {exponent}: x must not be negative, as {x.min():g} is")
            if exponent < 0 and not x.all():
                raise ValueError(f"x ** {exponent}: x must not be 0")
        self.exponent = exponent
        self.save(x)
        return x**exponent

    def backward(self, gy):
        (x,) = self.saved
        if self.exponent == 0:
            return (0 * gy,)
        if self.exponent < 1 and on_host(x) and not x.all():
            raise ValueError(f"x ** {self.exponent}: its slope at x = 0 is infinite")
        return (gy * self.exponent * x ** (self.exponent - 1),)


class Exp(Function):
    """y = exp(x);  gx = gy y."""

    def forward(self, x):
        y = array_module(x).exp(x)
        self.save(y)
        return y

    def backward(self, gy):
        (y,) = self.saved
        return (gy * y,)


class Log(Function):
    """y = ln(x);  gx = gy / x. ValueError for an x that is not positive."""

    def forward(self, x):
        if on_host(x) and (x <= 0).any():
            raise ValueError(f"log: x must be positive; the smallest is {x.min():g}")
        self.save(x)
        return array_module(x).log(x)

    def backward(self, gy):
        (x,) = self.saved
        return (gy / x,)


class Clip(Function):
    """y = min(max(x, low), high);  gx = gy where low <= x <= high, else 0.

    ValueError unless low <= high.
    """

    def forward(self, x, *, low: float, high: float):
        if not low <= high:
            raise ValueError(f"clip: low = {low} must not be above high = {high}")
        self.save((x >= low) & (x <= high))
        return array_module(x).clip(x, low, high)

    def backward(self, gy):
        (inside,) = self.saved
        return (gy * inside,)


class MatMul(Function):
    """y = a b, batched over leading axes;  ga = gy b^T, gb = a^T gy.

    Shapes: a (..., I, J), b (..., J, K) -> (..., I, K); leading axes broadcast.
    """

    def forward(self, a, b):
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            raise ValueError(
                f"matmul: shapes {a.shape} and {b.shape} do not fit: "
                "they must be (..., I, J) and (..., J, K)"
            )
        self.save(a, b)
        return a @ b

    def backward(self, gy):
        a, b = self.saved
        ga = unbroadcast(gy @ b.swapaxes(-1, -2), a.shape) if self.needs[0] else None
        gb = unbroadcast(a.swapaxes(-1, -2) @ gy, b.shape) if self.needs[1] else None
        return ga, gb


def _keep_axes(g, shape: tuple[int, ...], axis):
    """Reshape a reduced array so that its reduced axes are back, with length 1."""
    if axis is None:
        return g.reshape((1,) * len(shape))
    axes = (axis,) if isinstance(axis, int) else axis
    axes = {a % len(shape) for a in axes}
    return g.reshape(tuple(1 if i in axes else n for i, n in enumerate(shape)))


def _check_not_empty(name: str, shape: tuple[int, ...], axis) -> None:
    """ValueError if reducing `shape` over `axis` would reduce 0 elements to one."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    if 0 in shape and 0 in [shape[i] for i in axes]:
        raise ValueError(f"{name} over axis {axis} of {shape}: there is no element")


class Sum(Function):
    """y = sum of x over `axis`;  gx = gy, broadcast back."""

    def forward(self, x, *, axis=None, keepdims=False):
        self.axis = axis
        self.save(x.shape)
        return x.sum(axis=axis, keepdims=keepdims)

    def backward(self, gy):
        (shape,) = self.saved
        xp = array_module(gy)
        return (xp.broadcast_to(_keep_axes(gy, shape, self.axis), shape),)


class Mean(Function):
    """y = mean of x over `axis`;  gx = gy / count, broadcast back. ValueError if count is 0."""

    def forward(self, x, *, axis=None, keepdims=False):
        _check_not_empty("mean", x.shape, axis)
        self.axis = axis
        self.save(x.shape)
        return x.mean(axis=axis, keepdims=keepdims)

    def backward(self, gy):
        (shape,) = self.saved
        xp = array_module(gy)
        count = math.prod(shape) // max(1, gy.size)  # a batch may be empty
        return (xp.broadcast_to(_keep_axes(gy / count, shape, self.axis), shape),)


class Max(Function):
    """y = max of x over `axis`;  gx = gy at the maximum, shared evenly among equal ones.

    ValueError if there is nothing to choose from.
    """

    def forward(self, x, *, axis=None, keepdims=False):
        _check_not_empty("max", x.shape, axis)
        self.axis = axis
        y = x.max(axis=axis, keepdims=keepdims)
        self.save(x, y)
        return y

    def backward(self, gy):
        x, y = self.saved
        is_max = x == _keep_axes(y, x.shape, self.axis)
        share = is_max / is_max.sum(axis=self.axis, keepdims=True).astype(x.dtype)
        return (_keep_axes(gy, x.shape, self.axis) * share,)


class Reshape(Function):
    """y = x with another shape;  gx = gy with the old one.

    ValueError for a -1 that might be any number, as x and the other numbers have no element.
    """

    def forward(self, x, *, shape):
        if not x.size and -1 in shape and 0 in shape:
            raise ValueError(f"reshape: {x.shape} has no element, so the -1 in {shape} can be any")
        self.save(x.shape)
        return x.reshape(shape)

    def backward(self, gy):
        return (gy.reshape(self.saved[0]),)


class Transpose(Function):
    """y = x with its axes permuted;  gx = gy with the inverse permutation."""

    def forward(self, x, *, axes=None):
        self.axes = tuple(reversed(range(x.ndim))) if axes is None else axes
        return x.transpose(self.axes)

    def backward(self, gy):
        inverse = sorted(range(gy.ndim), key=lambda i: self.axes[i] % gy.ndim)
        return (gy.transpose(inverse),)


class Pad(Function):
    """y = x with `value` around it, `width` = ((before, after), ...) an axis;  gx = the middle."""

    def forward(self, x, *, width, value: float = 0.0):
        self.middle = tuple(slice(before, before + n) for (before, _), n in zip(width, x.shape))
        return array_module(x).pad(x, width, constant_values=value)

    def backward(self, gy):
        return (gy[self.middle],)


class GetItem(Function):
    """y = x[index]: slices, integers, masks or integer arrays;  gx = 0 but for gx[index] += gy."""

    def forward(self, x, *, index):
        self.index = index
        self.save(x.shape)
        return x[index]

    def backward(self, gy):
        xp = array_module(gy)
        gx = xp.zeros(self.saved[0], gy.dtype)
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        if all(isinstance(p, int | slice) or p is None or p is Ellipsis for p in parts):
            gx[self.index] = gy
        else:  # an integer array may name an element twice: its gradients add up
            xp.add.at(gx, self.index, gy)
        return (gx,)


class Concatenate(Function):
    """y = the inputs one after the other along `axis`;  each gx = its slice of gy."""

    def forward(self, *arrays, axis: int):
        if not arrays:
            raise ValueError("concatenate: no arrays were given")
        self.axis = axis
        self.save(*[a.shape[axis] for a in arrays])
        return array_module(arrays[0]).concatenate(arrays, axis)

    def backward(self, gy):
        gradients, start = [], 0
        for size in self.saved:
            index = [slice(None)] * gy.ndim
            index[self.axis] = slice(start, start + size)
            gradients.append(gy[tuple(index)])
            start += size
        return tuple(gradients)


class Where(Function):
    """y = a where mask else b;  ga = gy where mask, gb = gy elsewhere."""

    def forward(self, a, b, *, mask):
        self.save(mask, shape_of(a), shape_of(b))
        return array_module(mask).where(mask, a, b)

    def backward(self, gy):
        mask, a_shape, b_shape = self.saved
        return (
            unbroadcast(gy * mask, a_shape) if self.needs[0] else None,
            unbroadcast(gy * ~mask, b_shape) if self.needs[1] else None,
        )
