"""Exercise 16.1: the loss and gradient of a batch from those of its shards.

The mean loss of N samples, cut into shards of n_k samples with mean losses L_k:

    L = sum_k (n_k / N) L_k,    grad L = sum_k (n_k / N) grad L_k
"""

import numpy as np


def combine(losses, gradients, counts):
    """losses (S,), each shard's mean; gradients (S, P), of these means; counts (S,), the n_k.

    Returns the batch's mean loss, a number, and its gradient (P,).
    """
    # About 2 lines.
    raise NotImplementedError
