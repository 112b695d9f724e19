"""Captions that can be checked: measure a digit's slant and stroke width, then say them.

Three attributes describe an image: the digit (0 to 9), its weight (0 thin, 1 medium, 2 bold) and
its slant (0 leaning left, 1 upright, 2 leaning right). Weight and slant are thirds of MNIST's
training set, so each class is as frequent as the others, and a prompt can be scored by measuring
the image drawn for it.
"""

import re

import numpy as np
from scipy.ndimage import distance_transform_edt

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEIGHTS = ("thin", "medium", "bold")
SLANTS = ("leaning left", "upright", "leaning right")

# Between the thirds of MNIST's 60,000 training images.
WEIGHT_THIRDS = (4.4632, 4.9729)  # stroke width, pixels at 28 x 28
SLANT_THIRDS = (-0.0101, 0.2236)  # horizontal over vertical displacement

# Never shown in training, with any caption: a model that draws them composes what it knows. Nine
# digits once each and every (weight, slant) once, so that no attribute marks a held-out caption.
# They are ordinary images, not rarities: a combination has 667 training and 111 test images on
# average. Only 7 is a rare one; 5, the rarest digit, keeps all its images.
HELD_OUT = (  # digit, weight, slant     training images, test images
    (0, 1, 1),  # a medium zero upright              727, 128
    (1, 2, 1),  # a bold one upright                 763, 151
    (2, 2, 2),  # a bold two leaning right           792, 143
    (3, 0, 0),  # a thin three leaning left          879, 151
    (4, 1, 2),  # a medium four leaning right        705, 126
    (6, 1, 0),  # a medium six leaning left          821, 159
    (7, 0, 2),  # a thin seven leaning right         413,  69
    (8, 0, 1),  # a thin eight upright               728, 136
    (9, 2, 0),  # a bold nine leaning left           684, 149
)

# How training captions vary.
DROP = 0.25  # probability that the weight is left out, and that the slant is
NUMERAL = 0.5  # of "7" instead of "seven"
BARE = 0.2  # of no article
UPRIGHT_FIRST = 0.5  # of "upright" before the digit instead of after it


def slant(images: np.ndarray) -> np.ndarray:
    """Slant -mu11 / mu02 of each image, (N,) float64: positive leans right, 0 for blank paper.

    With ink w(y, x) as weight, mu11 = mean (x - mean x)(y - mean y) and mu02 = mean (y - mean y)^2:
    minus the slope of the regression of x on y (y points down). images: (N, H, W) or (N, H, W, 1),
    uint8 or floats in [-1, 1].
    """
    ink = _ink(images)
    _, height, width = ink.shape
    y, x = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    rows, columns = ink.sum(axis=2, dtype=float), ink.sum(axis=1, dtype=float)  # (N, H), (N, W)
    mass = np.maximum(rows.sum(axis=1), np.finfo(float).tiny)  # (N,)
    mean_y, mean_x = rows @ y / mass, columns @ x / mass
    mu02 = rows @ y**2 / mass - mean_y**2
    mu11 = np.einsum("nyx,y,x->n", ink, y, x) / mass - mean_y * mean_x
    has_height = mu02 > 1e-9  # neither blank nor a single row of pixels
    return np.where(has_height, -mu11 / np.where(has_height, mu02, 1.0), 0.0)


def stroke_width(images: np.ndarray) -> np.ndarray:
    """Stroke width of each image in pixels, (N,) float64; 0 for blank paper.

    Four times the mean, over the ink (more than half black), of the Euclidean distance to the
    nearest paper: across a stroke of width w the distance rises from 0 to w/2 and falls again, so
    its mean is w/4. Beyond the image's edge there is paper. images: as for `slant`.
    """
    ink = np.pad(_ink(images) > 127.5, ((0, 0), (1, 1), (1, 1)))  # (N, H+2, W+2)
    means = [distance_transform_edt(one)[one].mean() if one.any() else 0.0 for one in ink]
    return 4.0 * np.array(means, dtype=float)


