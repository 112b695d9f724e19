"""Exercise 07.4: the gradient of the softmax cross entropy.

    p = softmax(s),    L = mean over the batch of -log p_k = -s_k + log sum_j exp(s_j)

with k the right class of each row. For one row, dL/ds_j is p_j, less 1 for j = k.
"""

import numpy as np


def cross_entropy_backward(gy, s, labels):
    """gy, a number, the gradient of L; s (N, K), logits; labels (N,), the k of each row.

    Returns gs (N, K).
    """
    # About 4 lines.
    raise NotImplementedError
