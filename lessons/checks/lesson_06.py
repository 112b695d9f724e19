"""Exercises of lesson 06: attention."""

from functools import partial

import numpy as np

from ldm_numpy import ops
from ldm_numpy.models.blocks import BasicTransformerBlock
from ldm_numpy.tensor import Tensor

from ..check import Exercise


def heads_and_mask(rng):
    q, kv = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 2, 5, 6))
    look = rng.random((4, 5)) < 0.5
    look[np.arange(4), np.arange(4)] = True  # every query sees a key,
    look[0, 4] = True  # every key is seen,
    look[1, 4] = False  # and somebody may not look
    return {"q": q, "k": kv[0], "v": kv[1], "heads": 2, "look": look}


def rows(rng):
    gy, s = rng.standard_normal((2, 4, 6))
    return {"gy": gy, "s": 2 * s}


def one_head(rng):
    gy, q = rng.standard_normal((2, 2, 4, 6))
    k, v = rng.standard_normal((2, 2, 5, 6))
    return {"gy": gy, "q": q, "k": k, "v": v}


def layers(rng):
    """The context is as wide as x, so that what mixes them up runs, too."""
    block = BasicTransformerBlock(8, heads=2, context_dim=8).astype(np.float64)
    for parameter in block.parameters():
        parameter.data[...] = 0.5 * rng.standard_normal(parameter.shape)
    x, context = rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 3, 8))
    return {"x": Tensor(x), "context": Tensor(context), "block": block}


def attention(q, k, v, heads, look):
    return ops.attention(q, k, v, heads=heads, mask=look)


def softmax_backward(gy, s):
    s = Tensor(s, requires_grad=True)
    ops.softmax(s).backward(gy)
    return s.grad


def attention_backward(gy, q, k, v):
    inputs = [Tensor(a, requires_grad=True) for a in (q, k, v)]
    ops.attention(*inputs).backward(gy)
    return tuple(t.grad for t in inputs)


def transformer_block(x, context, block):
    return block(x, context)


# Wrong answers ------------------------------------------------------------------------------


def otherwise(q, k, v, heads, look, axis=-1, width=None, mixed=False, late=False):
    """Attention with some of its mistakes."""
    n, t, dim = q.shape
    d = dim // heads

    def split(x):
        if mixed:
            return x.reshape(n, heads, x.shape[1], d)
        return x.reshape(n, x.shape[1], heads, d).swapaxes(1, 2)

    scores = split(q) @ split(k).swapaxes(2, 3) / np.sqrt(width or d)
    p = ops.softmax(scores if late else np.where(look, scores, -np.inf), axis=axis)
    y = (p * look if late else p) @ split(v)
    return y.reshape(q.shape) if mixed else y.swapaxes(1, 2).reshape(n, t, dim)


def through_softmax(gy, s, slope):
    return slope(gy, ops.softmax(s))


def backward_otherwise(gy, q, k, v, slope=None, scale=True):
    """The backward pass with another derivative of softmax, or without the scale."""
    root = np.sqrt(q.shape[2])
    p = ops.softmax(q @ k.swapaxes(1, 2) / root)
    gp = gy @ v.swapaxes(1, 2)
    gs = slope(gp, p) if slope else p * (gp - (gp * p).sum(-1, keepdims=True))
    gs = gs / root if scale else gs
    return gs @ k, gs.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ gy


def without_residual(x, context, block):
    x = block.attn1(block.norm1(x))
    x = block.attn2(block.norm2(x), context)
    return block.ff(block.norm3(x))


def normalised_after(x, context, block):
    x = block.norm1(x + block.attn1(x))
    x = block.norm2(x + block.attn2(x, context))
    return block.norm3(x + block.ff(x))


def normalised_both(x, context, block):
    x = block.norm1(x)
    x = x + block.attn1(x)
    x = block.norm2(x)
    x = x + block.attn2(x, context)
    x = block.norm3(x)
    return x + block.ff(x)


def side_by_side(x, context, block):
    to_self, to_text = block.attn1(block.norm1(x)), block.attn2(block.norm2(x), context)
    return x + to_self + to_text + block.ff(block.norm3(x))


def in_turn(x, context, block, read=None, again=False):
    """`read` makes of the block, x and context what cross-attention reads; one norm for all."""
    norms = [block.norm1] * 3 if again else [block.norm1, block.norm2, block.norm3]
    x = x + block.attn1(norms[0](x))
    x = x + block.attn2(norms[1](x), read(block, x, context) if read else context)
    return x + block.ff(norms[2](x))


SLOPES = {
    "one score moves all weights of its row: subtract the sum of gradient times weight":
        lambda gp, p: p * gp,
    "p (1 - p) is the diagonal of the Jacobian only: - p p^T is missing":
        lambda gp, p: p * (1 - p) * gp,
}  # fmt: skip

EXERCISES = [
    Exercise(
        "06_1_attention",
        "attention",
        solution=attention,
        inputs=heads_and_mask,
        results=("y",),
        wrong={
            "scores are divided by the root of a head's width, D / heads, not of D":
                partial(otherwise, width=6),
            "the scores must be divided by the root of D / heads": partial(otherwise, width=1),
            "softmax runs over the keys, the last axis of the scores": partial(otherwise, axis=-2),
            "a head is a set of columns: reshape to (N, T, heads, d), then swap T and heads":
                partial(otherwise, mixed=True),
            "mask the scores before softmax, or the weights that are left do not sum to one":
                partial(otherwise, late=True),
        },
    ),
    Exercise(
        "06_2_softmax_backward",
        "softmax_backward",
        solution=softmax_backward,
        inputs=rows,
        results=("gs",),
        wrong={hint: partial(through_softmax, slope=slope) for hint, slope in SLOPES.items()}
        | {
            "the whole bracket is multiplied by p": partial(
                through_softmax, slope=lambda gp, p: p * gp - (gp * p).sum(-1, keepdims=True)
            ),
            "each row has a sum of its own, over the last axis": partial(
                through_softmax, slope=lambda gp, p: p * (gp - (gp * p).sum())
            ),
        },
        forward=lambda s: ops.softmax(s),
        wanted=("s",),
    ),
    Exercise(
        "06_3_attention_backward",
        "attention_backward",
        solution=attention_backward,
        inputs=one_head,
        results=("gq", "gk", "gv"),
        wrong={hint: partial(backward_otherwise, slope=slope) for hint, slope in SLOPES.items()}
        | {
            "S has the factor 1 / sqrt(d), so gq and gk have it too":
                partial(backward_otherwise, scale=False),
        },
        forward=ops.attention,
        wanted=("q", "k", "v"),
    ),
    Exercise(
        "06_4_transformer_block",
        "transformer_block",
        solution=transformer_block,
        inputs=layers,
        results=("y",),
        wrong={
            "each part is added to what it reads: x + f(norm(x))": without_residual,
            "normalise what a part reads, not what it gives: x + f(norm(x))": normalised_after,
            "x is added as it is, only f reads it normalised: x + f(norm(x))": normalised_both,
            "the context is taken as it is: attn2(norm2(x), context), no norm2(context)": partial(
                in_turn, read=lambda block, x, context: block.norm2(context)
            ),
            "in cross-attention the context answers, not x": partial(
                in_turn, read=lambda block, x, context: block.norm2(x)
            ),
            "each part has a norm of its own: norm1, norm2, norm3": partial(in_turn, again=True),
            "the parts follow one another: each reads what the one before gave": side_by_side,
        },
    ),
]  # fmt: skip
