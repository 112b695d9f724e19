"""Exercise 11.2: the KL term and its gradients.

    L = mean over the samples of the sum over all else of 1/2 (m^2 + e^l - 1 - l)

    gm = gy m / N,   gl = gy 1/2 (e^l - 1) / N

m is the mean, l the logarithm of the variance, N the number of samples.
"""

import numpy as np


def gaussian_kl(gy, mean, logvar):
    """mean, logvar (N, H, W, C); gy, a number, the gradient of L. Returns gmean, glogvar and L."""
    # About 4 lines.
    raise NotImplementedError
