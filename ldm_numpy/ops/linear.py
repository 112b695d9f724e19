"""A linear map over the last axis."""

from functools import lru_cache

from ..backend import array_module
from ..function import Function


def column_sum(rows):
    """Sum over the rows of a matrix, (M, C) -> (C,). As a product it is several times faster."""
    return ones(array_module(rows), len(rows), rows.dtype) @ rows


@lru_cache(maxsize=32)
def ones(xp, count: int, dtype):
    """A vector of ones to multiply with; kept, for the same few lengths come again and again."""
    return xp.ones(count, dtype)


class Linear(Function):
    """y = x w + b;  gx = gy w^T, gw = x^T gy, gb = sum of gy over all but its last axis."""

    def forward(self, x, w, b):
        self.save(x, w)
        y = x.reshape(-1, w.shape[0]) @ w  # (M, Dout)
        if b is not None:
            y += b
        return y.reshape(*x.shape[:-1], w.shape[1])  # (..., Dout)

    def backward(self, gy):
        x, w = self.saved
        gy = gy.reshape(-1, w.shape[1])  # (M, Dout)
        gx = (gy @ w.T).reshape(x.shape) if self.needs[0] else None
        gw = x.reshape(-1, w.shape[0]).T @ gy if self.needs[1] else None
        gb = column_sum(gy) if self.needs[2] else None
        return gx, gw, gb


def linear(x, w, b=None):
    """x w + b over the last axis: x (..., Din), w (Din, Dout), b (Dout,) -> (..., Dout).

    ValueError where Din does not match, or Din or Dout is 0.
    """
    if w.ndim != 2 or not w.size:
        raise ValueError(f"linear: a weight {w.shape} must be (Din, Dout), neither of them 0")
    if not x.ndim or x.shape[-1] != w.shape[0]:
        raise ValueError(f"linear: x {x.shape} must be (..., {w.shape[0]}) for a weight {w.shape}")
    return Linear.apply(x, w, b)
