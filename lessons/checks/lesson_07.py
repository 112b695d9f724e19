"""Exercises of lesson 07: training."""

from functools import partial

import numpy as np

from ldm_numpy import ops, optim
from ldm_numpy.nn import Parameter
from ldm_numpy.tensor import Tensor

from ..check import Exercise
from ..solutions.lesson_07 import average


def a_step(rng):
    w, g, m = rng.standard_normal((3, 5))
    v = rng.random(5)
    numbers = {"t": 3, "lr": 0.1, "b1": 0.9, "b2": 0.98, "eps": 0.1, "decay": 0.3}
    return {"w": w, "g": g, "m": m, "v": v} | numbers


def a_run(rng):
    return {"w": 2 + rng.standard_normal((6, 3)), "d": 0.8}


def three_gradients(rng):
    size = 3 if rng.random() > 0.55 else 0.1  # seed 0 is clipped, seeds 1 and 2 are not
    gradients = [size * rng.standard_normal(shape) for shape in ((2, 3), (4,), (1, 2, 2))]
    return {"gradients": gradients, "most": 2.0}


def a_batch(rng):
    s, labels = 2 * rng.standard_normal((4, 5)), rng.integers(0, 5, 4)
    return {"gy": rng.standard_normal(()), "s": s, "labels": labels}


def adamw(w, g, m, v, t, lr, b1, b2, eps, decay):
    parameter = Parameter((1, len(w)))  # a matrix: those decay
    parameter.data = w[None].copy()
    optimizer = optim.AdamW([parameter], betas=(b1, b2), eps=eps, weight_decay=decay)
    optimizer.gradient[...] = g
    optimizer.load_state_dict({"m": m, "v": v, "step_count": t - 1})
    optimizer.step(lr)
    return optimizer.weights, optimizer.m, optimizer.v


def clip(gradients, most):
    parameters = [Parameter(g.shape) for g in gradients]
    for parameter in parameters:
        parameter.data = parameter.data.astype(np.float64)
    optimizer = optim.AdamW(parameters)
    for parameter, g in zip(parameters, gradients):
        parameter.grad[...] = g
    optimizer.clip_gradient(most)
    return tuple(parameter.grad for parameter in parameters)


def cross_entropy(s, labels):
    return ops.softmax_cross_entropy(s, labels)


def cross_entropy_backward(gy, s, labels):
    s = Tensor(s, requires_grad=True)
    cross_entropy(s, labels).backward(gy)
    return s.grad


# Wrong answers ------------------------------------------------------------------------------


def adamw_otherwise(
    w, g, m, v, t, lr, b1, b2, eps, decay,
    corrected=True, coupled=False, inside=False, rate=True, late=0, kept=True
):  # fmt: skip
    """A step of AdamW with some of its mistakes."""
    g = g + decay * w if coupled else g
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    first, second = (
        (m / (1 - b1 ** (t - late)), v / (1 - b2 ** (t - late))) if corrected else (m, v)
    )
    step = lr * first / (np.sqrt(second + eps) if inside else np.sqrt(second) + eps)
    shrink = 0 if coupled else decay * (lr if rate else 1)
    return w - step - shrink * w, *((m, v) if kept else (first, second))


def average_otherwise(w, d, start=0, correct=lambda a, t, d: a / (1 - d**t), swapped=False):
    a, averages = w[0] if start else 0, []
    for t, weights in enumerate(w, start=1):
        a = (1 - d) * a + d * weights if swapped else d * a + (1 - d) * weights
        averages.append(correct(a, t, d))
    return np.array(averages)


def corrected_in_place(w, d):
    a, averages = 0, []
    for t, weights in enumerate(w, start=1):
        a = (d * a + (1 - d) * weights) / (1 - d**t)
        averages.append(a)
    return np.array(averages)


def clipped(gradients, most, norm, always=False):
    factors = [most / norm(g, gradients) for g in gradients]
    return tuple(g * (f if always else min(1, f)) for g, f in zip(gradients, factors))


def whole(g, gradients):
    return np.sqrt(sum((each**2).sum() for each in gradients))


def root_of_mean(g, gradients):
    return whole(g, gradients) / np.sqrt(sum(each.size for each in gradients))


def cross_entropy_otherwise(gy, s, labels, count=True, target=True, sign=1, axis=1):
    p = ops.softmax(s, axis=axis)
    gs = sign * (p - np.eye(s.shape[1])[labels] * target)
    return gy * gs / (len(s) if count else 1)


EXERCISES = [
    Exercise(
        "07_1_adamw",
        "adamw",
        solution=adamw,
        inputs=a_step,
        results=("w", "m", "v"),
        wrong={
            "m and v start at zero: divide by 1 - b1^t and 1 - b2^t":
                partial(adamw_otherwise, corrected=False),
            "the decay is decoupled: it takes from w, and does not join g":
                partial(adamw_otherwise, coupled=True),
            "eps is added to the root, not under it": partial(adamw_otherwise, inside=True),
            "the decay is multiplied by lr as well": partial(adamw_otherwise, rate=False),
            "t counts from 1 and is used as it is": partial(adamw_otherwise, late=1),
            "m and v are returned as in the first line: only the step has the correction":
                partial(adamw_otherwise, kept=False),
        },
    ),
    Exercise(
        "07_2_average",
        "average",
        solution=average,
        inputs=a_run,
        results=("averages",),
        wrong={
            "without the correction the average starts near zero: divide by 1 - d^t":
                partial(average_otherwise, correct=lambda a, t, d: a),
            "the correction is 1 - d^t and fades with t, not 1 - d":
                partial(average_otherwise, correct=lambda a, t, d: a / (1 - d)),
            "a starts at zero; with a start at w_1 there is nothing to correct":
                partial(average_otherwise, start=1),
            "d weighs the average, 1 - d the new weights": partial(average_otherwise, swapped=True),
            "correct what is returned, not the sum that is kept": corrected_in_place,
        },
    ),
    Exercise(
        "07_3_clip",
        "clip",
        solution=clip,
        inputs=three_gradients,
        results=("first", "second", "third"),
        wrong={
            "one norm of all gradients together; clipped apart they change their direction":
                partial(clipped, norm=lambda g, gradients: np.linalg.norm(g)),
            "scale, do not cut each number off": lambda gradients, most: tuple(
                np.clip(g, -most, most) for g in gradients
            ),
            "the norm is the root of the sum of squares, not of their mean":
                partial(clipped, norm=root_of_mean),
            "the norm is the root of the sum of squares: the root is missing":
                partial(clipped, norm=lambda g, gradients: whole(g, gradients) ** 2),
            "a gradient shorter than `most` stays as it is":
                partial(clipped, norm=whole, always=True),
        },
    ),
    Exercise(
        "07_4_cross_entropy_backward",
        "cross_entropy_backward",
        solution=cross_entropy_backward,
        inputs=a_batch,
        results=("gs",),
        wrong={
            "L is a mean over the batch: divide by N":
                partial(cross_entropy_otherwise, count=False),
            "less 1 for the right class": partial(cross_entropy_otherwise, target=False),
            "p less the right answer, not the other way round":
                partial(cross_entropy_otherwise, sign=-1),
            "softmax runs over the classes, axis 1": partial(cross_entropy_otherwise, axis=0),
            "by the chain rule everything is multiplied by gy":
                lambda gy, s, labels: cross_entropy_otherwise(1, s, labels),
        },
        forward=cross_entropy,
        wanted=("s",),
    ),
]  # fmt: skip
