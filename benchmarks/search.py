"""python -m benchmarks.search RUN [--steps N] [FIELD=VALUE ...]: a U-Net training under other
settings, and how far it came.

RUN is a finished run (its reader, autoencoder and CLIP are used, nothing in it is changed). A FIELD
is one of UNetStageConfig's or UNetConfig's, a VALUE a Python literal. Prints, of the averaged
weights, the loss on test digits, which all settings share: noise levels, noise and weights of the
default settings, full captions and none; and of samples with each guidance how many are as
asked (digit, slant, stroke, all), and their Fréchet distance in multiples of its floor. Fewer
samples than an evaluation takes, and with another seed. README.md has the table of what was tried.
"""

import argparse
import ast
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from ldm_numpy import evaluation, images
from ldm_numpy.backend import blas_threads, generator, tune_cpu
from ldm_numpy.data import captions
from ldm_numpy.diffusion.denoiser import denoising_loss, edm_sigmas
from ldm_numpy.diffusion.guidance import guide
from ldm_numpy.metrics import frechet_distance, frechet_floor, prompt_accuracy
from ldm_numpy.models import unet
from ldm_numpy.optim import warmup_cosine
from ldm_numpy.parallel import Shards
from ldm_numpy.pipeline import PipelineConfig
from ldm_numpy.tensor import no_grad
from ldm_numpy.training import UNET, Run, loop
from ldm_numpy.training.autoencoder import encode_moments
from ldm_numpy.training.unet import UNetStage, UNetStageConfig

TEST = 768  # digits that the loss is measured on
SAMPLES = 900  # a guidance scale, of full prompts; and as many of test captions
STEPS = 20  # of the sampler
SEED = 7  # of the samples: not evaluation's


def changed(defaults, settings: dict):
    """A dataclass with those of `settings` that are its fields."""
    own = {field.name for field in dataclasses.fields(defaults)}
    return dataclasses.replace(defaults, **{k: v for k, v in settings.items() if k in own})


def build(folder: Path, settings: dict, threads: int | None) -> tuple[UNetStage, Run]:
    """The stage as `train unet` builds it, with other settings."""
    run = Run(folder, threads=threads)
    usual = run.unet()
    pipe = usual.pipeline
    stage = UNetStage(
        changed(unet.MNIST, settings), changed(UNET, settings), usual.settings, pipe.autoencoder,
        pipe.text_encoder, pipe.tokenizer, run.train, run.seed, "cpu", threads,
    )  # fmt: skip
    return stage, run


def test_loss(stage: UNetStage, run: Run, shards: Shards) -> list[float]:
    """Loss of the weights as they stand with full captions and with none."""
    test, settings = run.test, stage.settings
    digits = test.images[:TEST]
    mean, _ = encode_moments(
        stage.pipeline.autoencoder, digits, settings.padded_size, shards, "cpu"
    )
    latents = mean * np.float32(settings.latent_scale)
    rng = generator(0, "search")
    usual = UNetStageConfig(steps=1)
    levels = rng.standard_normal(TEST, np.float32)
    sigma = edm_sigmas(levels, usual.P_mean, usual.P_std)
    noise = rng.standard_normal(latents.shape, np.float32)
    said = [captions.caption(*row) for row in zip(test.labels, test.weights, test.slants)]
    losses = []
    for texts in (said[:TEST], [""] * TEST):
        states = stage.pipeline.encode_prompts(texts)
        with no_grad():
            parts = [
                denoising_loss(
                    stage.denoiser, *(a[i : i + 64] for a in (latents, sigma, noise, states))
                )
                for i in range(0, TEST, 64)
            ]
        losses.append(float(np.mean([part.data for part in parts])))
    return losses


