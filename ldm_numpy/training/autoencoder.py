"""Stage 1: the autoencoder, images to latents and back."""

import dataclasses
from pathlib import Path

import numpy as np

from .. import images, ops
from ..backend import generator, to_device, to_host
from ..data import mnist
from ..models.autoencoder import AutoencoderConfig, AutoencoderKL
from ..models.classifier import Classifier
from ..parallel import Shards
from ..tensor import no_grad
from .dataset import Digits
from .loop import Stage, StageConfig


@dataclasses.dataclass(frozen=True)
class AutoencoderStageConfig(StageConfig):
    """Besides StageConfig's fields:

    kl_weight: of the KL term (summed over the latent) against the squared error summed over the
        image. A heavy one drowns the latent in noise.
    perceptual_weight: of the perceptual term against the mean squared error
    """

    kl_weight: float = 1e-3
    perceptual_weight: float = 0.1


class AutoencoderStage(Stage):
    """L = mean (x' - x)^2 + perceptual_weight P + kl_weight KL / pixels, x' decoded from a latent
    drawn from N(mean, exp(logvar)).

    The perceptual term P compares feature maps of a classifier, each scaled to unit mean square, so
    that no map outweighs the others (after Zhang et al. 2018 and Rombach et al. 2022, section 3.1;
    theirs is a VGG, ours was trained here). An answer of zero, a grey picture, has the mean square
    of the pixels as its squared error.
    """

    name = "autoencoder"
    report = ("loss", "mse", "perceptual", "kl_per_dimension")

    def __init__(
        self,
        network: AutoencoderConfig,
        config: AutoencoderStageConfig,
        perceptual: Classifier,
        train: Digits,
        test: Digits,
        seed: int,
        device: str = "cpu",
    ):
        self.config, self.seed, self.device = config, seed, device
        self.train, self.test, self.perceptual = train, test, perceptual.to(device)
        self.padded_size = images_side(network)
        self.network = AutoencoderKL(network, seed=seed).to(device)
        self.networks = {"autoencoder": self.network}
        pixels = images.pad_to(test.pixels(slice(0, 1000)), self.padded_size)
        self.baselines = {"mse": round(float((pixels**2).mean()), 4)}
        for parameter in perceptual.parameters():
            parameter.requires_grad = False

    def describe(self) -> dict:
        return super().describe() | {"network": dataclasses.asdict(self.network.config)}

    def gradients(self, step: int, shards: Shards, parameters) -> list:
        config = self.config
        index = mnist.batch_indices(len(self.train), config.batch_size, self.seed, step)
        padded = images.pad_to(self.train.pixels(index), self.padded_size)
        pixels = to_device(padded, self.device)  # (N, 32, 32, 1)
        side = self.padded_size // self.network.config.downsampling
        shape = (len(index), side, side, self.network.config.latent_channels)
        rng = generator(self.seed, self.name, step, "noise")
        noise = to_device(rng.standard_normal(shape, np.float32), self.device)

        def loss(rows):
            x = pixels[rows]
            mean, logvar = self.network.encode(x)
            decoded = self.network.decode(mean + (logvar * 0.5).exp() * noise[rows])
            mse = ops.mse_loss(decoded, x)
            perceptual = self.perceptual_loss(decoded, x)
            kl = ops.gaussian_kl(mean, logvar)  # summed over the latent
            pixel_count = self.padded_size**2
            total = (
                mse + perceptual * config.perceptual_weight + kl * (config.kl_weight / pixel_count)
            )
            return [total, mse, perceptual, kl * (1 / (side * side * shape[-1]))]

        return shards.backward(loss, len(index), parameters)

    def perceptual_loss(self, decoded, x):
        """Mean squared distance of the feature maps, each in units of its own mean square."""
        size = self.perceptual.config.image_size
        with no_grad():
            wanted = [f.data for f in self.perceptual.features(images.crop_to(x, size))]
        total = 0
        for got, want in zip(self.perceptual.features(images.crop_to(decoded, size)), wanted):
            total = total + ops.mse_loss(got, want) / (want * want).mean()
        return total

    def measure(self, shards: Shards) -> dict:
        """The factor that gives latents standard deviation 1, from 2,048 training digits."""
        mean, std = encode_moments(
            self.network, self.train.images[:2048], self.padded_size, shards, self.device
        )
        second_moment = float((mean * mean + std * std).mean())
        return {"latent_scale": 1 / np.sqrt(second_moment - float(mean.mean()) ** 2)}

    def draw(self, path: Path, shards: Shards) -> None:
        """Test digits in the upper row, what is decoded from their latents in the lower."""
        pixels = self.test.pixels(slice(0, 16))
        decoded = reconstruct(self.network, pixels, self.padded_size, shards, self.device)
        images.save_png(images.grid(np.concatenate([pixels, decoded]), len(pixels), 2), path)


def images_side(config: AutoencoderConfig) -> int:
    """The side that 28 pixels are padded to: the next that can be halved down to the latent and
    once more inside the U-Net."""
    step = 2 * config.downsampling
    return -(-mnist.SIDE // step) * step


def encode_moments(
    network: AutoencoderKL,
    digits,
    padded_size: int,
    shards: Shards,
    device: str,
    scale: float = 1.0,
):
    """Mean and standard deviation of the latents of digits (N, 28, 28) uint8, each times `scale`,
    on the host."""

    def moments(digits):
        pixels = to_device(images.pad_to(mnist.to_float(digits), padded_size), device)
        mean, logvar = network.encode(pixels)
        return np.concatenate([to_host(mean.data), np.exp(to_host(logvar.data) * 0.5)], axis=-1)

    both = shards.forward(moments, digits)  # (N, h, w, 2C)
    both *= both.dtype.type(scale)
    channels = both.shape[-1] // 2
    return both[..., :channels], both[..., channels:]


def reconstruct(network: AutoencoderKL, pixels, padded_size: int, shards: Shards, device: str):
    """Images (N, 28, 28, 1) through the encoder's mean and back, on the host."""

    def through(x):
        mean, _ = network.encode(to_device(images.pad_to(x, padded_size), device))
        return to_host(images.crop_to(network.decode(mean).data, mnist.SIDE))

    return shards.forward(through, pixels)
