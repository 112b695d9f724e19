"""Solutions of lesson 13, where the library has none of its own."""

import math

import numpy as np


def word_map(layers, first, last, side):
    total = np.zeros((side, side))
    for weights in layers:
        own = math.isqrt(weights.shape[1])
        of_word = weights[:, :, first:last].sum(axis=2).mean(axis=0).reshape(own, own)
        total += np.kron(of_word, np.ones((side // own, side // own)))
    return total / len(layers)
