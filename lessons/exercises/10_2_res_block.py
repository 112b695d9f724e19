"""Exercise 10.2: the ResBlock of the U-Net, forward.

    h = conv1(silu(norm1(x)))
    h = h + time_emb_proj(time), one number for each sample and channel, at every pixel
    y = conv2(silu(norm2(h))) + conv_shortcut(x)

The convolutions are 3x3 with padding 1, the shortcut is 1x1 without.
"""

from ldm_numpy import ops


def res_block(x, time, w, groups, eps):
    """x (N, H, W, Cin); time (N, T), the embedded level, its SiLU done; returns y (N, H, W, Cout).

    w is a dictionary of arrays: "norm1.weight", "norm1.bias", "conv1.weight", "conv1.bias",
    "time_emb_proj.weight", ..., "norm2.weight", ..., "conv2.weight", ..., "conv_shortcut.weight",
    "conv_shortcut.bias". Of use: ops.group_norm(x, weight, bias, groups=, eps=, silu=),
    ops.conv2d(x, weight, bias, padding=), ops.linear(x, weight, bias).
    """
    # About 7 lines: two for each of the convolutions, two for the level, one for the sum.
    raise NotImplementedError
