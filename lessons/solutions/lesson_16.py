"""Solutions of lesson 16, where no operation of the library is one."""

import numpy as np


def combine(losses, gradients, counts):
    share = counts / counts.sum()  # (S,)
    return share @ losses, share @ gradients


def ordered_sum(arrived, shards):
    place = np.argsort(shards)  # of shard 0, 1, ... among those that arrived
    total = arrived[place[0]].copy()
    for i in place[1:]:
        total += arrived[i]
    return total


def softmax(x, array_module):
    xp = array_module(x)
    y = xp.exp(x - x.max(axis=-1, keepdims=True))
    return y / y.sum(axis=-1, keepdims=True)
