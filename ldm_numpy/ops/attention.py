"""Attention: every query looks softly into a dictionary of keys and values."""

import math
from functools import lru_cache

import numpy as np

from ..backend import array_module
from ..function import Function
from .overflow import beyond_range, overflowed

# Bytes of scores worked on at a time. On a processor they go from one product through softmax into
# the next while they are in its second-level cache; a GPU wants few and large kernels.
CPU_BLOCK, GPU_BLOCK = 2**20, 2**30


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

    S and P exist for one block at a time: some images, some heads of one image, or some queries of
    one head. Where queries are cut, P as a whole is too large to keep; backward computes it again
    from what is small, as exp(S - log-sum-exp of S) (Dao et al. 2022, "FlashAttention", whose
    blocks cut the keys too).

    S and P are held transposed, (N, heads, S, T): keys come before queries, so that a sum or
    maximum over keys runs along all queries at once, and not along one short row after the other.
    """

    def forward(self, q, k, v, *, heads: int, mask, causal: bool, recorder):
        xp = array_module(q)
        q, k, v = (split_heads(x, heads) for x in (q, k, v))
        n, _, t, d = q.shape
        s = k.shape[2]
        self.scale = 1 / math.sqrt(d)
        self.mask = None if mask is None else xp.broadcast_to(mask, (n, heads, t, s))
        self.causal = causal
        rows = (CPU_BLOCK if xp is np else GPU_BLOCK) // (s * q.itemsize)
        self.blocks = blocks(n, heads, t, s, causal, rows)
        y = split_heads(xp.empty((n, t, heads * d), q.dtype), heads)  # (N, heads, T, d)
        seen = None if recorder is None else xp.zeros((n, heads, t, s), q.dtype)
        kept, queries = [], transposed(q, self.scale)
        for at, to in self.blocks:
            with np.errstate(over="ignore", invalid="ignore"):  # it is looked for
                p = self.scores(queries, k, at, to)  # (N, heads, S, T)
                highest = p.max(2, keepdims=True)
                # A query that may look nowhere has minus infinity, too, but not without its mask.
                beyond = overflowed(highest, q, k)
                beyond = beyond and overflowed(products(k[to], columns(queries, at)))
            if beyond:
                raise beyond_range("attention", q, k)
            whole = at[2] == slice(0, t)
            masked = causal or mask is not None
            log_sum = softmax_over_keys(p, highest, masked, with_sum=not whole)
            xp.matmul(p.swapaxes(2, 3), v[to], out=y[at])
            if True in self.needs:
                kept.append(p if whole else log_sum)
            if recorder is not None:
                seen[(*at, to[2])] = p.swapaxes(2, 3)
        if recorder is not None:
            recorder(seen)
        self.save(q, k, v, kept)
        return merge_heads(y)

    def backward(self, gy):
        q, k, v, kept = self.saved
        xp = array_module(gy)
        n, heads, t, d = q.shape
        gy = split_heads(gy, heads)
        # The first causal queries write the gradients of some keys only; later ones add to others.
        # Where there are no queries at all, nobody writes any.
        empty = xp.zeros if self.causal or not t else xp.empty
        gq, gk, gv = (
            split_heads(empty((n, x.shape[2], heads * d), gy.dtype), heads) if needed else None
            for x, needed in zip((q, k, v), self.needs)
        )
        cut_queries = any(at[2] != slice(0, t) for at, _ in self.blocks)
        queries = transposed(q, self.scale) if cut_queries else None
        scaled_gy = transposed(gy, self.scale)
        for (at, to), p in zip(self.blocks, kept):
            if cut_queries:
                log_sum, p = p, self.scores(queries, k, at, to)
                p -= log_sum
                xp.exp(p, out=p)
            gs = products(v[to], columns(scaled_gy, at))
            gs -= xp.einsum("nhst,nhst->nht", gs, p)[:, :, None]
            gs *= p  # (N, heads, S, T)
            if gq is not None:
                xp.matmul(gs.swapaxes(2, 3), k[to], out=gq[at])
            if gk is not None:
                add_product(gk[to], gs, q[at], at)
            if gv is not None:
                add_product(gv[to], p, gy[at], at)
        return tuple([g if g is None else merge_heads(g) for g in (gq, gk, gv)])

    def scores(self, queries, k, at, to):
        """S of a block, (N, heads, S, T), with minus infinity where a query may not look."""
        xp = array_module(k)
        scores = products(k[to], columns(queries, at))
        if self.mask is not None:
            look = self.mask[(*at, to[2])].swapaxes(2, 3)
            scores = xp.where(look, scores, -math.inf)
        if self.causal:
            queries, keys = xp.arange(at[2].start, at[2].stop), xp.arange(to[2].stop)
            scores = xp.where(keys[:, None] <= queries, scores, -math.inf)
        return scores


@lru_cache(maxsize=64)
def blocks(n: int, heads: int, t: int, s: int, causal: bool, rows: int) -> tuple[tuple, ...]:
    """Cut n images of t queries a head into blocks of about `rows` queries.

    A block is as many whole images as fit, else whole heads of one image, else a part of a head.
    It is a pair of indices: (images, heads, queries) into queries, (images, heads, keys) into keys.
    Causal queries need no keys that come after the last of them.
    """
    return tuple(
        ((i, h, j), (i, h, slice(0, min(j.stop, s) if causal else s)))
        for i in cut(n, rows // max(1, heads * t))
        for h in cut(heads, rows // max(1, t))
        for j in cut(t, rows)
    )


def cut(n: int, most: int) -> list[slice]:
    """0..n in nearly equal slices of at most `most`, and at least one."""
    count = math.ceil(n / max(1, most))
    return [slice(i * n // count, (i + 1) * n // count) for i in range(count)]


def transposed(x, scale: float):
    """scale x^T in each head, (N, heads, T, d) -> (N, heads, d, T), laid out as such: a product of
    two plain matrices is much faster than one that has to transpose."""
    n, heads, t, d = x.shape
    xp = array_module(x)
    return xp.multiply(x.swapaxes(2, 3), scale, out=xp.empty((n, heads, d, t), x.dtype))


def columns(x, at):
    """The block `at` of queries (images, heads, queries) of x (N, heads, d, T)."""
    return x[at[0], at[1], :, at[2]]


def products(a, b):
    """a b in each head: (N, heads, S, d), (N, heads, d, T) -> (N, heads, S, T).

    On a processor the result lies in memory as (N, S, heads, T): the queries of all heads in one
    row, which a pass over keys takes in one sweep.
    """
    if array_module(a) is not np:
        return a @ b
    n, heads, s, _ = a.shape
    y = np.empty((n, s, heads, b.shape[3]), b.dtype).transpose(0, 2, 1, 3)
    return np.matmul(a, b, out=y)


def softmax_over_keys(scores, highest, masked: bool, with_sum: bool):
    """Turn scores (N, heads, S, T), whose `highest` (N, heads, 1, T) are known, into weights, in
    place. Returns log-sum-exp (N, heads, 1, T), if it is asked for.

    Where scores are `masked`, a query may look nowhere: all of its scores are minus infinity, and
    it gets weights of zero.
    """
    xp = array_module(scores)
    if masked:
        highest = xp.maximum(highest, xp.finfo(scores.dtype).min)  # -inf - -inf would be nan
    scores -= highest
    xp.exp(scores, out=scores)
    total = scores.sum(2, keepdims=True)  # 1 or more, but for nowhere
    if masked:
        total = xp.maximum(total, xp.finfo(scores.dtype).tiny)
    scores *= 1 / total
    return highest + xp.log(total) if with_sum else None


def add_product(total, a, b, at) -> None:
    """total += a b, where total is still to be written at the first queries of a head."""
    if at[2].start == 0:
        array_module(a).matmul(a, b, out=total)
    else:
        total += a @ b


def attention(q, k, v, *, heads: int = 1, mask=None, causal: bool = False, recorder=None):
    """Multi-head attention of queries q (N, T, D) on keys k and values v (N, S, D) -> (N, T, D).

    Args:
        heads: D is cut into so many pieces, each attending on its own
        mask: booleans that broadcast to (N, heads, T, S), true where a query may look
        causal: query t may look at keys 0..t only (together with `mask`, if both are given)
        recorder: called with the weights (N, heads, T, S)

    A query that may look nowhere returns zero. Raises ValueError where shapes do not fit, and where
    there are no keys, no width, or scores beyond the type's range; a GPU is not asked for the last,
    and gives NaN.
    """
    q_shape, k_shape = q.shape, k.shape
    if len(q_shape) != 3 or k_shape != v.shape or (k_shape[0], *k_shape[2:]) != q_shape[::2]:
        raise ValueError(
            f"attention: q {q_shape}, k {k_shape}, v {v.shape} must be (N, T, D), (N, S, D) and "
            "(N, S, D)"
        )
    if heads < 1 or q_shape[2] % heads:
        raise ValueError(f"attention: {heads} heads do not divide the width {q_shape[2]}")
    if not k_shape[1] or not q_shape[2]:
        raise ValueError(f"attention: keys {k_shape} must have neither S nor D of 0")
    return Attention.apply(q, k, v, heads=heads, mask=mask, causal=causal, recorder=recorder)
