"""Exercise 02.1: the transpose of broadcasting.

Forward, NumPy stretched an array x to a larger shape: it lined the shapes up from the right, put
new axes in front where x had too few, and repeated x along these and along axes of length 1. So a
gradient g of the larger shape goes back to x by sums over those axes.
"""

import numpy as np


def unbroadcast(g, shape):
    """g of the larger shape, shape: that of x, a tuple; returns the gradient gx, of that shape."""
    # About 5 lines: which axes? Sum over them, then give the result the shape of x.
    raise NotImplementedError
