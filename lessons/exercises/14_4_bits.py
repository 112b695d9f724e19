"""Exercise 14.4: bits per dimension.

A picture of d whole numbers k = 0 ... 255 became x = (k + w) / 128 - 1, with w uniform on 0 ... 1.
A model gives log p(x) in nats: the logarithm, to base e, of a density. The picture's probability is
about p(x) times the volume of its bin, and its code takes -log2 of that many bits.
"""

import math


def bits_per_dimension(log_p, d):
    """log_p (N,) in nats, d the number of pixels; returns bits for each pixel, (N,)."""
    # About 2 lines: the volume of a bin, then its probability in bits, shared by d pixels.
    raise NotImplementedError
