"""Exercise 08.3: the forward SDE of VP, by Euler and Maruyama.

    dx = -beta(t)/2 x dt + sqrt(beta(t)) dw,      beta(t) = beta_min + t (beta_max - beta_min)

in equal steps from time `start` to time `end`; beta is taken where a step begins.
"""

import numpy as np


def forward(x, noise, start, end, beta_min, beta_max):
    """x (N, d) at time start; noise (steps, N, d) standard normal, one slice a step.

    Returns x (N, d) at time end.
    """
    # About 6 lines: dt, then a loop over the steps.
    raise NotImplementedError
