"""Tensor: an array that remembers how it was made, and reverse-mode differentiation over it.

The graph points backwards only: a Tensor holds the Function that made it, which holds the Functions
that made its inputs, down to the leaves. There are no cycles, so a graph is freed by reference
counting the moment its result is.
"""

import numpy as np

from . import primitives as p
from .backend import array_module, to_host
from .function import Function, no_grad, raw

__all__ = ["Tensor", "concatenate", "gradients", "no_grad", "where"]


class Tensor:
    """An array (NumPy or CuPy) with a place in the graph.

    Attributes:
        data: the array, of any shape, floating point if it requires a gradient
        grad: d(result)/d(data) after `backward`, an array of the same shape, or None
        requires_grad: whether gradients flow to it
        op: the Function that made it, or None for a leaf
    """

    __array_priority__ = 1000  # `array + tensor` asks the Tensor first

    def __init__(self, data, requires_grad: bool = False, op: Function | None = None):
        if type(data) is not np.ndarray:  # what remains is rare, or on a GPU
            if isinstance(data, Tensor):
                raise ValueError("Tensor(data) takes an array, not another Tensor: use x.detach()")
            if not hasattr(data, "dtype"):
                data = np.asarray(data, dtype=np.float32)
            elif isinstance(data, np.generic):
                data = np.asarray(data)
        if requires_grad and data.dtype.kind != "f":
            raise ValueError(f"only floating point data has gradients, not {data.dtype}")
        self.data = data
        self.grad = None
        self.requires_grad = requires_grad
        self.op = op

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self):
        return self.data.dtype

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        made = f", op={type(self.op).__name__}" if self.op else ""
        return f"Tensor({self.data}, shape={self.shape}, requires_grad={self.requires_grad}{made})"

    @property
    def node(self):
        """Its place in the graph: the Function that made it, or for a leaf the Tensor itself."""
        return self if self.op is None else self.op

    def detach(self) -> "Tensor":
        """The same data outside the graph."""
        return Tensor(self.data)

    def numpy(self) -> np.ndarray:
        """The data as a NumPy array (shared with the Tensor on the CPU)."""
        return to_host(self.data)

    def item(self) -> float:
        """The value of a Tensor of one element; on a GPU this waits for the result."""
        return self.numpy().item()

    def backward(self, gy=None) -> None:
        """Add d<gy, self>/dx to the `.grad` of every leaf x; `gy` defaults to 1 for a scalar."""
        for leaf, g in _walk(self, gy):
            if leaf.grad is None:
                leaf.grad = array_module(g).array(g)  # a copy: g may be a view of another
            else:
                leaf.grad += g  # in place: an optimizer may hold the buffer

    # Operators -----------------------------------------------------------------------------

    def __add__(self, other):
        return p.Add.apply(self, other)

    def __radd__(self, other):
        return p.Add.apply(other, self)

    def __sub__(self, other):
        return p.Sub.apply(self, other)

    def __rsub__(self, other):
        return p.Sub.apply(other, self)

    def __mul__(self, other):
        return p.Mul.apply(self, other)

    def __rmul__(self, other):
        return p.Mul.apply(other, self)

    def __truediv__(self, other):
        return p.Div.apply(self, other)

    def __rtruediv__(self, other):
        return p.Div.apply(other, self)

    def __matmul__(self, other):
        return p.MatMul.apply(self, other)

    def __rmatmul__(self, other):
        return p.MatMul.apply(other, self)

    def __neg__(self):
        return p.Neg.apply(self)

    def __pow__(self, exponent: float):
        if not isinstance(exponent, int | float):
            raise ValueError("x ** p needs a number p; write (x.log() * p).exp() for a Tensor p")
        return p.Pow.apply(self, exponent=exponent)

    def __getitem__(self, index):
        return p.GetItem.apply(self, index=index)

    # Methods -------------------------------------------------------------------------------

    def exp(self):
        return p.Exp.apply(self)

    def log(self):
        return p.Log.apply(self)

    def clip(self, low: float, high: float):
        return p.Clip.apply(self, low=low, high=high)

    def sum(self, axis=None, keepdims: bool = False):
        return p.Sum.apply(self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims: bool = False):
        return p.Mean.apply(self, axis=axis, keepdims=keepdims)

    def max(self, axis=None, keepdims: bool = False):
        return p.Max.apply(self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape):
        return p.Reshape.apply(self, shape=shape[0] if isinstance(shape[0], tuple) else shape)

    def transpose(self, *axes):
        return p.Transpose.apply(self, axes=axes or None)

    def pad(self, width, value: float = 0.0):
        """Surround by `value`; `width` = ((before, after), ...), one pair an axis."""
        return p.Pad.apply(self, width=width, value=value)


