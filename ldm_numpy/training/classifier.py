"""Stage 0: two classifiers. One gives the perceptual loss its features, the other reads samples."""

import dataclasses
from pathlib import Path

import numpy as np

from .. import images, ops
from ..backend import generator, to_device, to_host
from ..data import mnist
from ..models.classifier import Classifier, ClassifierConfig
from ..parallel import Shards
from .dataset import Digits, shifted
from .loop import Stage, StageConfig


class ClassifierStage(Stage):
    """Cross entropy on digits moved about by up to two pixels.

    An answer of zero has loss ln 10: each class as likely as the others.
    """

    report = ("loss",)

    def __init__(
        self,
        name: str,
        network: ClassifierConfig,
        config: StageConfig,
        train: Digits,
        test: Digits,
        seed: int,
        device: str = "cpu",
    ):
        self.name, self.config, self.seed, self.device = name, config, seed, device
        self.train, self.test = train, test
        self.network = Classifier(network, seed=seed).to(device)
        self.networks = {"classifier": self.network}
        self.baselines = {"loss": float(np.log(network.num_classes))}

    def describe(self) -> dict:
        return super().describe() | {"network": dataclasses.asdict(self.network.config)}

    def gradients(self, step: int, shards: Shards, parameters) -> list:
        index = mnist.batch_indices(len(self.train), self.config.batch_size, self.seed, step)
        rng = generator(self.seed, self.name, step, "shift")
        pixels = to_device(shifted(self.train.pixels(index), rng), self.device)
        labels = self.train.labels[index]

        def loss(rows):
            return [ops.softmax_cross_entropy(self.network(pixels[rows]), labels[rows])]

        return shards.backward(loss, len(index), parameters)

    def draw(self, path: Path, shards: Shards) -> None:
        """Test digits that are misread, with what they are read as."""
        pixels = self.test.pixels(slice(0, 2000))
        read = read_digits(self.network, pixels, shards, self.device)
        wrong = np.flatnonzero(read != self.test.labels[:2000])[:24]
        if len(wrong):
            labels = [f"{self.test.labels[i]} as {read[i]}" for i in wrong]
            images.save_png(images.grid(pixels[wrong], 8, scale=2, labels=labels), path)


def read_digits(network: Classifier, pixels, shards: Shards, device: str) -> np.ndarray:
    """The most likely digit of each image (N, 28, 28, 1)."""
    return to_host(shards.forward(network, to_device(pixels, device)).argmax(1))
