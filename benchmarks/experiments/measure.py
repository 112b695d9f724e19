"""How good the samples of a pipeline are, the same way in every experiment."""

import time
from functools import cached_property
from pathlib import Path

import numpy as np

from ldm_numpy import evaluation, images, model_folder
from ldm_numpy.backend import generator
from ldm_numpy.data import captions, mnist
from ldm_numpy.metrics import (
    bootstrap_interval,
    clip_score,
    frechet_distance,
    frechet_floor,
    kernel_distance,
    precision_recall,
    prompt_accuracy,
)

SAMPLES = 500
SHUFFLES = 10
SEED = 31  # of the prompts and samples: neither training's nor evaluation's


class Bench:
    """The trained model in a folder, the test digits, and what measures samples against them."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = model_folder.find_model(folder)
        self.judge = evaluation.Judge(self.folder, "cpu")

    @cached_property
    def pipe(self):
        return model_folder.load(self.folder, "cpu")

    @cached_property
    def test(self):
        """(pictures uint8, pixels, labels, weights, slants) of the test digits."""
        pictures, labels = mnist.load("test")
        weights, slants = captions.attributes(pictures)
        return pictures, mnist.to_float(pictures), labels.astype(np.int64), weights, slants

    @cached_property
    def features(self) -> np.ndarray:
        return self.judge.features(self.test[1])

    def chosen(self, n: int):
        """n test digits, the others, and the full captions of the former."""
        order = generator(SEED, "chosen").permutation(len(self.test[0]))
        _, _, labels, weights, slants = self.test
        texts = [captions.caption(labels[i], weights[i], slants[i]) for i in order[:n]]
        return order[:n], order[n:], texts

    def wanted(self, index):
        """(digit, weight, slant) of test digits."""
        _, _, labels, weights, slants = self.test
        return labels[index], weights[index], slants[index]

    def floor(self, n: int) -> float:
        """The Fréchet distance that n perfect samples would have on the average: its bias."""
        return frechet_floor(self.features, n, SHUFFLES, generator(SEED, "floor"))

    def accuracy(self, drawn, wanted) -> dict:
        measured = (self.judge.read(drawn), *captions.attributes(drawn))
        found = prompt_accuracy(measured, wanted, captions.HELD_OUT)
        return {name: round(value, 4) for name, value in found.items()}

    def quality(self, pipe, n: int = SAMPLES, draw=None, thorough: bool = False, **options) -> dict:
        """Accuracies and Fréchet distance of n samples of the full captions of n test digits.

        `draw(texts)`, where given, makes them, as images (N, 28, 28, 1). `thorough` adds kernel
        distance with its interval, precision, recall and CLIP score.
        """
        index, others, texts = self.chosen(n)
        began = time.perf_counter()
        make = draw or (lambda texts: images.from_pil(pipe(texts, seed=SEED, **options)))
        drawn = make(texts)
        seconds = time.perf_counter() - began
        features, real = self.judge.features(drawn), self.features[others]
        distance, floor = frechet_distance(features, real), self.floor(n)
        found = self.accuracy(drawn, self.wanted(index))
        found |= {"samples": n, "frechet": round(distance, 3), "floor": round(floor, 3),
                  "seconds": round(seconds, 1)}  # fmt: skip
        if thorough:
            rng = generator(SEED, "bootstrap")
            kernel = kernel_distance(features, real)
            low, high = bootstrap_interval(kernel_distance, features, real, 20, rng)
            precision, recall = precision_recall(real[:n], features)
            vectors = self.judge.text_embeddings(self.pipe.tokenizer, texts)
            pictures = self.judge.on_images(self.judge.clip.encode_image, drawn)
            found |= {"kernel": kernel, "kernel_low": low, "kernel_high": high,
                      "precision": round(precision, 4), "recall": round(recall, 4),
                      "clip_score": round(clip_score(pictures, vectors), 4)}  # fmt: skip
        return found


def counted(pipe, plan_of):
    """Evaluations of the U-Net that `plan_of(pipe)` makes, with and without the prompt as one."""
    calls, usual = [0], pipe.denoiser

    def D(x, sigma, cond=None):
        calls[0] += 1
        return usual(x, sigma, cond)

    pipe.denoiser = D
    try:
        result = plan_of(pipe)
    finally:
        pipe.denoiser = usual
    return result, calls[0]
