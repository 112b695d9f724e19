"""Exercise 03.1: the derivative along a direction, by a central difference.

    J v = (f(x + h v) - f(x - h v)) / (2 h)

up to terms of order h^2.
"""

import numpy as np


def directional(f, x, v, h):
    """f: array -> array; x, v of the same shape; h > 0, one number; returns J v, shaped as f(x)."""
    # About 1 line: f is called twice.
    raise NotImplementedError
