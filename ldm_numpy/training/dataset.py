"""What all stages train on: digits, and the attributes that their captions say."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend import generator
from ..data import captions, mnist


@dataclass(frozen=True)
class Digits:
    """One split of the data. images (N, 28, 28) uint8; labels, weights, slants (N,) integers."""

    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    slants: np.ndarray

    @classmethod
    def load(cls, split: str, folder: str | Path | None = None) -> "Digits":
        """Read "train" or "test", embedded or from a folder, and measure it."""
        images, labels = mnist.load(split, folder)
        weights, slants = captions.attributes(images)
        return cls(images, labels.astype(np.int64), weights, slants)

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """A short name of exactly these images and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()[:16]

    def pixels(self, index) -> np.ndarray:
        """Images as the networks see them, (N, 28, 28, 1) float32 in [-1, 1]."""
        return mnist.to_float(self.images[index])

    def captioned(self) -> "Digits":
        """Without the held-out combinations: what captions may be learned from."""
        keep = captions.allowed(self.labels, self.weights, self.slants)
        return Digits(*(a[keep] for a in (self.images, self.labels, self.weights, self.slants)))

    def captions(self, index, seed: int, *purpose) -> list[str]:
        """A random caption for each image of `index`."""
        rng = generator(seed, *purpose, "captions")
        return captions.sample_captions(
            self.labels[index], self.weights[index], self.slants[index], rng
        )


def shifted(pixels: np.ndarray, rng: np.random.Generator, distance: int = 2) -> np.ndarray:
    """Each image (N, H, W, 1) moved by up to `distance` pixels in y and x; paper (-1) comes in."""
    n, height, width, _ = pixels.shape
    border = ((0, 0), (distance, distance), (distance, distance), (0, 0))
    padded = np.pad(pixels, border, constant_values=-1)
    top, left = rng.integers(0, 2 * distance + 1, (2, n, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)  # (N, H), (N, W)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
