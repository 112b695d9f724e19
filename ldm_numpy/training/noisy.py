"""Beside the others: a classifier of noised latents, for guidance by a classifier."""

import dataclasses
import math
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import images, ops
from ..backend import generator, to_device, to_host
from ..data import mnist
from ..diffusion.denoiser import edm_sigmas, stratified_normals
from ..models.autoencoder import AutoencoderKL
from ..models.classifier import ClassifierConfig, NoisyClassifier
from ..parallel import Shards
from .autoencoder import encode_moments
from .dataset import Digits
from .loop import Stage, StageConfig


@dataclasses.dataclass(frozen=True)
class NoisyStageConfig(StageConfig):
    """Besides StageConfig's fields, ln(sigma) is normal with P_mean and P_std."""

    P_mean: float = 0.0
    P_std: float = 1.5


class NoisyClassifierStage(Stage):
    """Cross entropy of log p(digit | x; sigma) on scaled latents with noise of every level.

    An answer of zero has loss ln 10; and at high levels there is no better one.
    """

    name = "noisy"
    report = ("loss",)

    def __init__(
        self,
        network: ClassifierConfig,
        config: NoisyStageConfig,
        autoencoder: AutoencoderKL,
        padded_size: int,
        latent_scale: float,
        train: Digits,
        seed: int,
        device: str = "cpu",
        threads: int | None = None,
    ):
        self.config, self.train, self.seed, self.device = config, train, seed, device
        self.threads = threads
        self.autoencoder, self.padded_size = autoencoder, padded_size
        self.latent_scale = latent_scale
        self.network = NoisyClassifier(network, seed=seed).to(device)
        self.networks = {"noisy_classifier": self.network}
        self.baselines = {"loss": float(np.log(network.num_classes))}

    def before_steps(self) -> None:
        self.posteriors  # noqa: B018 - worked out once, for all processes

    @cached_property
    def posteriors(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every training image's scaled latent, (N, h, w, C)."""
        return encode_moments(
            self.autoencoder,
            self.train.images,
            self.padded_size,
            Shards(64 if self.device == "cpu" else None, self.threads),
            self.device,
            self.latent_scale,
        )

    def describe(self) -> dict:
        own = {"network": dataclasses.asdict(self.network.config)}
        return super().describe() | own | {"latent_scale": self.latent_scale}

    def gradients(self, step: int, shards: Shards, parameters) -> list:
        config, n = self.config, self.config.batch_size
        index = mnist.batch_indices(len(self.train), n, self.seed, step)
        mean, std = (moments[index] for moments in self.posteriors)
        rng = generator(self.seed, self.name, step, "noise")
        latents = mean + std * rng.standard_normal(mean.shape, np.float32)
        levels = edm_sigmas(stratified_normals(n, rng), config.P_mean, config.P_std)
        noised = latents + levels[:, None, None, None] * rng.standard_normal(mean.shape, np.float32)
        x, sigma = to_device(noised, self.device), to_device(levels, self.device)
        labels = self.train.labels[index]

        def loss(rows):
            return [ops.softmax_cross_entropy(self.network(x[rows], sigma[rows]), labels[rows])]

        return shards.backward(loss, n, parameters)

    def draw(self, path: Path, shards: Shards) -> None:
        """Ten digits under more and more noise, and what they are read as."""
        rng = generator(self.seed, self.name, "draw")
        clean = self.posteriors[0][:10]
        noise = rng.standard_normal(clean.shape, np.float32)
        pixels, read = [], []
        for sigma in np.float32([0.25, 0.5, 1, 2, 4, 8]):
            x = to_device(clean + sigma * noise, self.device)
            levels = to_device(np.full(len(clean), sigma), self.device)
            visible = x / (self.latent_scale * math.sqrt(1 + sigma**2))
            pixels.append(to_host(shards.forward(self.autoencoder.decode, visible)))
            read += [f"as {d}" for d in to_host(shards.forward(self.network, x, levels).argmax(1))]
        images.save_png(images.grid(np.concatenate(pixels), len(clean), 2, labels=read), path)
