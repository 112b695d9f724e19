"""Exercises of lesson 04: convolution."""

import numpy as np

from ldm_numpy import ops
from ldm_numpy.ops.conv import col2im, pad_sides
from ldm_numpy.ops.conv import im2col as library_im2col
from ldm_numpy.tensor import Tensor

from ..check import Exercise


def picture(rng):
    return {"x": rng.standard_normal((2, 6, 5, 3)), "k": 3, "stride": 2, "padding": 1}


def layer(rng):
    """A strided convolution: inputs 7x6, outputs 4x3."""
    shapes = (2, 4, 3, 4), (2, 7, 6, 3), (3, 3, 3, 4)
    gy, x, w = [rng.standard_normal(shape) for shape in shapes]
    return {"gy": gy, "x": x, "w": w, "stride": 2, "padding": 1}


def doubled(rng):
    return {"gy": rng.standard_normal((2, 6, 9, 2)), "factor": 3}


def im2col(x, k, stride, padding):
    return library_im2col(pad_sides(x, (padding,) * 4), k, k, stride)


def conv2d(x, w, stride, padding):
    return ops.conv2d(x, w, stride=stride, padding=padding)


def conv_gradients(gy, x, w, stride, padding):
    """gx, gw and gb, by the library."""
    inputs = [Tensor(a, requires_grad=True) for a in (x, w, np.zeros(w.shape[3]))]
    ops.conv2d(*inputs, stride=stride, padding=padding).backward(gy)
    return [t.grad for t in inputs]


def weight_gradient(**given):
    return tuple(conv_gradients(**given)[1:])


def input_gradient(**given):
    return conv_gradients(**given)[0]


