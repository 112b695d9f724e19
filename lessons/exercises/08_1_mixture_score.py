"""Exercise 08.1: the score of a mixture of round Gaussians under noise.

Component k of the data is N(m_k, v_k I) in d dimensions, and has the weight w_k. With noise of the
level sigma added it is N_k = N(m_k, u_k I), where u_k = v_k + sigma^2:

    N_k(x) = (2 pi u_k)^(-d/2) exp(-|x - m_k|^2 / (2 u_k))
    r_k = w_k N_k(x) / (sum over j of w_j N_j(x))
    score(x) = -(sum over k of r_k (x - m_k) / u_k)
"""

import numpy as np


def mixture_score(x, weights, means, variances, sigma):
    """x (N, d); weights (K,), which sum to 1; means (K, d); variances (K,); sigma a number.

    Returns the score (N, d).
    """
    # About 6 lines: x - m_k as an array (N, K, d), then u_k, N_k, r_k and the sum over k.
    raise NotImplementedError