Function.tensor_type = Tensor


def concatenate(tensors, axis: int = 0):
    """The inputs one after the other along `axis`."""
    return p.Concatenate.apply(*tensors, axis=axis)


def where(mask, a, b):
    """`a` where the boolean array `mask` is true, else `b`."""
    return p.Where.apply(a, b, mask=mask)


def gradients(y: Tensor, tensors, gy=None) -> list:
    """d<gy, y>/dx for each x of `tensors`, as arrays; `.grad` is left alone.

    This is what threads use on parameters they share. A tensor that `y` does not depend on has
    gradient zero. Treat the arrays as read-only: they may be views, of each other too.
    """
    tensors = list(tensors)
    nodes = [x.node for x in tensors]
    found = {id(node): g for node, g in _walk(y, gy, wanted={id(node) for node in nodes})}
    return [
        found[id(node)] if id(node) in found else array_module(x.data).zeros_like(x.data)
        for x, node in zip(tensors, nodes)
    ]


def _walk(y: Tensor, gy=None, wanted: set[int] | None = None):
    """Push `gy` back through the graph of `y`; yields (node, gradient), each node once.

    A node is a Function, whose output the gradient belongs to, or a leaf Tensor. Yields the leaves,
    or the nodes whose id is in `wanted`. The graph is consumed on the way: what an operation saved
    and the gradients it has passed on are dropped at once, so that memory falls as the walk goes.
    """
    if not y.requires_grad:
        raise ValueError("backward: the result depends on nothing that requires a gradient")
    if gy is None:
        if y.size != 1:
            raise ValueError(f"backward: a result of shape {y.shape} needs gy of the same shape")
        gy = array_module(y.data).ones_like(y.data)
    gy = array_module(y.data).asarray(raw(gy), dtype=y.dtype)
    if gy.shape != y.shape:
        raise ValueError(f"backward: gy has shape {gy.shape}, the result has {y.shape}")

    gradient = {id(y.node): gy}
    ours = set()  # whose gradient is a sum made here; others may be views, and are not written to
    order = _topological(y.node)
    while order:
        node = order.pop()
        g = gradient.pop(id(node))
        is_leaf = isinstance(node, Tensor)
        if is_leaf if wanted is None else id(node) in wanted:
            yield node, g
        if is_leaf:
            continue
        if node.inputs is None:
            raise ValueError("backward: this graph was already walked and freed; run forward again")
        inputs = node.inputs
        returned = node.backward(g)
        node.inputs, node.saved, g = None, (), None
        for i, (source, gx) in enumerate(zip(inputs, returned, strict=True)):
            if source is None:
                continue
            if gx is None or gx.shape != source.shape:
                raise ValueError(
                    f"{type(node).__name__}.backward: gradient {i} has shape "
                    f"{getattr(gx, 'shape', None)}, its input has {source.shape}"
                )
            key = id(source)
            if key not in gradient:
                gradient[key] = gx
            elif key not in ours:
                gradient[key] = gradient[key] + gx
                ours.add(key)
            else:
                gradient[key] += gx


def _topological(root) -> list:
    """The nodes that `root` depends on, inputs before outputs; by a stack, for graphs are deep."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if isinstance(node, Function) and node.inputs is not None:
                stack.extend((source, False) for source in node.inputs if source is not None)
    return order
