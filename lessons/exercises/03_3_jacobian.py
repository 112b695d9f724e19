"""Exercise 03.3: the whole Jacobian, by central differences.

    J[i, j] = dy_i / dx_j = (f(x + h e_j) - f(x - h e_j))_i / (2 h)

e_j is 1 at element j and 0 elsewhere: one column of J for each element of x. Elements are counted
in the order of x.ravel() and y.ravel().
"""

import numpy as np


def jacobian(f, x, h):
    """f: array of x's shape -> array y of any shape; returns J, (size of y, size of x)."""
    # About 6 lines: a loop over the elements of x.
    raise NotImplementedError
