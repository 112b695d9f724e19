"""Look-up of rows by integer ids."""

import numpy as np

from ..backend import array_module
from ..function import Function, raw


class Embedding(Function):
    """y[...] = w[ids[...]];  gw[i] = sum of gy over all places where ids is i."""

    def forward(self, w, *, ids):
        self.ids = ids
        self.save(w.shape)
        return w[ids]

    def backward(self, gy):
        xp = array_module(gy)
        gw = xp.zeros(self.saved[0], gy.dtype)
        xp.add.at(gw, self.ids, gy)  # an id may occur many times: gw[ids] += gy would keep one
        return (gw,)


def embedding(weight, ids):
    """Rows of `weight` (V, D) at `ids` (...) -> (..., D).

    `ids` is an integer array, best on the host: there it is checked, while a GPU wraps ids that are
    out of range silently. Raises ValueError for an id outside 0 .. V-1.
    """
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iu":
            raise ValueError(f"embedding: ids must be integers, not {ids.dtype}")
        if ids.size and (ids.min() < 0 or ids.max() >= weight.shape[0]):
            raise ValueError(
                f"embedding: ids from {ids.min()} to {ids.max()} do not fit a table of "
                f"{weight.shape[0]} rows (0 to {weight.shape[0] - 1})"
            )
        ids = array_module(raw(weight)).asarray(ids)
    return Embedding.apply(weight, ids=ids)
