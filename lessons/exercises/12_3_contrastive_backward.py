"""Exercise 12.3: the gradients of the contrastive loss.

    gZ = ((p - R) + (q - C)) / 2N,   Z, p, q, R, C as in exercise 2

    gI = e^s gZ T,   gT = e^s gZ^T I,   gs = sum of gZ Z

All three are multiplied by gy, the gradient of what comes after the loss.
"""

import numpy as np


def contrastive_backward(gy, image, text, log_scale, positives):
    """gy, a number; image, text (N, P), rows of length 1; log_scale, a number, is s; positives
    (N, N), booleans. Returns gimage (N, P), gtext (N, P), glog_scale (a number)."""
    # About 8 lines.
    raise NotImplementedError
