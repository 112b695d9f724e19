"""Solutions of lesson 12, where the library has none of its own."""

from collections import Counter
from itertools import pairwise

import numpy as np


def merge_step(text, blank, new):
    tokens = [int(token) for token in text]
    pairs = Counter(pair for pair in pairwise(tokens) if blank not in pair)
    best = min(pairs, key=lambda pair: (-pairs[pair], pair))
    merged, i = [], 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == best:
            merged.append(new)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return np.array(best), np.array(merged)


def zero_shot(images, texts, log_scale):
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    classes = texts.mean(axis=1)
    classes = classes / np.linalg.norm(classes, axis=1, keepdims=True)
    z = np.exp(log_scale) * images @ classes.T
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return z.argmax(axis=1), e / e.sum(axis=1, keepdims=True)
