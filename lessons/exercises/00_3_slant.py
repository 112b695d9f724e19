"""Exercise 00.3: which way a digit leans.

With ink w at row y and column x (y points down), and (x^, y^) the centre of the ink:

    slant = -sum w (x - x^) (y - y^) / sum w (y - y^)^2,    x^ = sum w x / sum w, y^ likewise
"""

import numpy as np


def slant(ink):
    """ink (N, H, W), not negative, some of it positive; returns (N,), positive to the right."""
    # About 6 lines. Columns np.arange(W) and rows np.arange(H)[:, None] broadcast to (H, W).
    raise NotImplementedError