def sample_quality(stage: UNetStage, run: Run, guidances: list) -> list[dict]:
    """For each (scale, low, high): accuracies, and "frechet" in multiples of its floor."""
    reader = run.classifier("reader")
    loop.load_trained(reader, run.folder)
    pipe, test = stage.pipeline, run.test
    rng = generator(SEED, "frechet")
    order = rng.permutation(len(test))
    chosen, others = order[:SAMPLES], order[SAMPLES:]
    features = pipe.shards.forward(reader.network.embed, test.pixels(slice(None)))
    floor = frechet_floor(features, SAMPLES, 5, rng)
    prompts, wanted = evaluation.combination_prompts(SAMPLES // 90)
    texts = captions.sample_captions(test.labels[chosen], test.weights[chosen],
                                     test.slants[chosen], rng)  # fmt: skip
    result = []
    for scale, *interval in guidances:
        options = {"guidance_scale": scale, "guidance_interval": interval}
        drawn, other = (
            images.from_pil(pipe(p, **options, num_inference_steps=STEPS, seed=SEED + i))
            for i, p in enumerate((prompts, texts))
        )
        read = pipe.shards.forward(reader.network, drawn).argmax(1)
        quality = prompt_accuracy((read, *captions.attributes(drawn)), wanted, captions.HELD_OUT)
        got = pipe.shards.forward(reader.network.embed, other)
        quality["frechet"] = frechet_distance(got, features[others]) / floor
        result.append(quality)
    return result


def train(stage: UNetStage, shards: Shards, steps: int) -> float:
    """Train; leaves the averaged weights in the network and returns the seconds."""
    config = stage.config
    ring, shards = loop.ranks(shards, config.batch_size)
    optimizer, ema = loop.prepare(stage, shards)
    stage.before_steps()
    began = time.perf_counter()
    with ring:
        ring.fork()
        for step in range(steps):
            optimizer.zero_grad()
            stage.gradients(step, shards, optimizer.parameters)
            optimizer.clip_gradient(config.clip_norm)
            factor = warmup_cosine(step, steps, config.warmup, loop.FLOOR)
            optimizer.step(config.learning_rate * factor)
            ema.update()
    optimizer.weights[...] = ema.average
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search")
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--guidance", type=float, nargs=3, action="append", metavar=("SCALE", "LOW", "HIGH"),
        help="a scale and the interval of noise levels; may be repeated",
    )  # fmt: skip
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE")
    options = parser.parse_intermixed_args()
    known = {
        f.name for kind in (UNetStageConfig, unet.UNetConfig) for f in dataclasses.fields(kind)
    }
    usual = PipelineConfig()
    guidances = options.guidance or [[usual.guidance_scale, *usual.guidance_interval]]
    try:
        for scale, *interval in guidances:
            guide(None, scale, interval=interval)  # raises ValueError for what is none
        pairs = [setting.split("=", 1) for setting in options.settings]
        if not all(len(pair) == 2 for pair in pairs):
            raise ValueError(f"settings are FIELD=VALUE, not {options.settings}")
        settings = {name: ast.literal_eval(value) for name, value in pairs}
        if unknown := set(settings) - known:
            raise ValueError(f"unknown settings {sorted(unknown)}: use some of {sorted(known)}")
        stage, run = build(options.run, settings, options.threads)
    except (ValueError, SyntaxError) as error:
        parser.error(str(error))
    tune_cpu()
    shards = Shards(stage.config.shard_size, options.threads)
    with blas_threads(1):
        seconds = train(stage, shards, options.steps)
        full, empty = test_loss(stage, run, shards)
        quality = sample_quality(stage, run, guidances)
    size = stage.network.count_parameters()
    print(
        f"{' '.join(options.settings) or 'as shipped'}: {options.steps} steps, {size:,} parameters,"
        f" {seconds:.0f} s, loss {full:.4f} with full captions, {empty:.4f} with none"
    )
    for (scale, low, high), q in zip(guidances, quality):
        shares = ", ".join(f"{name} {q[name]:.1%}" for name in ("digit", "slant", "stroke", "all"))
        print(f"  guidance {scale:g} for {low:g} < sigma <= {high:g}: {shares}, "
              f"held out {q['held_out']:.1%}, distance {q['frechet']:.2f} floors")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
