"""Exercises of lesson 13: drawing what is asked."""

from functools import partial
from itertools import pairwise

import numpy as np

from ldm_numpy import ops
from ldm_numpy.diffusion import GaussianMixture, guide
from ldm_numpy.diffusion.samplers import euler

from ..check import Exercise
from ..solutions.lesson_13 import word_map


def estimates(rng):
    d_u, d_c = rng.standard_normal((2, 3, 4, 4, 2)) * np.reshape([0.5, 1.0, 2.0], (3, 1, 1, 1))
    return {"d_u": d_u, "d_c": d_c + 0.3, "w": 2.5, "r": 0.7}


def three_gaussians(rng):
    mixture = GaussianMixture([1, 2, 3], rng.standard_normal((3, 2)), [0.3 * np.eye(2)] * 3)
    return {
        "denoiser": mixture.denoiser,
        "x": 4 * rng.standard_normal((5, 2)),
        "sigmas": [4.0, 2.5, 1.5, 0.8, 0.4, 0.2, 0.0],
        "cond": np.array([1.0, 0.0, 0.0]),
        "uncond": np.array([1.0, 2.0, 3.0]),
        "w": 2.4,
        "low": 0.4,  # a level itself: it is outside
        "high": 2.5,  # and this one is inside
    }


def feature_map(rng):
    given = {"x": rng.standard_normal((2, 3, 2, 6)), "c": rng.standard_normal((2, 4, 5))}
    for name, shape in {"wq": (6, 6), "wk": (5, 6), "wv": (5, 6), "wo": (6, 6)}.items():
        given[name] = rng.standard_normal(shape)
    return given | {"bo": rng.standard_normal(6), "heads": 2}


def two_layers(rng):
    layers = [rng.random((2, 16, 6)), rng.random((3, 4, 6)), rng.random((2, 16, 6))]
    layers = [weights / weights.sum(axis=2, keepdims=True) for weights in layers]
    return {"layers": layers, "first": 2, "last": 4, "side": 4}


def guided(d_u, d_c, w, r):
    """The library's, of a D that answers with its condition."""
    return guide(lambda x, sigma, cond: cond, w, d_u, guidance_rescale=r)(d_u, 1.0, d_c)


def sample(denoiser, x, sigmas, cond, uncond, w, low, high):
    D = guide(denoiser, w, uncond, interval=(low, high))
    return euler(D, x, sigmas, cond)


def cross_attention(x, c, wq, wk, wv, wo, bo, heads):
    tokens = x.reshape(len(x), -1, x.shape[3])  # (N, H W, D)
    y = ops.attention(tokens @ wq, c @ wk, c @ wv, heads=heads)
    return ops.linear(y, wo, bo).reshape(*x.shape)


# Wrong answers ------------------------------------------------------------------------------


def guided_parts(d_u, d_c, w, r, swapped=False, sign=1, axes=(1, 2, 3), inverted=False, mixed=True):
    if swapped:
        d_u, d_c = d_c, d_u
    result = d_u + sign * w * (d_c - d_u)
    a = (d_u if swapped else d_c).std(axis=axes, keepdims=True)
    b = result.std(axis=axes, keepdims=True)
    back = b / a if inverted else a / b
    return result * (r * back + 1 - r if mixed else back)


def past_the_condition(d_u, d_c, w, r):
    return guided_parts(d_u, d_c, w + 1, r)


def sample_parts(
    denoiser,
    x,
    sigmas,
    cond,
    uncond,
    w,
    low,
    high,
    swapped=False,
    everywhere=False,
    outside_uncond=False,
    direction=1,
    of_next=False,
    ends=(False, True),
    where=True,
    turned=False,
    last=None,
):
    for sigma, after in pairwise(sigmas[:last]):
        given, without = denoiser(x, sigma, cond), denoiser(x, sigma, uncond)
        if swapped:
            given, without = without, given
        inside = (low <= sigma if ends[0] else low < sigma) and (
            sigma <= high if ends[1] else sigma < high
        )
        result = without if outside_uncond else given
        if inside == where or everywhere:
            change = w * (given - without)
            result = given - change if turned else without + change
        step = after if of_next and after > 0 else sigma
        x = x + direction * (after - sigma) * (x - result) / step
    return x


def attention_parts(
    x,
    c,
    wq,
    wk,
    wv,
    wo,
    bo,
    heads,
    whole_width=False,
    axis=-1,
    cut_strided=False,
    join_strided=False,
    bias=True,
    plain=False,
):
    def split(a):
        if cut_strided:
            return a.reshape(*a.shape[:2], -1, heads).transpose(0, 3, 1, 2)
        return a.reshape(*a.shape[:2], heads, -1).swapaxes(1, 2)

    tokens = x.reshape(len(x), -1, x.shape[3])
    q, k, v = split(tokens @ wq), split(c @ wk), split(c @ wv)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(x.shape[3] if whole_width else q.shape[3])
    p = np.exp(scores - scores.max(axis=axis, keepdims=True))
    y = p / p.sum(axis=axis, keepdims=True) @ v  # (N, heads, H W, d)
    if plain:
        y = y.reshape(tokens.shape)
    elif join_strided:
        y = y.transpose(0, 2, 3, 1).reshape(tokens.shape)
    else:
        y = y.swapaxes(1, 2).reshape(tokens.shape)
    return (y @ wo + (bo if bias else 0)).reshape(x.shape)


