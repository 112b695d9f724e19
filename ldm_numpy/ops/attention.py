"""Attention: every query looks softly into a dictionary of keys and values."""

import math

from ..backend import array_module
from ..function import Function, raw
from .activation import stable_softmax


def split_heads(x, heads: int):
    """(N, T, D) -> (N, heads, T, D / heads), a view."""
    n, t, d = x.shape
    return x.reshape(n, t, heads, d // heads).transpose(0, 2, 1, 3)


def merge_heads(x):
    """(N, heads, T, d) -> (N, T, heads * d): the adjoint, and inverse, of split_heads."""
    n, heads, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(n, t, heads * d)


class Attention(Function):
    """y = P v,  P = softmax(S),  S = q k^T / sqrt(d), separately for each head of width d.

    Backward:
        gv = P^T gy,  gP = gy v^T
        gS = P (gP - sum over keys of gP P)      (softmax)
        gq = gS k / sqrt(d),  gk = gS^T q / sqrt(d)
    (Vaswani et al. 2017, "Attention is all you need", equation 1)
    """

    def forward(self, q, k, v, *, heads: int, mask, recorder):
        q, k, v = (split_heads(x, heads) for x in (q, k, v))
        self.scale = 1 / math.sqrt(q.shape[-1])
        scores = (q * self.scale) @ k.swapaxes(-1, -2)  # (N, heads, T, S)
        weights = stable_softmax(scores) if mask is None else masked_softmax(scores, mask)
        if recorder is not None:
            recorder(weights)
        self.save(q, k, v, weights)
        return merge_heads(weights @ v)

    def backward(self, gy):
        q, k, v, weights = self.saved
        gy = split_heads(gy, q.shape[1])  # (N, heads, T, d)
        gv = merge_heads(weights.swapaxes(-1, -2) @ gy) if self.needs[2] else None
        gs = gy @ v.swapaxes(-1, -2)  # (N, heads, T, S)
        gs -= (gs * weights).sum(-1, keepdims=True)
        gs *= weights
        gs *= self.scale
        gq = merge_heads(gs @ k) if self.needs[0] else None
        gk = merge_heads(gs.swapaxes(-1, -2) @ q) if self.needs[1] else None
        return gq, gk, gv


def masked_softmax(scores, mask):
    """Softmax over the last axis among the places where `mask` is true; all zero where none is."""
    xp = array_module(scores)
    lowest = xp.finfo(scores.dtype).min
    weights = xp.where(mask, scores, lowest)
    weights -= weights.max(-1, keepdims=True)
    xp.exp(weights, out=weights)
    weights *= mask
    weights /= xp.maximum(weights.sum(-1, keepdims=True), xp.finfo(scores.dtype).tiny)
    return weights


def attention(q, k, v, *, heads: int = 1, mask=None, causal: bool = False, recorder=None):
    """Multi-head attention of queries q (N, T, D) on keys k and values v (N, S, D) -> (N, T, D).

    Args:
        heads: D is cut into so many pieces, each attending on its own
        mask: booleans that broadcast to (N, heads, T, S), true where a query may look
        causal: query t may look at keys 0..t only (together with `mask`, if both are given)
        recorder: called with the weights (N, heads, T, S)

    A query that may look nowhere returns zero. Raises ValueError where shapes do not fit.
    """
    if q.shape[-1] % heads:
        raise ValueError(f"attention: {heads} heads do not divide the width {q.shape[-1]}")
    if k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"attention: q {q.shape}, k {k.shape}, v {v.shape} must be (N, T, D), (N, S, D) and "
            "(N, S, D)"
        )
    if causal:
        xp = array_module(raw(q))
        triangle = xp.tri(q.shape[1], k.shape[1], dtype=bool)  # (T, S)
        mask = triangle if mask is None else mask & triangle
    return Attention.apply(q, k, v, heads=heads, mask=mask, recorder=recorder)
