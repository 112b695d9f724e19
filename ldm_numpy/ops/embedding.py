"""Numbers as vectors: rows looked up by integer ids, and sines of what is too fine to see."""

import math

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


class FourierFeatures(Function):
    """y = [x, sin(2^n pi x) for each exponent n, cos(2^n pi x) for each], over channels.

    gx = g_x + sum over n of 2^n pi (cos(2^n pi x) g_sin - sin(2^n pi x) g_cos)
    """

    def forward(self, x, *, exponents):
        xp = array_module(x)
        self.rates = [x.dtype.type(2.0**n * math.pi) for n in exponents]
        waves = [rate * x for rate in self.rates]
        y = xp.concatenate([x, *map(xp.sin, waves), *map(xp.cos, waves)], axis=-1)
        self.save(y)
        return y

    def backward(self, gy):
        k, c = len(self.rates), gy.shape[-1] // (2 * len(self.rates) + 1)
        gx = gy[..., :c].copy()
        for i, rate in enumerate(self.rates):
            sin, cos = (slice(c * j, c * (j + 1)) for j in (1 + i, 1 + k + i))
            gx += rate * (self.saved[0][..., cos] * gy[..., sin])
            gx -= rate * (self.saved[0][..., sin] * gy[..., cos])
        return (gx,)


def fourier_features(x, exponents):
    """(..., C) -> (..., C (1 + 2 K)) for K exponents: x and waves of period 2 / 2^n in it.

    A network that reads numbers as they are cannot tell apart two that differ by a thousandth; for
    a likelihood it must. Kingma et al. 2021, "Variational diffusion models", appendix C.

    The digits that x does not have its waves cannot have either: in float32 they are noise from
    2^n |x| = 10^7 on. ValueError where 2^n pi itself is beyond the type's range.
    """
    if len(exponents) and max(exponents) + 2 > np.finfo(x.dtype).maxexp:
        raise ValueError(f"fourier_features: 2^{max(exponents)} pi is too large for {x.dtype}")
    return FourierFeatures.apply(x, exponents=tuple(exponents))
