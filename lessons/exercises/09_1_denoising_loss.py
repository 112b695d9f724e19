"""Exercise 09.1: the denoising loss, for noise that is given.

    x = x0 + sigma n
    L = mean of (D(x, sigma) - x0)^2 / c_out(sigma)^2      over samples and dimensions
    c_out(sigma) = sigma d / sqrt(sigma^2 + d^2)           d: root mean square of the data
"""

import numpy as np


def denoising_loss(D, x0, sigma, noise, d):
    """D(x, sigma) -> (N, K); x0, noise (N, K); sigma (N,), one level a sample; d a number.

    Returns the loss, a number.
    """
    # About 4 lines. sigma[:, None] is (N, 1), and multiplies each row by its own level.
    raise NotImplementedError
