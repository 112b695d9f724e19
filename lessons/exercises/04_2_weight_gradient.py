"""Exercise 04.2: the gradients of a convolution's weights and bias.

    Y = X W + b,    gW = X^T gY,    gb = sum of the rows of gY

X holds the windows of the padded picture as rows, so that gw[u, v, c, o] is the sum over n, i, j of
x[n, stride i + u - padding, stride j + v - padding, c] gy[n, i, j, o].
"""

import numpy as np


def weight_gradient(gy, x, w, stride, padding):
    """gy (N, Ho, Wo, Cout); x (N, H, W, Cin); w (k, k, Cin, Cout), of which only the shape counts.

    Returns gw, of w's shape, and gb (Cout,).
    """
    # About 6 lines: with im2col, or one product for each of the k x k places.
    raise NotImplementedError
