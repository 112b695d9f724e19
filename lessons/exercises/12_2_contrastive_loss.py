"""Exercise 12.2: the contrastive loss, with several right answers.

    Z = e^s I T^T,   p = softmax of Z over each row, q over each column

    L = -1/(2N) sum_ij (R_ij log p_ij + C_ij log q_ij)

R are the positives divided by their number in the row, C by their number in the column. In the
code I is image and T is text, where it does not stand for "transposed".
"""

import numpy as np


def contrastive_loss(image, text, log_scale, positives):
    """image, text (N, P), rows of length 1; log_scale, a number, is s; positives (N, N), booleans,
    true where text j is right for picture i. Returns the loss, a number."""
    # About 8 lines.
    raise NotImplementedError
