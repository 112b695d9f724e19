"""Exercise 07.2: a moving average with bias correction.

    a_0 = 0,    a_t = d a_(t-1) + (1 - d) w_t

The weights of w_1, ..., w_t in a_t sum to 1 - d^t, not to one: divide by it, as Adam does with m.
"""

import numpy as np


def average(w, d):
    """w (T, D), the weights after steps 1, 2, ..., T; returns (T, D), the average after each step.

    The sum is kept without the correction; only what is returned has it.
    """
    # About 5 lines: a loop over steps.
    raise NotImplementedError
