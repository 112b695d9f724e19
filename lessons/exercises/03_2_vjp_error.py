"""Exercise 03.2: the vector-Jacobian check.

    error = |<gy, J v> - <gx, v>| / (|gy| |J v|)

with J v = (f(x + h v) - f(x - h v)) / (2 h) and gx, which should be J^T gy, from backward.
Backward may be wrong: then the error is large, and that is what is asked for.
<a, b> is the sum of the products of all elements, |a| the root of <a, a>, whatever the shape.
"""

import numpy as np


def vjp_error(f, backward, x, gy, v, h):
    """f: x -> y; backward: (gy, x) -> gx; x, v of one shape, gy shaped as y; returns one number."""
    # About 3 lines. np.vdot and np.linalg.norm take arrays of any shape.
    raise NotImplementedError