def upsample_backward(gy, factor):
    n, h, w, c = gy.shape
    x = Tensor(np.zeros((n, h // factor, w // factor, c)), requires_grad=True)
    ops.upsample_nearest(x, factor).backward(gy)
    return x.grad


# Wrong answers ------------------------------------------------------------------------------


def split(x, k, stride, padding):
    """im2col's result as (N, Ho, Wo, k, k, C)."""
    h_out, w_out = [(n + 2 * padding - k) // stride + 1 for n in x.shape[1:3]]
    return im2col(x, k, stride, padding).reshape(len(x), h_out, w_out, k, k, -1)


def reordered(order):
    def wrong(x, k, stride, padding):
        right = im2col(x, k, stride, padding)
        return split(x, k, stride, padding).transpose(order).reshape(right.shape)

    return wrong


def every_window(x, k, stride, padding):
    right = split(x, k, stride, padding)
    close = split(x, k, 1, padding)[:, : right.shape[1], : right.shape[2]]
    return close.reshape(-1, k * k * x.shape[3])


def padded_before(x, k, stride, padding):
    return library_im2col(pad_sides(x, (2 * padding, 0) * 2), k, k, stride)


def mean_bias(gy, **given):
    gw, gb = weight_gradient(gy=gy, **given)
    return gw, gb * gy.shape[3] / gy.size


def mean_over_samples(gy, **given):
    gw, gb = weight_gradient(gy=gy, **given)
    return gw / len(gy), gb / len(gy)


def other_order(gy, x, w, stride, padding):
    windows, rows = im2col(x, len(w), stride, padding), gy.reshape(-1, gy.shape[3])
    return (rows.T @ windows).reshape(w.shape), rows.sum(0)


def places_exchanged(**given):
    gw, gb = weight_gradient(**given)
    return gw.swapaxes(0, 1), gb


def windows_padded_before(gy, x, w, stride, padding):
    rows = gy.reshape(-1, gy.shape[3])
    return (padded_before(x, len(w), stride, padding).T @ rows).reshape(w.shape), rows.sum(0)


def last_place(gy, x, w, stride, padding):
    """The loop over u and v with = for +=."""
    n, h, width, c = x.shape
    (h_out, w_out), p = gy.shape[1:3], padding
    gx = np.zeros((n, h + 2 * p, width + 2 * p, c))
    for u, v in np.ndindex(w.shape[:2]):
        rows, cols = (slice(i, i + stride * count, stride) for i, count in ((u, h_out), (v, w_out)))
        gx[:, rows, cols] = gy @ w[u, v].T
    return gx[:, p : p + h, p : p + width]


def scattered(add=True, cut=True, turn=False):
    """The gradient of the input by col2im, with a mistake."""

    def wrong(gy, x, w, stride, padding):
        n, h, width, c = x.shape
        k, p = len(w), padding
        w = w[::-1, ::-1] if turn else w
        shape = (n, h + 2 * p, width + 2 * p, c)
        columns = gy.reshape(-1, w.shape[3]) @ w.reshape(-1, w.shape[3]).T
        if add:
            gx = col2im(columns, shape, k, k, stride)
        else:
            gx = np.zeros(shape)
            windows = columns.reshape(*gy.shape[:3], k, k, c)
            for i, j in np.ndindex(gy.shape[1:3]):
                rows, cols = slice(stride * i, stride * i + k), slice(stride * j, stride * j + k)
                gx[:, rows, cols] = windows[:, i, j]
        start = p if cut else 0
        return gx[:, start : start + h, start : start + width]

    return wrong


def interleaved(gy, factor):
    n, h, w, c = gy.shape
    return gy.reshape(n, factor, h // factor, factor, w // factor, c).sum((1, 3))


EXERCISES = [
    Exercise(
        "04_1_im2col",
        "im2col",
        solution=im2col,
        inputs=picture,
        results=("windows",),
        wrong={
            "within a row the channel comes last: kernel row, kernel column, channel":
                reordered((0, 1, 2, 5, 3, 4)),
            "rows come in the order n, i, j: all of a sample's windows, row by row":
                reordered((0, 2, 1, 3, 4, 5)),
            "window (i, j) starts at row stride i and column stride j": every_window,
            "padding goes on every side, not twice on one": padded_before,
        },
    ),
    Exercise(
        "04_2_weight_gradient",
        "weight_gradient",
        solution=weight_gradient,
        inputs=layer,
        results=("gw", "gb"),
        wrong={
            "gw and gb are sums over samples, too, not means": mean_over_samples,
            "gb is the sum of gy, not its mean": mean_bias,
            "gw[u, v] belongs to row u and column v of the kernel": places_exchanged,
            "gW is X^T gY; gY^T X has the axes of its transpose": other_order,
            "the windows are those of forward: padding on every side": windows_padded_before,
        },
        forward=conv2d,
        wanted=("w",),
    ),
    Exercise(
        "04_3_input_gradient",
        "input_gradient",
        solution=input_gradient,
        inputs=layer,
        results=("gx",),
        wrong={
            "a pixel of several windows gets the sum of their gradients: +=, not =":
                scattered(add=False),
            "what the places (u, v) give to one pixel adds up: +=, not =": last_place,
            "cut the padding off at the top and left as well: start at padding":
                scattered(cut=False),
            "here gX = gY W^T; the kernel is turned where backward is written as a convolution":
                scattered(turn=True),
        },
        forward=conv2d,
        wanted=("x",),
    ),
    Exercise(
        "04_4_upsample_backward",
        "upsample_backward",
        solution=upsample_backward,
        inputs=doubled,
        results=("gx",),
        wrong={
            "a pixel that was used factor^2 times gets the sum of their gradients, not the mean":
                lambda gy, factor: upsample_backward(gy, factor) / factor**2,
            "all pixels of a block count, not one of them":
                lambda gy, factor: gy[:, ::factor, ::factor],
            "the gradients of a block differ: add them up, do not take one of them often":
                lambda gy, factor: gy[:, ::factor, ::factor] * factor**2,
            "a block's pixels are neighbours: split H into (H, factor), not into (factor, H)":
                interleaved,
        },
    ),
]  # fmt: skip
