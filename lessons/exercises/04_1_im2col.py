"""Exercise 04.1: every window of a picture as a row.

The picture gets `padding` zeros on each side. Window (i, j) of a sample starts at row stride i and
column stride j of the padded picture and has k x k pixels. There are

    Ho = (H + 2 padding - k) // stride + 1

rows of windows, and Wo columns, likewise.
"""

import numpy as np


def im2col(x, k, stride, padding):
    """x (N, H, W, C) -> (N*Ho*Wo, k*k*C).

    Rows in the order n, i, j. Within a row: kernel row, kernel column, channel, as in a weight
    (k, k, Cin, Cout).
    """
    # About 7 lines: np.pad, then two loops, over windows or over the places in the kernel.
    raise NotImplementedError
