"""Exercise 04.3: the gradient of a convolution's input.

    Y = X W,    gX = gY W^T,    gx = col2im(gX)

A row of gX is the gradient of a window. col2im adds it to the place that the window came from: the
value for (u, v, c) of window (i, j) goes to row stride i + u, column stride j + v, channel c of the
padded picture. The padding is then cut off.
"""

import numpy as np


def input_gradient(gy, x, w, stride, padding):
    """gy (N, Ho, Wo, Cout); x (N, H, W, Cin), of which only the shape counts; w (k, k, Cin, Cout).

    Returns gx, of x's shape. (With padding 0, a[padding:-padding] is empty: name the end.)
    """
    # About 8 lines: the gradient of the padded picture, filled in two loops over u and v.
    raise NotImplementedError
