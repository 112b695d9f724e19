"""Exercise 06.1: attention, forward, with heads and a mask.

D is cut into heads, each of width d = D / heads. In each head, with its part of q, k and v,

    S = q k^T / sqrt(d),    P = softmax of S over keys,    y = P v

where a query may not look, its score is minus infinity. The heads' results lie side by side.
"""

import numpy as np


def attention(q, k, v, heads, look):
    """q (N, T, D); k, v (N, M, D); look (T, M), true where a query may look; returns y (N, T, D).

    The first head has the first D / heads columns of q, k, v and y, and so on. Each query may look
    at one key at least.
    """
    # About 6 lines: split into heads, scores, mask, softmax, values, merge the heads.
    raise NotImplementedError
