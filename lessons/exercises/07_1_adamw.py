"""Exercise 07.1: one step of AdamW.

    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
    w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)

where t counts the steps from 1 on.
"""

import numpy as np


def adamw(w, g, m, v, t, lr, b1, b2, eps, decay):
    """w, g, m, v (D,); all others are numbers; returns the new w, m and v, each (D,).

    m and v are kept as in the first line; only the step divides them by 1 - b1^t and 1 - b2^t.
    """
    # About 5 lines. Work on new arrays: w, m and v as they were given must not change.
    raise NotImplementedError
