"""Exercise 05.2: the gradients of LayerNorm.

LayerNorm normalises each row of x (T, D), a token, by itself: m and v are over the last axis.

    x^ = (x - m) r,  r = 1 / sqrt(v + eps),    y = gamma x^ + beta

    gbeta = sum gy,   ggamma = sum gy x^   (over the rows)
    gx = r (g - mean(g) - x^ mean(g x^)),  g = gamma gy   (means over a row)
"""

import numpy as np


def layer_norm_backward(gy, x, gamma, eps):
    """gy, x (T, D); gamma (D,); returns gx (T, D), ggamma (D,), gbeta (D,)."""
    # About 5 lines.
    raise NotImplementedError