def map_parts(
    layers,
    first,
    last,
    side,
    over=np.sum,
    heads=np.mean,
    tiled=False,
    turned=False,
    together=np.mean,
):
    maps = []
    for weights in layers:
        own = int(np.sqrt(weights.shape[1]))
        of_word = heads(over(weights[:, :, first:last], axis=2), axis=0).reshape(own, own)
        of_word = of_word.T if turned else of_word
        f = side // own
        maps.append(np.tile(of_word, (f, f)) if tiled else np.kron(of_word, np.ones((f, f))))
    return together(maps, axis=0)


def by_heads(layers, first, last, side):
    """The mean over all heads of all layers: a layer with more heads counts more."""
    counts = [len(weights) for weights in layers]
    maps = [word_map([weights], first, last, side) for weights in layers]
    return np.average(maps, axis=0, weights=counts)


def one_more(layers, first, last, side):
    return word_map(layers, first, last + 1, side)


EXERCISES = [
    Exercise(
        "13_1_guided",
        "guided",
        solution=guided,
        inputs=estimates,
        results=("guided",),
        wrong={
            "the branches are swapped: w counts what the caption adds to D_u": partial(
                guided_parts, swapped=True
            ),
            "the sign: D_c - D_u, added": partial(guided_parts, sign=-1),
            "w = 1 must be D_c alone: start from D_u, not from D_c": past_the_condition,
            "the deviation is of each sample, over its own dimensions": partial(
                guided_parts, axes=None
            ),
            "the deviation goes over the axes (1, 2, 3), not over the batch": partial(
                guided_parts, axes=0
            ),
            "the deviation goes over all of (1, 2, 3): channels count, too": partial(
                guided_parts, axes=(1, 2)
            ),
            "a / b, not b / a: multiplied with D_w it gives the deviation of D_c": partial(
                guided_parts, inverted=True
            ),
            "r says how much of it: r a / b + 1 - r": partial(guided_parts, mixed=False),
        },
    ),
    Exercise(
        "13_2_guided_euler",
        "sample",
        solution=sample,
        inputs=three_gaussians,
        results=("x",),
        wrong={
            "the branches are swapped: D_c is of cond": partial(sample_parts, swapped=True),
            "D_u + w (D_c - D_u), not D_c + w (D_u - D_c)": partial(sample_parts, turned=True),
            "guidance inside the interval, D_c outside, not the reverse": partial(
                sample_parts, where=False
            ),
            "guidance only where low < sigma <= high": partial(sample_parts, everywhere=True),
            "outside the interval it is D_c, not D_u": partial(sample_parts, outside_uncond=True),
            "low itself is outside the interval": partial(sample_parts, ends=(True, True)),
            "high itself is inside the interval": partial(sample_parts, ends=(False, False)),
            "the sign: s - sigma is negative, and x moves towards D": partial(
                sample_parts, direction=-1
            ),
            "the slope is (x - D) / sigma, of the level that x has": partial(
                sample_parts, of_next=True
            ),
            "the last level is 0, and the step to it counts": partial(sample_parts, last=-1),
        },
    ),
    Exercise(
        "13_3_cross_attention",
        "cross_attention",
        solution=cross_attention,
        inputs=feature_map,
        results=("y",),
        wrong={
            "divide by the root of a head's width, D / heads": partial(
                attention_parts, whole_width=True
            ),
            "softmax goes over the tokens, not over the pixels": partial(attention_parts, axis=-2),
            "a head is a run of neighbouring numbers: reshape D to (heads, d)": partial(
                attention_parts, cut_strided=True, join_strided=True
            ),
            "a head is a run of d numbers: cut q, k and v as (heads, d), not (d, heads)": partial(
                attention_parts, cut_strided=True
            ),
            "heads lie one after the other in y: join them as (heads, d), not (d, heads)": partial(
                attention_parts, join_strided=True
            ),
            "put the heads side by side: move their axis back before the last reshape": partial(
                attention_parts, plain=True
            ),
            "bo is missing": partial(attention_parts, bias=False),
        },
    ),
    Exercise(
        "13_4_word_map",
        "word_map",
        solution=word_map,
        inputs=two_layers,
        results=("map",),
        wrong={
            "the word has the attention of all its tokens: sum them": partial(
                map_parts, over=np.mean
            ),
            "average over heads": partial(map_parts, heads=np.sum),
            "average over layers: divide the sum by their number": partial(
                map_parts, together=np.sum
            ),
            "enlarge each pixel to a square; do not lay the map out again and again": partial(
                map_parts, tiled=True
            ),
            "pixels come row by row": partial(map_parts, turned=True),
            "average over heads first: each layer counts the same": by_heads,
            "`last` is not a token of the word": one_more,
        },
    ),
]
