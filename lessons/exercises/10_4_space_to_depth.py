"""Exercise 10.4: squares of pixels become channels, and back.

With b for block, r and s from 0 to b - 1, and C channels:

    y[n, i, j, (r b + s) C + c] = x[n, i b + r, j b + s, c]

A square's pixels follow one another row by row, the channels of each pixel together. Every number
of x stands in y once, so gx is gy with each number back in its place: the same rule, read from
right to left.
"""


def space_to_depth(gy, x, block):
    """x (N, H, W, C), block divides H and W; gy and y (N, H/b, W/b, b b C); returns gx and y."""
    # About 6 lines: give each of i, r, j, s, c an axis of its own, then order the axes.
    raise NotImplementedError
