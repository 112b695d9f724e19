"""Exercise 15.3: one turn of inpainting, from level sigma to low and back up.

    1. where it is known, x becomes the clean latent, noised to the level of x, sigma
    2. Euler's step down:  x' = x + (low - sigma) (x - D(x, sigma)) / sigma
    3. up again: x'' is x' with noise added until its level is sigma; variances, not deviations, add
"""

import numpy as np


def turn(D, x, clean, known, sigma, low, noise, more):
    """D(x, sigma) gives the denoised x; x, clean (N, d); known (N, d) bool; noise (N, d), the white
    noise of 1, more (N, d), that of 3. Returns (x', x''), after 2 and after 3, (N, d) each.
    """
    # About 4 lines: np.where, then 2 and 3.
    raise NotImplementedError
