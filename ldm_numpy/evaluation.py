"""How good a model folder is: every quality that is claimed of it, measured on the folder itself.

A classifier that had no part in the training reads the samples; slant and stroke width are measured
from their pixels. `verdict` sets each number beside the band it should be in, and names the likely
cause where one is outside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import images, model_folder
from .backend import blas_threads, generator, to_device, to_host
from .checks import number, whole
from .data import captions, mnist
from .diffusion.guidance import checked_interval
from .metrics import (
    clip_score,
    frechet_distance,
    frechet_floor,
    prompt_accuracy,
    zero_shot_accuracy,
)
from .parallel import Shards
from .pipeline import LARGEST_SCALE, TextToImage
from .pixel_likelihood import checked_pixel_model, digit_bits, histogram_bits

PER_COMBINATION = 22  # samples of each of the 90 full combinations
FRECHET_SAMPLES = 2000  # set against the other 8,000 test digits
FRECHET_SHUFFLES = 20
SEED = 20_000  # of the samples: training and its pictures use the run's own


class Judge:
    """The networks that measure: the reader and CLIP, both from the model folder."""

    def __init__(self, folder: Path, device: str, threads: int | None = None):
        config = model_folder.read_config(folder)
        self.reader = model_folder.load_network(folder, config, "reader", device)
        self.clip = model_folder.load_network(folder, config, "clip", device)
        self.device = device
        self.shards = Shards(128 if device == "cpu" else None, threads)

    def on_images(self, function, pixels) -> np.ndarray:
        """function(images (N, 28, 28, 1)) on the host, in shards."""
        with blas_threads(1):
            return to_host(self.shards.forward(function, to_device(pixels, self.device)))

    def read(self, pixels) -> np.ndarray:
        """The digit in each image (N, 28, 28, 1)."""
        return self.on_images(self.reader, pixels).argmax(axis=1)

    def features(self, pixels) -> np.ndarray:
        """The reader's last layer but one, in which Fréchet distances are taken: (N, D)."""
        return self.on_images(self.reader.embed, pixels)

    def text_embeddings(self, tokenizer, texts: list[str]) -> np.ndarray:
        """CLIP's unit vectors of texts, (N, P)."""
        distinct, place = np.unique(texts, return_inverse=True)
        with blas_threads(1):
            vectors = to_host(self.shards.forward(self.clip.encode_text, tokenizer(list(distinct))))
        return vectors[place]