def attributes(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and slants of images, two (N,) int64 arrays of 0, 1 or 2: which third each is in.

    (60,000 images take about five seconds: keep the result.)
    """
    weights = np.searchsorted(WEIGHT_THIRDS, stroke_width(images), side="right")
    slants = np.searchsorted(SLANT_THIRDS, slant(images), side="right")
    return weights, slants


def allowed(digits: np.ndarray, weights: np.ndarray, slants: np.ndarray) -> np.ndarray:
    """(N,) bool: False where (digit, weight, slant) is held out and must not be trained on."""
    combinations = np.stack([digits, weights, slants], axis=-1)  # (N, 3)
    held_out = (combinations[:, None] == np.array(HELD_OUT)).all(axis=-1)  # (N, 9)
    return ~held_out.any(axis=-1)


def caption(
    digit: int,
    weight: int | None = None,
    slant: int | None = None,
    numeral: bool = False,
    *,
    article: bool = True,
    upright_first: bool = False,
) -> str:
    """The attributes in words: "a bold seven leaning left", "a thin 3", "an eight".

    None leaves an attribute out. `article=False` gives "thin 3"; `upright_first` gives "an upright
    eight" instead of "an eight upright". Raises ValueError for an attribute out of range.
    """
    _check("digit", digit, DIGITS)
    words = [str(digit) if numeral else DIGITS[digit]]
    if slant is not None:
        _check("slant", slant, SLANTS)
        words.insert(0 if upright_first and SLANTS[slant] == "upright" else 1, SLANTS[slant])
    if weight is not None:
        _check("weight", weight, WEIGHTS)
        words.insert(0, WEIGHTS[weight])
    if article:
        words.insert(0, "an" if words[0] in ("eight", "8", "upright") else "a")
    return " ".join(words)


def sample_captions(
    digits: np.ndarray, weights: np.ndarray, slants: np.ndarray, rng: np.random.Generator
) -> list[str]:
    """A random caption for each image: attributes dropped, words or numerals, three templates.

    Row i of a batch uses the generator's five numbers i, whatever the caption.
    """
    draws = rng.random((len(digits), 5))
    return [
        caption(
            int(digit),
            None if drop_weight < DROP else int(weight),
            None if drop_slant < DROP else int(slant),
            numeral < NUMERAL,
            article=bare >= BARE,
            upright_first=upright < UPRIGHT_FIRST,
        )
        for digit, weight, slant, (drop_weight, drop_slant, numeral, bare, upright) in zip(
            digits, weights, slants, draws, strict=True
        )
    ]


def parse(prompt: str) -> tuple[int | None, int | None, int | None]:
    """(digit, weight, slant) a prompt asks for; None where it names none, or contradicts itself."""
    words = re.findall(r"[a-z]+|[0-9]+", prompt.lower())
    vocabularies = (
        {word: i for i, word in enumerate(DIGITS)} | {str(i): i for i in range(len(DIGITS))},
        {word: i for i, word in enumerate(WEIGHTS)},
        {phrase.split()[-1]: i for i, phrase in enumerate(SLANTS)},  # left, upright, right
    )
    named = [{values[word] for word in words if word in values} for values in vocabularies]
    return tuple(found.pop() if len(found) == 1 else None for found in named)


def full_prompts() -> list[tuple[int, int, int]]:
    """The 90 full combinations (digit, weight, slant), held-out ones included."""
    return [
        (digit, weight, slant)
        for digit in range(len(DIGITS))
        for weight in range(len(WEIGHTS))
        for slant in range(len(SLANTS))
    ]


def _check(name: str, value: int, values: tuple[str, ...]) -> None:
    if not 0 <= value < len(values):
        raise ValueError(f"{name} must be 0 to {len(values) - 1}, not {value}")


def _ink(images: np.ndarray) -> np.ndarray:
    """Ink (N, H, W), from 0 for paper to 255 for black, of bytes or of floats in [-1, 1]."""
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]  # (N, H, W)
    if images.ndim != 3:
        raise ValueError(f"images must be (N, H, W) or (N, H, W, 1), not {images.shape}")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be uint8 or floats in [-1, 1], not {images.dtype}")
    if not np.isfinite(images).all():
        raise ValueError("images hold NaN or infinity: there is nothing to measure")
    return np.clip((images + 1.0) * 127.5, 0.0, 255.0)
