"""Bits per dimension of digits under a model of pixels, and under a plain one beside it."""

import numpy as np

from .backend import blas_threads, generator
from .diffusion.denoiser import Denoiser
from .diffusion.likelihood import bits_per_dimension, dequantise, log_likelihood
from .models.autoencoder import PixelSpace
from .pipeline import TextToImage

SHARD = 32  # digits whose ODE is solved together


def checked_pixel_model(pipe: TextToImage) -> None:
    if not isinstance(pipe.autoencoder, PixelSpace):
        raise ValueError(
            "likelihood is that of pixels: it needs a model of pixels, as `train pixel` makes"
        )


def digit_bits(
    pipe: TextToImage,
    digits: np.ndarray,
    seed: int,
    sigma_min: float = 0.004,
    tolerance: float = 1e-4,
) -> np.ndarray:
    """Bits per dimension (N,) that a model of pixels, without a caption, needs for digits
    (N, 28, 28) uint8: of one dequantisation and one draw of signs each.

    sigma_min is in units of the scaled pixels, a third of a grey level, tolerance the solver's.
    Raises ValueError for a model of latents, and for what are no such digits.
    """
    checked_pixel_model(pipe)
    side = pipe.config.image_size
    if digits.dtype != np.uint8 or digits.shape[1:] != (side, side) or not len(digits):
        raise ValueError(f"digits must be (N, {side}, {side}) uint8, not {digits.shape} "
                         f"{digits.dtype}")  # fmt: skip
    scale, sigma_max = pipe.config.latent_scale, 2 * pipe.config.sigma_max
    D = Denoiser(pipe.unet, pipe.config.sigma_data, pipe.config.objective)
    x = pipe.encode(dequantise(digits[..., None], generator(seed, "dequantise")))
    cond = pipe.encode_prompts([""] * len(x))

    def solve(start: int):
        rows = slice(start, start + SHARD)
        rng = generator(seed, "signs", start)
        return log_likelihood(
            D, x[rows], cond[rows], rng=rng, sigma_min=sigma_min, sigma_max=sigma_max,
            sigma_data=pipe.config.sigma_data, rtol=tolerance, atol=tolerance,
        )  # fmt: skip

    with blas_threads(1):
        log_p = np.concatenate(list(pipe.shards.map(solve, range(0, len(x), SHARD))))
    dimensions = digits[0].size
    # The density of pixels is that of scaled pixels, times the scale for each of them.
    return bits_per_dimension(log_p + dimensions * np.log(scale), dimensions)


def histogram_bits(train: np.ndarray, digits: np.ndarray, uniform: float = 10.0) -> np.ndarray:
    """Bits per dimension (N,) of a plain model, for comparison: every pixel by itself, its grey
    levels as often as in `train` (M, 28, 28), mixed with `uniform` images of noise."""
    flat, values = train.reshape(len(train), -1), digits.reshape(len(digits), -1)
    bits = np.zeros(values.shape)
    for pixel in range(values.shape[1]):
        counts = np.bincount(flat[:, pixel], minlength=256) + uniform / 256
        bits[:, pixel] = -np.log2(counts[values[:, pixel]] / (len(train) + uniform))
    return bits.mean(axis=1)
