"""Exercise 08.4: the reverse SDE of dx = sigma^t dw, by Euler and Maruyama.

There is no drift forwards, and g(t) = sigma^t. So the reverse SDE is

    dx = -g^2 score(x, t) dt + g dw,      dt < 0

in equal steps from time 1 down to time `end`; g and the score are taken where a step begins, and
the variance of dw is |dt|.
"""

import numpy as np


def reverse(x, score, noise, sigma, end):
    """x (N, d) at time 1; score(x, t) -> (N, d); noise (steps, N, d) standard normal.

    Returns x (N, d) at time end.
    """
    # About 6 lines: times from 1 to end, then a loop over the steps.
    raise NotImplementedError
