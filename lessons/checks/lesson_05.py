"""Exercises of lesson 05: normalisation."""

from functools import partial

import numpy as np

from ldm_numpy import ops
from ldm_numpy.tensor import Tensor

from ..check import Exercise


def images(rng):
    x = rng.standard_normal((2, 3, 4, 6)) * 2 + 1
    gamma, beta = rng.standard_normal((2, 6))
    return {"x": x, "gamma": gamma, "beta": beta, "groups": 3, "eps": 1e-3}


def backward_inputs(rng):
    given = images(rng)
    del given["beta"]
    return {"gy": rng.standard_normal(given["x"].shape)} | given


def rows(rng):
    gy, x = rng.standard_normal((2, 4, 5))
    return {"gy": gy, "x": x + 2, "gamma": rng.standard_normal(5), "eps": 1e-3}


def group_norm(x, gamma, beta, groups, eps):
    return ops.group_norm(x, gamma, beta, groups=groups, eps=eps)


def group_norm_backward(gy, x, gamma, groups, eps):
    inputs = [Tensor(a, requires_grad=True) for a in (x, gamma, np.zeros_like(gamma))]
    ops.group_norm(*inputs, groups=groups, eps=eps).backward(gy)
    return tuple(t.grad for t in inputs)


def layer_norm_backward(gy, x, gamma, eps):
    inputs = [Tensor(a, requires_grad=True) for a in (x, gamma, np.zeros_like(gamma))]
    ops.layer_norm(*inputs, eps=eps).backward(gy)
    return tuple(t.grad for t in inputs)


# Wrong answers ------------------------------------------------------------------------------


def deviation(v, eps):
    return np.sqrt(v + eps)


def normalised(x, gamma, beta, groups, eps, axes=(1, 2, 4), by=deviation, less=0):
    split = x.reshape(*x.shape[:3], groups, -1)  # (N, H, W, G, C/G)
    variance = split.var(axis=axes, keepdims=True, ddof=less)
    split = (split - split.mean(axis=axes, keepdims=True)) / by(variance, eps)
    return gamma * split.reshape(x.shape) + beta


def strided(x, gamma, beta, groups, eps):
    order = np.arange(x.shape[3]).reshape(-1, groups).T.ravel()
    mixed = ops.group_norm(x[..., order], np.ones_like(gamma), 0 * beta, groups=groups, eps=eps)
    return gamma * mixed[..., np.argsort(order)] + beta


def terms(of_mean, of_spread, scaled=True, rows=False, axes=(1, 2, 4), means=None, product=True):
    """A backward pass with some of its terms: GroupNorm's, or LayerNorm's (`rows`).

    axes: of all means; `means`: of those of the gradient, where these differ
    """

    def mean(a):
        return a.mean(axis=means or axes, keepdims=True)

    def backward(gy, x, gamma, eps, groups=1):
        shape = (len(x), 1, 1, 1, -1) if rows else (*x.shape[:3], groups, -1)
        split = x.reshape(shape)
        r = 1 / np.sqrt(split.var(axis=axes, keepdims=True) + eps)
        normed = (split - split.mean(axis=axes, keepdims=True)) * r
        g = (gamma * gy if scaled else gy).reshape(split.shape)
        gx = r * (g - of_mean * mean(g) - of_spread * normed * mean(g * normed if product else g))
        over = tuple(range(x.ndim - 1))
        return gx.reshape(x.shape), (gy * normed.reshape(x.shape)).sum(over), gy.sum(over)

    return backward


FORGOTTEN = {
    "the mean depends on x as well: the term mean(g) is missing": (0, 1),
    "the variance depends on x as well: the term x^ mean(g x^) is missing": (1, 0),
    "m and r were taken for constants: both means are missing": (0, 0),
}
SAME_MEAN = "the last term has mean(g x^), not mean(g): multiply by x^ before the mean, too"
UNSCALED = "gx must start from gamma gy, not from gy"

EXERCISES = [
    Exercise(
        "05_1_group_norm",
        "group_norm",
        solution=group_norm,
        inputs=images,
        results=("y",),
        wrong={
            "divide by the root of the variance": partial(normalised, by=np.add),
            "eps belongs under the root: sqrt(v + eps), not sqrt(v) + eps":
                partial(normalised, by=lambda v, eps: np.sqrt(v) + eps),
            "eps is missing: divide by sqrt(v + eps)":
                partial(normalised, by=lambda v, eps: np.sqrt(v)),
            "v is the mean of (x - m)^2: the sum over n numbers by n, not by n - 1":
                partial(normalised, less=1),
            "the means go over pixels and the channels of a group, not over pixels alone":
                partial(normalised, axes=(1, 2)),
            "samples must not be mixed: no mean over axis 0":
                partial(normalised, axes=(0, 1, 2, 4)),
            "the channels of a group are neighbours: reshape C to (groups, C/groups)": strided,
        },
    ),
    Exercise(
        "05_2_layer_norm_backward",
        "layer_norm_backward",
        solution=layer_norm_backward,
        inputs=rows,
        results=("gx", "ggamma", "gbeta"),
        wrong={hint: terms(*kept, rows=True) for hint, kept in FORGOTTEN.items()}
        | {
            UNSCALED: terms(1, 1, scaled=False, rows=True),
            SAME_MEAN: terms(1, 1, rows=True, product=False),
            "mean(g) and mean(g x^) are of one row each, over axis 1, not over all rows":
                terms(1, 1, rows=True, means=(0, 1, 2, 4)),
        },
        forward=lambda x, gamma, eps: ops.layer_norm(x, gamma, np.zeros_like(gamma), eps=eps),
        wanted=("x", "gamma"),
    ),
    Exercise(
        "05_3_group_norm_backward",
        "group_norm_backward",
        solution=group_norm_backward,
        inputs=backward_inputs,
        results=("gx", "ggamma", "gbeta"),
        wrong={hint: terms(*kept) for hint, kept in FORGOTTEN.items()}
        | {
            UNSCALED: terms(1, 1, scaled=False),
            SAME_MEAN: terms(1, 1, product=False),
            "the means go over pixels and the channels of a group": terms(1, 1, axes=(1, 2)),
            "x^ is right; mean(g) and mean(g x^) go over the channels of a group, too":
                terms(1, 1, means=(1, 2)),
            "mean(g) and mean(g x^) are of one sample each: no mean over axis 0":
                terms(1, 1, means=(0, 1, 2, 4)),
        },
        forward=lambda x, gamma, groups, eps: group_norm(
            x, gamma, np.zeros_like(gamma), groups, eps
        ),
        wanted=("x", "gamma"),
    ),
]  # fmt: skip
