"""Exercise 02.3: the gradient of choosing rows.

    y = x[index]

index is an array of integers: it may name a row several times, or never. This is how words get
their vectors: x is a table with a row a word.
"""

import numpy as np


def getitem_backward(gy, x, index):
    """gy (T, D); x (V, D); index (T,), integers from 0 to V - 1; returns gx (V, D)."""
    # About 3 lines.
    raise NotImplementedError
