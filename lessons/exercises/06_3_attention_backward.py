"""Exercise 06.3: the gradients of attention, for one head.

    S = q k^T / sqrt(d),    P = softmax of S over keys,    y = P v

    gv = P^T gy,   gP = gy v^T
    gS = P (gP - sum over keys of gP P)   (element by element)
    gq = gS k / sqrt(d),   gk = gS^T q / sqrt(d)
"""

import numpy as np


def attention_backward(gy, q, k, v):
    """gy, q (N, T, d); k, v (N, M, d); returns gq (N, T, d), gk (N, M, d), gv (N, M, d)."""
    # About 6 lines, after the ones that compute P. a.swapaxes(1, 2) is the transpose in each image.
    raise NotImplementedError
