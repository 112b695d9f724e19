"""Exercises of lesson 02: tensors."""

from functools import partial

import numpy as np
from scipy.special import logsumexp

from ldm_numpy import ops, primitives
from ldm_numpy.tensor import Tensor

from ..check import Exercise


def stretched(rng):
    """Sizes that do not give it away if axes are counted from the left."""
    return {"g": rng.standard_normal((2, 4, 2, 5)), "shape": (4, 1, 5)}


def matrices(rng):
    """Shapes that do not give a missing transpose away."""
    gy, a = rng.standard_normal((2, 4, 2, 3))
    return {"gy": gy, "a": a, "b": rng.standard_normal((3, 3))}


def rows(rng):
    gy, x = rng.standard_normal((6, 3)), rng.standard_normal((5, 3))
    return {"gy": gy, "x": x, "index": rng.permutation([0, 2, 2, 4, 0, 2])}


def large(rng):
    x = rng.standard_normal((4, 5)) + np.array([[0.0], [800.0], [-800.0], [3.0]])
    return {"gy": rng.standard_normal(4), "x": x}


def matmul_backward(gy, a, b):
    inputs = [Tensor(array, requires_grad=True) for array in (a, b)]
    (inputs[0] @ inputs[1]).backward(gy)
    return tuple(t.grad for t in inputs)


def getitem_backward(gy, x, index):
    t = Tensor(x, requires_grad=True)
    t[index].backward(gy)
    return t.grad


def log_sum_exp_backward(gy, x):
    return gy[:, None] * ops.softmax(x)


# Wrong answers ------------------------------------------------------------------------------


def last_of_equals(gy, x, index):
    gx = np.zeros_like(x)
    gx[index] += gy
    return gx


def mean_of_equals(gy, x, index):
    counts = np.bincount(index, minlength=len(x))
    return getitem_backward(gy, x, index) / np.maximum(counts, 1)[:, None]


def scaled_by_count(gy, x, index):
    return last_of_equals(gy, x, index) * np.bincount(index, minlength=len(x))[:, None]


def chosen_rows(gy, x, index):
    return getitem_backward(gy, x, index)[np.unique(index)]


def exponentials(gy, x, highest=0.0, axis=1):
    with np.errstate(all="ignore"):
        e = np.exp(x - highest)
        return gy[:, None] * e / e.sum(axis=axis, keepdims=True)


def by_largest(gy, x, of=1, axis=1):
    return exponentials(gy, x, x.max(axis=of, keepdims=True), axis)


EXERCISES = [
    Exercise(
        "02_1_unbroadcast",
        "unbroadcast",
        solution=primitives.unbroadcast,
        inputs=stretched,
        results=("gx",),
        wrong={
            "axes in front, which x does not have, are summed as well":
                lambda g, shape: g.sum(axis=2, keepdims=True),
            "new axes in front are summed as well, and go: x does not have them":
                lambda g, shape: g.sum(axis=2),
            "shapes line up from the right: axis i of x is axis i + 1 of this g":
                lambda g, shape: g.sum(axis=1).reshape(shape),
            "shapes line up from the right: skip the new axes in front when you compare lengths":
                lambda g, shape: g.sum(axis=1, keepdims=True),
            "axes where x has length 1 are summed as well": lambda g, shape: g.sum(axis=0),
            "an axis of length 1 stays: the gradient has the shape of x":
                lambda g, shape: g.sum(axis=(0, 2)),
            "every copy adds its gradient: a sum, not a mean":
                lambda g, shape: g.mean(axis=(0, 2)).reshape(shape),
            "every copy adds its gradient, not only the first":
                lambda g, shape: g[0, :, :1],
        },
    ),
    Exercise(
        "02_2_matmul_backward",
        "matmul_backward",
        solution=matmul_backward,
        inputs=matrices,
        results=("ga", "gb"),
        wrong={
            "ga = gy b^T: b is not transposed":
                lambda gy, a, b: (gy @ b, (a.swapaxes(1, 2) @ gy).sum(axis=0)),
            "gb_jk = sum a_nij gy_nik: yours is its transpose":
                lambda gy, a, b: (gy @ b.T, (gy.swapaxes(1, 2) @ a).sum(axis=0)),
            "one b was used N times: sum gb over the batch":
                lambda gy, a, b: (gy @ b.T, a.swapaxes(1, 2) @ gy),
            "one b was used N times: gb is a sum over the batch, not a mean":
                lambda gy, a, b: (gy @ b.T, (a.swapaxes(1, 2) @ gy).mean(axis=0)),
            "one b was used N times: gb is the sum over the batch, not its element [0]":
                lambda gy, a, b: (gy @ b.T, a[0].T @ gy[0]),
        },
        forward=lambda a, b: a @ b,
        wanted=("a", "b"),
    ),
    Exercise(
        "02_3_getitem_backward",
        "getitem_backward",
        solution=getitem_backward,
        inputs=rows,
        results=("gx",),
        wrong={
            "where an index comes twice, gx[index] += gy keeps only the last": last_of_equals,
            "a row chosen twice gets the sum of its gradients, not their mean": mean_of_equals,
            "a row chosen twice gets the sum of different gradients, not one of them twice":
                scaled_by_count,
            "a row that was not chosen has a gradient, too: zero": chosen_rows,
        },
        forward=lambda x, index: x[index],
        wanted=("x",),
    ),
    Exercise(
        "02_4_log_sum_exp_backward",
        "log_sum_exp_backward",
        solution=log_sum_exp_backward,
        inputs=large,
        results=("gx",),
        wrong={
            "take the largest number of each row away before exp": exponentials,
            "the largest of all of x leaves nothing of rows far below it: a row has its own":
                partial(by_largest, of=None),
            "one largest and one sum for all of x: each row needs its own, axis=1":
                partial(by_largest, of=None, axis=None),
            "the sum goes over a row, axis 1, not over the whole array":
                partial(by_largest, axis=None),
            "each row has a sum of its own: axis 1":
                lambda gy, x: gy[:, None] * ops.softmax(x, axis=0),
            "start from gy, what has arrived at y": lambda gy, x: ops.softmax(x),
            "the derivative of ln s is 1/s: divide by the sum of exp":
                lambda gy, x: gy[:, None] * np.exp(x - x.max(axis=1, keepdims=True)),
        },
        forward=lambda x: logsumexp(x, axis=1),
        wanted=("x",),
    ),
]  # fmt: skip
