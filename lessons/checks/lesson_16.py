"""Exercises of lesson 16: GPU and cores."""

import math
from functools import partial

import numpy as np

from ldm_numpy.ops.attention import cut

from ..check import Exercise
from ..solutions.lesson_16 import combine, ordered_sum, softmax


class OnDevice(np.ndarray):
    """Stands in for an array on a GPU: it has operators and methods, but np.exp is not for it."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        inputs = [np.asarray(i) if isinstance(i, OnDevice) else i for i in inputs]
        y = np.asarray(getattr(ufunc, method)(*inputs, **options)).view(OnDevice)
        return y * np.nan if ufunc is np.exp else y


class Device:
    """Stands in for CuPy: NumPy's functions, for arrays OnDevice."""

    def __getattr__(self, name):
        function = getattr(np, name)
        if not callable(function):
            return function

        def on_device(*inputs, **options):
            inputs = [np.asarray(i) if isinstance(i, OnDevice) else i for i in inputs]
            return np.asarray(function(*inputs, **options)).view(OnDevice)

        return on_device


def array_module(x):
    return Device() if isinstance(x, OnDevice) else np


def shards(rng):
    return {
        "losses": rng.random(4) + 1,
        "gradients": rng.standard_normal((4, 5)),
        "counts": rng.permutation([24, 24, 16, 3]),
    }


def arrivals(rng):
    """Large numbers that cancel, and small ones between them: sums depend on their order."""
    large, small = rng.uniform(1e16, 9e16, (2, 40)), rng.uniform(1, 9, (2, 40))
    parts = np.stack([large[0], small[0], -large[0], large[1], small[1], -large[1]])  # (S, P)
    order = rng.permutation([3, 0, 5, 1, 2, 4])
    return {"arrived": parts[order], "shards": order}


def cache(rng):
    """Seed 0: full blocks leave a rest; seed 1: they do not; seed 2: not one row fits."""
    draw, most = rng.random(), int(rng.integers(5, 9))
    if draw < 0.5:
        return {"n": most, "row_bytes": 4096, "cache_bytes": 1000}
    n = 12 * most + 2 if draw > 0.6 else 4 * most
    return {"n": n, "row_bytes": 4096, "cache_bytes": 4096 * most + 4000}


def rows(rng):
    """Rows so far apart that no number suits all of them."""
    x = 3 * rng.standard_normal((2, 3, 5)) + np.array([[900.0], [0.0], [-900.0]])
    return {"x": x.view(OnDevice), "array_module": array_module}


def row_blocks(n, row_bytes, cache_bytes):
    blocks = cut(n, cache_bytes // row_bytes)
    return np.array([(block.start, block.stop) for block in blocks])


# Wrong answers ------------------------------------------------------------------------------


def weighted(losses, gradients, counts, weights):
    share = weights(counts)
    return share @ losses, share @ gradients


def added(arrived, shards, order):
    return sum(arrived[i] for i in order(shards))


def full_blocks(n, row_bytes, cache_bytes, up=0):
    most = max(1, cache_bytes // row_bytes + up)
    return np.array([(i, min(i + most, n)) for i in range(0, n, most)])


def blocks(n, row_bytes, cache_bytes, count):
    """Nearly equal ones; `count` makes their number of n and the rows that fit, a fraction."""
    count = count(n, cache_bytes / row_bytes)
    return np.array([(i * n // count, (i + 1) * n // count) for i in range(count)])


def exponentials(x, array_module, axis=-1, of=-1, highest=True, exp=None):
    exp = exp or array_module(x).exp
    with np.errstate(all="ignore"):
        y = exp(x - x.max(of, keepdims=True) if highest else x)
        return y / y.sum(axis, keepdims=True)


EXERCISES = [
    Exercise(
        "16_1_combine",
        "combine",
        solution=combine,
        inputs=shards,
        results=("loss", "gradient"),
        wrong={
            "shards differ in size: weight each with n_k / N": partial(
                weighted, weights=lambda counts: np.full(len(counts), 1 / len(counts))
            ),
            "a mean of means, not a sum: divide by N": partial(
                weighted, weights=lambda counts: counts.astype(float)
            ),
            "the losses are means already: n_k / N, not 1 / N": partial(
                weighted, weights=lambda counts: np.full(len(counts), 1 / counts.sum())
            ),
        },
    ),
    Exercise(
        "16_2_ordered_sum",
        "ordered_sum",
        solution=ordered_sum,
        inputs=arrivals,
        results=("sum",),
        wrong={
            "this is the order of arrival": partial(added, order=lambda s: range(len(s))),
            "shards[i] says whose arrived[i] is, not where shard i lies: np.argsort": partial(
                added, order=lambda s: s
            ),
            "begin with shard 0, not with the last": partial(
                added, order=lambda s: np.argsort(s)[::-1]
            ),
        },
    ),
    Exercise(
        "16_3_row_blocks",
        "row_blocks",
        solution=row_blocks,
        inputs=cache,
        results=("blocks",),
        wrong={
            "nearly equal blocks, not full ones and a rest": full_blocks,
            "these blocks do not fit: round cache_bytes / row_bytes down": partial(
                full_blocks, up=1
            ),
            "these blocks do not fit: round the number of blocks up": partial(
                blocks, count=lambda n, fit: n // max(1, int(fit))
            ),
            "n // most + 1 is one block too many where most divides n": partial(
                blocks, count=lambda n, fit: n // max(1, int(fit)) + 1
            ),
            "whole rows only, and at least one: most = max(1, cache_bytes // row_bytes)": partial(
                blocks, count=lambda n, fit: math.ceil(n / fit)
            ),
            "where no row fits a block still holds one, not all: max(1, ...)": partial(
                blocks, count=lambda n, fit: math.ceil(n / int(fit)) if fit >= 1 else 1
            ),
        },
    ),
    Exercise(
        "16_4_softmax",
        "softmax",
        solution=softmax,
        inputs=rows,
        results=("y",),
        wrong={
            "np.exp is for NumPy's arrays: xp = array_module(x), then xp.exp": partial(
                exponentials, exp=np.exp
            ),
            "subtract the largest first: exp overflows": partial(exponentials, highest=False),
            "each row has a largest of its own: one for all of x is too far away": partial(
                exponentials, of=None
            ),
            "over the last axis": partial(exponentials, axis=0, of=0),
            "each row has a sum of its own, over the last axis": partial(exponentials, axis=None),
            "all of x must not share one largest number and one sum": partial(
                exponentials, axis=None, of=None
            ),
        },
    ),
]
