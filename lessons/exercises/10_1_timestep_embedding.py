"""Exercise 10.1: a noise level as waves.

    e(t) = [cos(t w_0), ..., cos(t w_{d/2-1}), sin(t w_0), ..., sin(t w_{d/2-1})]
    w_i = 10000^(-2i / d),  i = 0, ..., d/2 - 1

The cosines come first, as in Stable Diffusion.
"""

import numpy as np


def timestep_embedding(t, dim):
    """t (N,) floats; dim even; returns e (N, dim)."""
    # About 3 lines: the speeds (dim/2,), the angles (N, dim/2), their waves.
    raise NotImplementedError
