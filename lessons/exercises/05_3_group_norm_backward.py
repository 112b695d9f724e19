"""Exercise 05.3: the gradients of GroupNorm.

    x^ = (x - m) r,  r = 1 / sqrt(v + eps),    y = gamma x^ + beta

    gbeta = sum gy,   ggamma = sum gy x^   (over samples and pixels)
    gx = r (g - mean(g) - x^ mean(g x^)),  g = gamma gy
    (means over the pixels and channels of a group)
"""

import numpy as np


def group_norm_backward(gy, x, gamma, groups, eps):
    """gy, x (N, H, W, C); gamma (C,); returns gx (N, H, W, C), ggamma (C,), gbeta (C,)."""
    # About 6 lines, after two that compute x^ and r as in exercise 1.
    raise NotImplementedError
