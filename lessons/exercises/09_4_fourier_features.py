"""Exercise 09.4: the gradient of Fourier features.

    y = [x, sin(r_1 x), ..., sin(r_K x), cos(r_1 x), ..., cos(r_K x)]        r_k = pi 2^(n_k)

for exponents n_1 ... n_K. A gradient gy of y has the parts g_0, s_1, ..., s_K, c_1, ..., c_K; each
is a way from x to the loss, and the gradient of x is their sum, by the chain rule.
"""

import numpy as np


def fourier_gradient(gy, x, exponents):
    """gy (N, 1 + 2 K); x (N, 1); exponents a tuple of K numbers; returns gx (N, 1)."""
    # About 5 lines: the rates as an array (K,), the three parts of gy, their sum.
    raise NotImplementedError
