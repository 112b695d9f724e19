"""Exercise 00.4: one step of the loop that draws.

    D = without + scale (given - without)            guidance; given: D(x, sigma) with the prompt
    x_lower = x + (lower - sigma) (x - D) / sigma    Euler's step
"""

import numpy as np


def guided_step(x, given, without, scale, sigma, lower):
    """x, and the denoiser's answers given the prompt and without it, (N, h, w, C); scale, and the
    noise levels sigma and lower < sigma, numbers; returns x at the level lower, (N, h, w, C)."""
    # About 2 lines.
    raise NotImplementedError
