"""Exercise 08.2: what a process has made of a point x0 at time t, in closed form.

    x(t) ~ N(scale x0, deviation^2)        B(t) = integral of beta from 0 to t

    dx = sigma^t dw                                             scale 1
    VP      dx = -beta/2 x dt + sqrt(beta) dw                   scale e^(-B/2)
    sub-VP  dx = -beta/2 x dt + sqrt(beta (1 - e^(-2B))) dw     the same scale

beta grows on a line, from beta_min at t = 0 to beta_max at t = 1. The variance of the first is a
short integral, of g^2 = sigma^(2t) = e^(2t ln sigma); the deviations of the others stand in the
lesson's table. (This sigma is a fixed number above 1, not the lesson's noise level.)
"""

import numpy as np


def kernels(t, sigma, beta_min, beta_max):
    """t (N,), times in 0 ... 1; the others are numbers.

    Returns four arrays (N,): the deviation for dx = sigma^t dw, the scale of VP (and sub-VP), the
    deviation of VP, the deviation of sub-VP.
    """
    # About 5 lines.
    raise NotImplementedError
