"""Exercise 16.3: rows in blocks that fit a cache.

An array of n rows is worked on a block of rows at a time. As many rows as fit go into a block, but
at least one; the blocks are as few as that allows, and nearly equal:

    most = max(1, cache_bytes // row_bytes),    count = n / most, rounded up
    block i holds the rows from i * n // count up to, but without, (i + 1) * n // count
"""

import numpy as np


def row_blocks(n, row_bytes, cache_bytes):
    """Three whole numbers.

    Returns an array of whole numbers (count, 2): where each block starts and stops.
    """
    # About 4 lines.
    raise NotImplementedError
