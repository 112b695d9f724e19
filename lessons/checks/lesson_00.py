"""Exercises of lesson 00: the map."""

from functools import partial

import numpy as np

from ldm_numpy import images
from ldm_numpy.data import captions, mnist
from ldm_numpy.diffusion.guidance import guide
from ldm_numpy.diffusion.samplers import euler

from ..check import Exercise


def pictures(rng):
    return {"pixels": rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)}


def decoded(rng):
    return {"x": rng.uniform(-1.1, 1.1, (3, 32, 32, 1))}


def stripes(rng):
    """Ink about a line through a picture that is higher than wide, a little off its middle."""
    y, x = np.mgrid[:12, :9]
    lines = 3 + rng.uniform(-0.4, 0.4, (3, 1, 1)) * (y - 5) + rng.uniform(0, 2, (3, 1, 1))
    return {"ink": 255 * rng.random((3, 12, 9)) * (abs(x - lines) < 2)}


def levels(rng):
    x, given, without = rng.standard_normal((3, 2, 4, 4, 3))
    return {"x": x, "given": given, "without": without, "scale": 2.4, "sigma": 1.5, "lower": 0.9}


def to_model(pixels):
    return images.pad_to(mnist.to_float(pixels), 32)


def to_pixels(x):
    return np.stack([np.asarray(picture) for picture in images.to_pil(images.crop_to(x, 28))])


def slant(ink):
    return captions.slant(ink / 127.5 - 1)


def guided_step(x, given, without, scale, sigma, lower):
    def answer(x, sigma, cond):
        return cond

    return euler(guide(answer, scale, without), x, [sigma, lower], given)


# Wrong answers ------------------------------------------------------------------------------


def padded(pixels, scale=127.5, shift=1.0, paper=-1.0):
    x = pixels[..., None] / scale - shift
    return np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=paper)


def channels_first(pixels):
    return padded(pixels).transpose(0, 3, 1, 2)


def bytes_of(x, start=2, whole=np.rint, most=255):
    y = whole((x[:, start : start + 28, start : start + 28, 0] + 1) * 127.5)
    return (np.clip(y, 0, most) if most else y % 256).astype(np.uint8)


def leaning(ink, sign=-1, centres=None, across=False):
    y, x = np.mgrid[: ink.shape[1], : ink.shape[2]]
    weight = ink / ink.sum((1, 2), keepdims=True)
    means = [(weight * a).sum((1, 2), keepdims=True) for a in (x, y)]
    centre_x, centre_y = centres(x, y, *means) if centres else means
    x, y = x - centre_x, y - centre_y
    return sign * (weight * x * y).sum((1, 2)) / (weight * (x if across else y) ** 2).sum((1, 2))


def stepped(x, given, without, scale, sigma, lower, start=None, sign=1, level=None):
    denoised = (without if start is None else start(given, without)) + scale * (given - without)
    return x + sign * (lower - sigma) * (x - denoised) / (lower if level else sigma)


EXERCISES = [
    Exercise(
        "00_1_to_model",
        "to_model",
        solution=to_model,
        inputs=pictures,
        results=("x",),
        wrong={
            "around the picture there is paper, which is -1": partial(padded, paper=0.0),
            "0 ... 255 becomes -1 ... 1: / 127.5 - 1, not / 255": partial(
                padded, scale=255, shift=0, paper=0.0
            ),
            "/ 255 ends at 0 ... 1: pixels / 127.5 - 1": partial(padded, scale=255, shift=0),
            "/ 255 - 1 ends at -1 ... 0: pixels / 127.5 - 1": partial(padded, scale=255),
            "255 must become 1: divide by 127.5, not by 128": partial(padded, scale=128),
            "255 must become 1: divide by 127.5, not by 127": partial(padded, scale=127),
            "the channel's axis is the last": channels_first,
        },
    ),
    Exercise(
        "00_2_to_pixels",
        "to_pixels",
        solution=to_pixels,
        inputs=decoded,
        results=("pixels",),
        wrong={
            "round first: a conversion to whole numbers cuts off": partial(
                bytes_of, whole=np.floor
            ),
            "clip to 0 ... 255 before converting: bytes wrap around": partial(bytes_of, most=None),
            "cut off two pixels on each side, not four on one": partial(bytes_of, start=0),
        },
    ),
    Exercise(
        "00_3_slant",
        "slant",
        solution=slant,
        inputs=stripes,
        results=("slant",),
        wrong={
            "y points down: mind the minus": partial(leaning, sign=1),
            "divide by the spread along y, not along x": partial(leaning, across=True),
            "x and y count from the centre of the ink, not of the picture": partial(
                leaning, centres=lambda x, y, *means: (x.mean(), y.mean())
            ),
            "x and y count from the centre of the ink: subtract x^ and y^ first": partial(
                leaning, centres=lambda *all: (0, 0)
            ),
            "y counts from y^ in the divisor as well: sum w (y - y^)^2": partial(
                leaning, centres=lambda x, y, x_mean, y_mean: (x_mean, 0)
            ),
        },
    ),
    Exercise(
        "00_4_guided_step",
        "guided_step",
        solution=guided_step,
        inputs=levels,
        results=("x at the level lower",),
        wrong={
            "guidance starts from the answer without prompt: scale 1 must give D with it": partial(
                stepped, start=lambda given, without: given
            ),
            "x moves towards D: lower - sigma is negative": partial(stepped, sign=-1),
            "the slope (x - D) / sigma is that of the level before the step": partial(
                stepped, level="lower"
            ),
        },
    ),
]
