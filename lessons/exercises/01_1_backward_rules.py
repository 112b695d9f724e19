"""Exercise 01.1: the backward rules of multiplication and division.

y is made of a, b and c:

    y = a b / c

gy is the gradient that has arrived at y. Each of the three gets gy times the factor of its edge,
the derivative of y by it with the other two held fixed.
"""

import numpy as np


def backward_rules(gy, a, b, c):
    """gy, a, b, c (N,): N separate cases at once; returns ga, gb, gc, each (N,)."""
    # About 3 lines.
    raise NotImplementedError
