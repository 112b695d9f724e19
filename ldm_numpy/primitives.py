"""The operations behind Tensor's operators and methods, each with broadcasting.

Where NumPy broadcasts in the forward pass, the backward pass sums: an element that was used many
times receives the sum of the gradients of its uses (`unbroadcast`).
"""

import math

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
    """y = a / b;  ga = gy / b, gb = -gy a / b^2."""

    def forward(self, a, b):
        self.save(a, b)
        return a / b

    def backward(self, gy):
        a, b = self.saved
        return (
            unbroadcast(gy / b, shape_of(a)) if self.needs[0] else None,
            unbroadcast(-gy * a / (b * b), shape_of(b)) if self.needs[1] else None,
        )


class Neg(Function):
    """y = -x;  gx = -gy."""

    def forward(self, x):
        return -x

    def backward(self, gy):
        return (-gy,)


class Pow(Function):
    """y = x^p for a constant number p;  gx = gy p x^(p-1)."""

    def forward(self, x, *, exponent: float):
        self.exponent = exponent
        self.save(x)
        return x**exponent

    def backward(self, gy):
        (x,) = self.saved
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
    """y = ln(x);  gx = gy / x."""

    def forward(self, x):
        self.save(x)
        return array_module(x).log(x)

    def backward(self, gy):
        (x,) = self.saved
        return (gy / x,)


class Clip(Function):
    """y = min(max(x, low), high);  gx = gy where low <= x <= high, else 0."""

    def forward(self, x, *, low: float, high: float):
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
    """y = mean of x over `axis`;  gx = gy / count, broadcast back."""

    def forward(self, x, *, axis=None, keepdims=False):
        self.axis = axis
        self.save(x.shape)
        return x.mean(axis=axis, keepdims=keepdims)

    def backward(self, gy):
        (shape,) = self.saved
        xp = array_module(gy)
        count = math.prod(shape) // gy.size
        return (xp.broadcast_to(_keep_axes(gy / count, shape, self.axis), shape),)


class Max(Function):
    """y = max of x over `axis`;  gx = gy at the maximum, shared evenly among equal ones."""

    def forward(self, x, *, axis=None, keepdims=False):
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
    """y = x with another shape;  gx = gy with the old one."""

    def forward(self, x, *, shape):
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