def evaluate(
    model: str | Path | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    per_combination: int = PER_COMBINATION,
    frechet_samples: int = FRECHET_SAMPLES,
    guidance_scale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    seed: int = SEED,
    likelihood: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measure a model folder; returns numbers by name (see BANDS for their meaning).

    Args:
        model: folder of the model or of a finished run; the shipped model by default
        data: folder of IDX files, the embedded digits by default
        per_combination, frechet_samples: how many samples; fewer are quicker and less certain
        guidance_scale, guidance_interval: instead of the model's own defaults
        seed: of the samples; settings must not be tuned on the seed that is reported
        likelihood: how many test digits' bits per dimension; only of a model of pixels
        say: called with a line before each part that takes time
    """
    whole("per_combination", per_combination, at_least=1)
    whole("frechet_samples", frechet_samples, at_least=2)
    whole("seed", seed, at_least=0)
    folder = model_folder.find_model(model)
    pipe = model_folder.load(folder, device, threads)
    if whole("likelihood", likelihood, at_least=0):
        whole("likelihood", likelihood, at_least=2)  # for a standard error
        checked_pixel_model(pipe)
    judge = Judge(folder, pipe.device, threads)
    scale = pipe.config.guidance_scale if guidance_scale is None else guidance_scale
    number("guidance_scale", scale, -LARGEST_SCALE, LARGEST_SCALE)
    interval = pipe.config.guidance_interval if guidance_interval is None else guidance_interval
    guidance = {"guidance_scale": scale, "guidance_interval": list(checked_interval(interval))}
    pictures, labels = mnist.load("test", data)
    if frechet_samples > len(pictures) - 2:
        raise ValueError(
            f"frechet_samples is {frechet_samples}: of {len(pictures)} test images, at least two "
            "must be left to compare with"
        )
    if likelihood > len(pictures):
        raise ValueError(f"likelihood is {likelihood}, of {len(pictures)} test digits")
    labels = labels.astype(np.int64)
    weights, slants = captions.attributes(pictures)
    pixels = mnist.to_float(pictures)
    metrics = {
        **guidance,
        "sampler": pipe.config.sampler,
        "num_inference_steps": pipe.config.num_inference_steps,
        "seed": seed,
        "per_combination": per_combination,
        "frechet_samples": frechet_samples,
    }

    say(f"reconstructing {len(pixels):,} test digits")
    real_features = judge.features(pixels)
    metrics["reader_accuracy"] = float((judge.read(pixels) == labels).mean())
    metrics |= reconstruction_quality(pipe, judge, pixels, (labels, weights, slants))
    embeddings = judge.on_images(judge.clip.encode_image, pixels)
    names = judge.text_embeddings(pipe.tokenizer, [captions.caption(d) for d in range(10)])
    metrics["clip_zero_shot"] = zero_shot_accuracy(embeddings, names, labels)

    prompts, wanted = combination_prompts(per_combination)
    say(f"drawing {len(prompts):,} samples of all 90 combinations")
    drawn = draw(pipe, prompts, guidance, seed)
    measured = (judge.read(drawn), *captions.attributes(drawn))
    held_out = captions.HELD_OUT
    metrics |= {f"sample_{k}": v for k, v in prompt_accuracy(measured, wanted, held_out).items()}
    text_vectors = judge.text_embeddings(pipe.tokenizer, prompts)
    metrics["clip_score"] = clip_score(
        judge.on_images(judge.clip.encode_image, drawn), text_vectors
    )
    metrics["sample_ink"] = float((drawn + 1).mean() / max((pixels + 1).mean(), 1e-6))

    rng = generator(seed, "frechet")
    order = rng.permutation(len(pixels))
    chosen, others = order[:frechet_samples], order[frechet_samples:]
    say(f"drawing {frechet_samples:,} samples of the test set's captions")
    texts = captions.sample_captions(labels[chosen], weights[chosen], slants[chosen], rng)
    sample_features = judge.features(draw(pipe, texts, guidance, seed + 1))
    metrics["frechet_distance"] = frechet_distance(sample_features, real_features[others])
    # What the very digits whose captions were used would have: splits differ, by luck.
    metrics["frechet_split"] = frechet_distance(real_features[chosen], real_features[others])
    floor = frechet_floor(real_features, frechet_samples, FRECHET_SHUFFLES, rng)
    metrics["frechet_floor"] = floor
    metrics["frechet_ratio"] = metrics["frechet_distance"] / floor if floor else float("nan")
    if likelihood:
        some = generator(seed, "likelihood").permutation(len(pictures))[:likelihood]
        say(f"solving for the likelihood of {len(some):,} test digits")
        bits = digit_bits(pipe, pictures[some], seed)
        metrics["bits_per_dimension"] = float(bits.mean())
        metrics["bits_standard_error"] = float(bits.std(ddof=1) / len(bits) ** 0.5)
        plain = histogram_bits(mnist.load("train", data)[0], pictures[some])
        metrics["bits_of_histograms"] = float(plain.mean())
    return metrics


def draw(pipe: TextToImage, prompts: list[str], guidance: dict, seed: int) -> np.ndarray:
    """Images (N, 28, 28, 1) of the prompts, as a user would get them: whole grey levels."""
    return images.from_pil(pipe(prompts, **guidance, seed=seed))


def combination_prompts(per_combination: int):
    """Full prompts of all 90 combinations, words and numerals in turn, and what they ask for."""
    combinations = captions.full_prompts()
    wanted = np.array([c for c in combinations for _ in range(per_combination)]).T  # (3, N)
    prompts = [
        captions.caption(*combination, numeral=bool(i % 2))
        for combination in combinations
        for i in range(per_combination)
    ]
    return prompts, tuple(wanted)


def reconstruction_quality(pipe, judge: Judge, pixels, truth) -> dict:
    """Digits, slants and strokes that survive the autoencoder, and the squared error a pixel."""
    labels, weights, slants = truth
    decoded = pipe.decode(pipe.encode(pixels)).clip(-1, 1)
    new_weights, new_slants = captions.attributes(decoded)
    return {
        "autoencoder_digit": float((judge.read(decoded) == labels).mean()),
        "autoencoder_slant": float((new_slants == slants).mean()),
        "autoencoder_stroke": float((new_weights == weights).mean()),
        "autoencoder_mse": float(((decoded - pixels) ** 2).mean()),
    }


@dataclass(frozen=True)
class Band:
    """Where a number should be: at least `low` or at most `high`, and what is wrong otherwise."""

    name: str
    meaning: str
    low: float = -np.inf
    high: float = np.inf
    cause: str = ""

    def holds(self, metrics: dict) -> bool:
        return self.low <= metrics[self.name] <= self.high


BANDS = (
    Band("reader_accuracy", "reader on test digits", low=0.99, cause="train the reader longer"),
    Band(
        "autoencoder_digit",
        "digits read after autoencoding",
        low=0.98,
        cause="the autoencoder blurs: train it longer or lower kl_weight",
    ),
    Band(
        "autoencoder_slant",
        "slant thirds kept by it",
        low=0.96,
        cause="the autoencoder distorts: train it longer",
    ),
    Band(
        "autoencoder_stroke",
        "stroke thirds kept by it",
        low=0.88,
        cause="the autoencoder thickens or thins: train it longer",
    ),
    Band(
        "autoencoder_mse",
        "squared error a pixel (-1..1)",
        high=0.01,
        cause="train the autoencoder longer, or its KL weight drowns the latent in noise",
    ),
    Band(
        "clip_zero_shot",
        "CLIP names the digit",
        low=0.97,
        cause="train CLIP longer, or with larger batches",
    ),
    Band("sample_ink", "ink of samples / of digits", low=0.8, high=1.25, cause="see below"),
    Band("sample_digit", "samples: digit as asked", low=0.99, cause="condition"),
    Band("sample_slant", "samples: slant as asked", low=0.94, cause="condition"),
    Band("sample_stroke", "samples: stroke as asked", low=0.88, cause="condition"),
    Band("sample_all", "samples: all three", low=0.85, cause="condition"),
    Band(
        "frechet_ratio",
        "Fréchet distance / its floor",
        high=4.5,
        cause="too much guidance narrows the variety; too few steps leave noise",
    ),
)


def verdict(metrics: dict) -> list[str]:
    """One line a number: its band, whether it holds, and if not the likely cause."""
    lines = [_line(band, metrics) for band in BANDS]
    held_out, rest = metrics.get("sample_held_out"), metrics.get("sample_rest")
    if held_out is not None and rest is not None:
        band = Band(
            "sample_held_out",
            "held-out combinations, all three",
            low=round(rest - 0.10, 4),
            cause="captions are learned by heart: drop attributes more often",
        )
        lines.append(_line(band, metrics))
    lines.append(f"     {'CLIP score of the samples':32} {metrics['clip_score']:8.4f}")
    if "bits_per_dimension" in metrics:
        spread = f"standard error {metrics['bits_standard_error']:.4f}"
        plain = f"{metrics['bits_of_histograms']:.4f} by each pixel's histogram"
        bits = metrics["bits_per_dimension"]
        lines.append(f"     {'bits per dimension':32} {bits:8.4f}   {spread}; {plain}")
    return lines


def _line(band: Band, metrics: dict) -> str:
    limits = ((">=", band.low), ("<=", band.high))
    bound = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if np.isfinite(limit))
    line = f"{band.meaning:32} {metrics[band.name]:8.4f}   expected {bound}"
    return f"ok   {line}" if band.holds(metrics) else f"OUT  {line}: {_cause(band, metrics)}"


def _cause(band: Band, metrics: dict) -> str:
    """The likely cause, told from the other numbers."""
    ink, digit = metrics["sample_ink"], metrics["sample_digit"]
    if not np.isfinite(metrics[band.name]):
        return "not a number: the weights are damaged"
    if band.name.startswith("sample") or band.name == "frechet_ratio":
        if ink < 0.3:
            return "black pictures: latent_scale or the sampler's noise levels are off"
        if ink > 2:
            return "noise: the U-Net is untrained, or latent_scale is off"
        if digit < 0.3:
            return "the condition is ignored: cross-attention or the text encoder did not learn"
        if band.name == "sample_ink":
            return "strokes too thin or too bold: train the U-Net longer"
        if band.cause == "condition":
            return "train the U-Net longer, or raise guidance_scale"
    return band.cause
