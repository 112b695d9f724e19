"""Exercises of lesson 10: the U-Net."""

from functools import partial

import numpy as np

from ldm_numpy import ops
from ldm_numpy.models import unet
from ldm_numpy.models.blocks import ResnetBlock2D
from ldm_numpy.tensor import Tensor

from ..check import Exercise

# 1. The waves ------------------------------------------------------------------------------


def levels(rng):
    return {"t": 250 * np.log(rng.uniform(0.02, 40, 5)), "dim": 8}


def waves(t, dim, first=np.cos, second=np.sin, last=0, whole=False, interleaved=False):
    half = dim // 2
    exponents = np.arange(half) / ((dim if whole else half) - last)
    angles = t[:, None] * 10000.0**-exponents
    both = np.stack([first(angles), second(angles)], axis=2 if interleaved else 1)
    return both.reshape(len(t), dim)


# 2. The block ------------------------------------------------------------------------------

SIZES = {"cin": 4, "cout": 6, "time": 5}


def block():
    return ResnetBlock2D(SIZES["cin"], SIZES["cout"], 2, 1e-3, SIZES["time"]).astype(np.float64)


def block_inputs(rng):
    w = {name: rng.standard_normal(p.shape) for name, p in block().named_parameters()}
    x = rng.standard_normal((2, 3, 4, SIZES["cin"]))
    time = rng.standard_normal((2, SIZES["time"]))
    return {"x": x, "time": time, "w": w, "groups": 2, "eps": 1e-3}


def res_block(x, time, w, groups, eps):
    module = block()
    module.load_state_dict(w)
    return module(Tensor(x), Tensor(time)).data


def assembled(x, time, w, groups, eps, joins="between", silu=True, shortcut="x", waves=np.asarray):
    """A block with one thing elsewhere than it should be."""

    def layer(name):
        return w[f"{name}.weight"], w[f"{name}.bias"]

    norm = partial(ops.group_norm, groups=groups, eps=eps, silu=silu)
    shift = ops.linear(waves(time), *layer("time_emb_proj"))[:, None, None]
    normed = norm(x, *layer("norm1"))
    h = ops.conv2d(normed, *layer("conv1"), padding=1)
    h = h + (shift if joins == "between" else 0)
    h = norm(h, *layer("norm2")) + (shift if joins == "after the norm" else 0)
    h = ops.conv2d(h, *layer("conv2"), padding=1) + (shift if joins == "at the end" else 0)
    if shortcut == "none":
        return h
    return h + ops.conv2d(normed if shortcut == "normed" else x, *layer("conv_shortcut"))


# 3. The stack ------------------------------------------------------------------------------


def shapes(rng):
    return {"widths": tuple(int(n) for n in 8 * rng.permutation(6)[:3] + 8), "layers": 2}


def skip_channels(widths, layers):
    config = unet.UNetConfig(
        block_out_channels=widths, attention_levels=(False,) * len(widths), layers_per_block=layers,
        norm_num_groups=8,
    )  # fmt: skip
    blocks = [level.resnets for level in unet.UNet(config).up_blocks]
    return np.array([[block.conv1.weight.shape[2] for block in level] for level in blocks])


def counted(widths, layers, queue=False, own=False, joined=True, stays=False):
    stack = [widths[0]]
    for i, width in enumerate(widths):
        stack += [width] * (layers + (i < len(widths) - 1))
    channels, levels = widths[-1], []
    for width in widths[::-1]:
        levels.append([])
        for _ in range(layers + 1):
            skip = width if own else stack.pop(0 if queue else -1)
            levels[-1].append(channels + (skip if joined else 0))
            channels = channels if stays else width
        channels = width
    return np.array(levels)


# 4. Squares as channels --------------------------------------------------------------------


def pixels(rng):
    return {
        "gy": rng.standard_normal((2, 2, 3, 18)),
        "x": rng.standard_normal((2, 6, 9, 2)),
        "block": 3,
    }


