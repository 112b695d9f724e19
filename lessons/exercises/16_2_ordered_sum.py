"""Exercise 16.2: a sum that does not depend on who comes first.

Shards finish in any order. Rounding makes (a + b) + c and a + (b + c) differ, so what arrived is
added in the order of the shards, beginning with shard 0:

    ((g_0 + g_1) + g_2) + ...
"""

import numpy as np


def ordered_sum(arrived, shards):
    """arrived (S, P), one gradient a row, as they came; shards (S,), a permutation of 0 ... S-1:
    arrived[i] is the gradient of shard number shards[i].

    Returns the sum in the order of the shards, (P,).
    """
    # About 4 lines: where is the gradient of shard k? Add one after the other.
    raise NotImplementedError
