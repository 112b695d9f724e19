"""Exercise 15.1: the arc between two noises.

With the angle theta between a and b, cos theta = a . b / (|a| |b|), a part t of the way lies

    sin((1 - t) theta) / sin theta  a  +  sin(t theta) / sin theta  b

a and b are single noises, of any shape: theta is that of all their numbers.
"""

import numpy as np


def slerp(a, b, t):
    """a, b arrays of one shape, t in 0 ... 1; returns an array of that shape."""
    # About 3 lines: (a * b).sum() is a . b, np.arccos gives theta. (No care for a parallel to b.)
    raise NotImplementedError