def space_to_depth(gy, x, block):
    t = Tensor(x, requires_grad=True)
    y = ops.space_to_depth(t, block)
    y.backward(gy)
    return t.grad, y.data


def permuted(gy, x, block, order=(0, 1, 3, 2, 4, 5), outside=False):
    """Each side split into squares and the pixels of a square (`outside`: the other way round), the
    six axes ordered, and back."""
    n, h, w, c = x.shape
    rows, columns = (h // block, block), (w // block, block)
    if outside:
        rows, columns = rows[::-1], columns[::-1]
    y = x.reshape(n, *rows, *columns, c).transpose(order)
    gx = gy.reshape(y.shape).transpose(np.argsort(order)).reshape(x.shape)
    return gx, y.reshape(gy.shape)


EXERCISES = [
    Exercise(
        "10_1_timestep_embedding",
        "timestep_embedding",
        solution=lambda t, dim: unet.timestep_embedding(t, dim),
        inputs=levels,
        results=("e",),
        wrong={
            "the cosines come first": partial(waves, first=np.sin, second=np.cos),
            "w_i = 10000^(-2i / d): the last is not 1/10000 (some programs divide by d/2 - 1)":
                partial(waves, last=1),
            "w_i = 10000^(-2i / d): there is a 2, for i ends at d/2": partial(waves, whole=True),
            "first all cosines, then all sines, not by turns": partial(waves, interleaved=True),
        },
    ),
    Exercise(
        "10_2_res_block",
        "res_block",
        solution=res_block,
        inputs=block_inputs,
        results=("y",),
        wrong={
            "the level joins before the second norm, not after it":
                partial(assembled, joins="after the norm"),
            "the level joins between the convolutions, not at the end":
                partial(assembled, joins="at the end"),
            "the level is missing": partial(assembled, joins="nowhere"),
            "time has been through a SiLU already: twice is once too often":
                partial(assembled, waves=ops.silu),
            "a SiLU follows each norm": partial(assembled, silu=False),
            "the shortcut takes x as it came, not silu(norm1(x))":
                partial(assembled, shortcut="normed"),
            "the shortcut is missing": partial(assembled, shortcut="none"),
        },
    ),
    Exercise(
        "10_3_skip_channels",
        "skip_channels",
        solution=skip_channels,
        inputs=shapes,
        results=("channels",),
        wrong={
            "the last array put on the stack is the first to be taken":
                partial(counted, queue=True),
            "a skip is as wide as where it was made, which may be another level":
                partial(counted, own=True),
            "the skip is appended: its channels count too": partial(counted, joined=False),
            "after the first block of a level there are as many channels as the level has":
                partial(counted, stays=True),
        },
    ),
    Exercise(
        "10_4_space_to_depth",
        "space_to_depth",
        solution=space_to_depth,
        inputs=pixels,
        results=("gx", "y"),
        wrong={
            "a reshape alone leaves all numbers in their order: axes must change places in between":
                lambda gy, x, block: (gy.reshape(x.shape), x.reshape(gy.shape)),
            "rows i b ... i b + b - 1 belong together: reshape to (H/b, b), not (b, H/b)":
                partial(permuted, order=(0, 2, 4, 1, 3, 5), outside=True),
            "a square goes row by row, r before s":
                partial(permuted, order=(0, 1, 3, 4, 2, 5)),
            "a pixel's channels stay together, c is the last axis (in PyTorch's pixel_unshuffle "
            "the first)":
                partial(permuted, order=(0, 1, 3, 5, 2, 4)),
            "a permutation: each number counts in full, nothing is averaged":
                lambda gy, x, block: tuple(a / block**2 for a in space_to_depth(gy, x, block)),
        },
        forward=lambda x, block: ops.space_to_depth(x, block),
        wanted=("x",),
    ),
]  # fmt: skip
