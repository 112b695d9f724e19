"""Exercise 01.4: the gradients of a neuron's loss, by the chain rule.

One neuron looks at N points of D numbers each. Its loss, where t = 1 or -1 is the side that a point
belongs to:

    z = x w + b,    u = -t z,    y = ln(1 + e^u)    (one y a point)

The graph is a chain y <- u <- z, and z is made of x, w and b. All points share w and b.
"""

import numpy as np


def neuron_backward(gy, x, w, b, t):
    """gy, t (N,); x (N, D); w (D,); b a number; returns gx (N, D), gw (D,), gb a number."""
    # About 5 lines: gu, then gz, then the three.
    raise NotImplementedError
