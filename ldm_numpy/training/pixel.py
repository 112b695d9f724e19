"""The same U-Net without an autoencoder: it learns to denoise the pixels themselves.

For likelihoods, which are those of pixels, and to see what the latent space is worth.
"""

import dataclasses

import numpy as np

from ..backend import generator, to_device
from ..data import mnist
from ..diffusion.likelihood import dequantise
from ..tensor import Tensor, no_grad
from .dataset import Digits
from .unet import UNetStage


class PixelStage(UNetStage):
    """UNetStage whose latents are pixels, spread evenly over their grey levels and rearranged."""

    name = "pixel"

    def before_steps(self) -> None:
        """Nothing to encode."""

    def describe(self) -> dict:
        pixel_space = dataclasses.asdict(self.pipeline.autoencoder.config)
        return super().describe() | {"pixel_space": pixel_space}

    def clean(self, index, step: int):
        rng = generator(self.seed, self.name, step, "dequantise")
        pixels = dequantise(self.train.images[index][..., None], rng)  # (N, 28, 28, 1)
        with no_grad():
            latents, _ = self.pipeline.autoencoder.encode(Tensor(to_device(pixels, self.device)))
        return latents.data * self.settings.latent_scale  # (N, 14, 14, 4)


def pixel_moments(digits: Digits) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of 2,048 digits."""
    pixels = mnist.to_float(digits.images[:2048])
    return float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
