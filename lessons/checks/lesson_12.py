"""Exercises of lesson 12: words and images."""

from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
from scipy.special import softmax

from ldm_numpy import ops
from ldm_numpy.tensor import Tensor

from ..check import Exercise
from ..solutions.lesson_12 import merge_step, zero_shot


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def words(rng):
    """(a, a) is as frequent as two other pairs, that come first; one ends in more words."""
    blank, a, b, c, d = np.sort(rng.choice(50, 5, replace=False))
    more = [[c, b, d], [c, b, d], [a, a, a, d], [a, a, d]]
    order = [[c, b, d], *(more[i] for i in rng.permutation(4))]
    text = np.concatenate([[*word, blank] for word in order])
    return {"text": text, "blank": int(blank), "new": 60}


def pairs(rng):
    """Pictures, texts and which of them fit; not symmetric: a general text fits many pictures."""
    image, text = unit(rng.standard_normal((2, 5, 4)))
    positives = np.eye(5, dtype=bool)
    positives[:, 0] = True
    positives[1, 2] = positives[3, 2] = True
    return {"image": image, "text": text, "log_scale": np.array(1.3), "positives": positives}


def backward_inputs(rng):
    return {"gy": np.array(1.0 + rng.random())} | pairs(rng)


def several_texts(rng):
    classes = rng.standard_normal((3, 1, 6))
    texts = unit(classes + [[0.2], [1.0], [2.0]] * rng.standard_normal((3, 3, 6)))
    images = rng.standard_normal((4, 6)) * [[0.5], [1.0], [2.0], [4.0]]
    return {"images": images, "texts": texts, "log_scale": 1.5}


def contrastive_loss(image, text, log_scale, positives):
    return ops.contrastive_loss(Tensor(image), text, log_scale, positives).data


def contrastive_backward(gy, image, text, log_scale, positives):
    inputs = [Tensor(a, requires_grad=True) for a in (image, text, log_scale)]
    ops.contrastive_loss(*inputs, positives).backward(gy)
    return tuple(t.grad for t in inputs)


# Wrong answers ------------------------------------------------------------------------------


def joined(text, blank, new):
    return merge_step(text, None, new)


def first_seen(text, blank, new):
    """Of equally frequent pairs the one that was seen first."""
    tokens = [int(token) for token in text]
    counted = Counter(pair for pair in pairwise(tokens) if blank not in pair)
    best = counted.most_common(1)[0][0]
    return np.array(best), replaced(tokens, best, new)


def replaced(tokens, best, new):
    merged = []
    for token in tokens:
        merged.append(token)
        if tuple(merged[-2:]) == best:
            merged[-2:] = [new]
    return np.array(merged)


def overlapping(text, blank, new):
    best, _ = merge_step(text, blank, new)
    tokens = [int(token) for token in text]
    follows = [False] + [pair == tuple(best) for pair in pairwise(tokens)]
    starts = [*follows[1:], False]
    merged = [new if s else t for t, s, f in zip(tokens, starts, follows) if s or not f]
    return best, np.array(merged)


def only_once(text, blank, new):
    best, _ = merge_step(text, blank, new)
    tokens = [int(token) for token in text]
    i = next(i for i, pair in enumerate(pairwise(tokens)) if pair == tuple(best))
    return best, np.array([*tokens[:i], new, *tokens[i + 2 :]])


def backwards(text, blank, new):
    best, _ = merge_step(text, blank, new)
    tokens = [int(token) for token in text[::-1]]
    return best, replaced(tokens, tuple(best)[::-1], new)[::-1]


def parts(
    image,
    text,
    log_scale,
    positives,
    gy=None,
    axes=(1, 0),
    scale=np.exp,
    spread=True,
    target_axes=None,
    factor=True,
    transpose=True,
    of_scale=True,
    diagonal=False,
    directions=None,
):
    """The loss, or with `gy` its gradients, with some of its parts wrong."""
    cosines, n = image @ text.T, len(image)
    z = scale(log_scale) * cosines
    positives = np.eye(n) if diagonal else positives
    count = (directions or len(axes)) * n
    loss, gz = 0, 0
    for axis, over in zip(axes, target_axes or axes):
        p = softmax(z, axis=axis)
        target = positives / positives.sum(axis=over, keepdims=True) if spread else positives
        loss = loss - (target * np.log(p)).sum() / count
        gz = gz + (p - target) / count
    if gy is None:
        return loss
    gz = gy * gz
    e = np.exp(log_scale) if factor else 1.0
    back = gz.T if transpose else gz
    return e * gz @ text, e * back @ image, (gz * (z if of_scale else cosines)).sum()


def forgetful(gy, **given):
    return parts(**given, gy=1.0)


def zero_shot_parts(images, texts, log_scale, lengths=True, again=True, axis=1, scale=np.exp):
    classes = texts.mean(axis=1)
    if again:
        classes = unit(classes)
    z = scale(log_scale) * (unit(images) if lengths else images) @ classes.T
    return z.argmax(axis=1), softmax(z, axis=axis)


COMMON = {
    "the scale is e^s, not s": {"scale": float},
    "both directions count: q is the softmax over columns": {"axes": (1,)},
    "several right answers share a 1: divide the positives by their number": {"spread": False},
    "for p divide by the number in the row, for q by that in the column": {"target_axes": (1, 1)},
    "R and C are of all positives, not of the diagonal: texts repeat": {"diagonal": True},
    "two directions, each with N rows: divide by 2N, not by N": {"directions": 1},
}

EXERCISES = [
    Exercise(
        "12_1_merge",
        "merge_step",
        solution=merge_step,
        inputs=words,
        results=("pair", "merged"),
        wrong={
            "a pair with a blank in it does not count": joined,
            "of equally frequent pairs the smallest is chosen": first_seen,
            "what has been merged is used up: a a a becomes new a, not new new": overlapping,
            "replace every occurrence, not the first alone": only_once,
            "merge from the left: a a a becomes new a, not a new": backwards,
        },
    ),
    Exercise(
        "12_2_contrastive_loss",
        "contrastive_loss",
        solution=contrastive_loss,
        inputs=pairs,
        results=("loss",),
        wrong={hint: partial(parts, **how) for hint, how in COMMON.items()},
    ),
    Exercise(
        "12_3_contrastive_backward",
        "contrastive_backward",
        solution=contrastive_backward,
        inputs=backward_inputs,
        results=("gimage", "gtext", "glog_scale"),
        wrong={hint: partial(parts, **how) for hint, how in COMMON.items()}
        | {
            "Z holds the factor e^s, so gI and gT do as well": partial(parts, factor=False),
            "gT = e^s gZ^T I: gZ is transposed": partial(parts, transpose=False),
            "dZ = Z ds: gs is the sum of gZ Z, with the factor e^s": partial(parts, of_scale=False),
            "every gradient is multiplied by gy": forgetful,
        },
        forward=contrastive_loss,
        wanted=("image", "text", "log_scale"),
    ),
    Exercise(
        "12_4_zero_shot",
        "zero_shot",
        solution=zero_shot,
        inputs=several_texts,
        results=("classes", "p"),
        wrong={
            "the vectors of the images must have length 1": partial(zero_shot_parts, lengths=False),
            "bring the mean of a class's texts back to length 1": partial(
                zero_shot_parts, again=False
            ),
            "softmax goes over the classes, axis 1": partial(zero_shot_parts, axis=0),
            "the scale is e^s, not s": partial(zero_shot_parts, scale=float),
        },
    ),
]
