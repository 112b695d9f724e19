"""Exercises of lesson 16: GPU and cores."""

from functools import partial

import numpy as np

from ldm_numpy import ops
from ldm_numpy.ops.attention import cut

from ..check import Exercise
from ..solutions.lesson_16 import combine, ordered_sum


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
    most = int(rng.integers(5, 9))
    return {"n": 3 * most + 2, "row_bytes": 4096, "cache_bytes": 4096 * most + 1000}


def rows(rng):
    return {"x": 900 + 3 * rng.standard_normal((2, 3, 5))}


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
    most = cache_bytes // row_bytes + up
    return np.array([(i, min(i + most, n)) for i in range(0, n, most)])


def larger_blocks(n, row_bytes, cache_bytes):
    count = n // (cache_bytes // row_bytes)
    return np.array([(i * n // count, (i + 1) * n // count) for i in range(count)])


def exponentials(x, axis=-1, highest=True, keepdims=True):
    with np.errstate(over="ignore", invalid="ignore"):
        y = np.exp(x - x.max(axis, keepdims=True) if highest else x)
        return y / y.sum(axis, keepdims=keepdims)


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
            "these blocks do not fit: round the number of blocks up": larger_blocks,
        },
    ),
    Exercise(
        "16_4_softmax",
        "softmax",
        solution=ops.softmax,
        inputs=rows,
        results=("y",),
        wrong={
            "subtract the largest first: exp overflows": partial(exponentials, highest=False),
            "over the last axis": partial(exponentials, axis=0),
            "all of x must not share one sum": partial(exponentials, axis=None),
        },
    ),
]
