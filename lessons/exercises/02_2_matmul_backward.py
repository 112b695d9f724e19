"""Exercise 02.2: the gradients of a batch of matrices times one matrix.

    y_nik = sum_j a_nij b_jk        (y = a @ b)

All N products use the same b.
"""

import numpy as np


def matmul_backward(gy, a, b):
    """gy (N, I, K); a (N, I, J); b (J, K); returns ga (N, I, J), gb (J, K)."""
    # About 2 lines. `swapaxes` transposes the matrices of a batch.
    raise NotImplementedError
