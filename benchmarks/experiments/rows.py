"""The experiments: for each a row a measurement, by name. A row is a function of `Context`."""

import csv
import dataclasses
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_numpy import attention_maps, editing, images, model_folder
from ldm_numpy.data import captions
from ldm_numpy.diffusion.guidance import EVERYWHERE
from ldm_numpy.diffusion.samplers import SAMPLERS, probability_flow
from ldm_numpy.metrics import nearest
from ldm_numpy.models import unet as unet_models
from ldm_numpy.models.unet import UNet
from ldm_numpy.pixel_likelihood import digit_bits, histogram_bits
from ldm_numpy.training.loop import finished

from . import measure, trainings

EVALUATIONS = (5, 10, 20, 40, 80)
# Evaluations of the denoiser a step, and beyond all steps: a step to level 0 is always one.
COST = {"heun": (2, -1), "edm_stochastic": (2, -1), "predictor_corrector": (2, -1)}
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)  # of the adaptive solver
SCALES = (1.0, 1.5, 2.0, 2.4, 3.0, 4.0, 5.0, 6.0, 8.0)


@dataclasses.dataclass
class Context:
    """base: the finished run of `make train-mnist`; runs: folder of the trainings for comparison;
    figures: folder of the page's figures."""

    base: Path
    runs: Path
    figures: Path

    def __post_init__(self):
        """Raises ValueError unless the run is finished; trains what stands beside its stages."""
        run = trainings.training.Run(self.base)
        for stage in ("unet", *trainings.training.BESIDE):
            path = self.base / f"{stage}.safetensors"
            if stage == "unet" or path.is_file():
                finished(path)
            else:
                run.fit(stage)
        if not (self.base / "model" / "noisy_classifier.safetensors").is_file():
            trainings.training.export(self.base, self.base / "model")
        self.bench = measure.Bench(self.base)

    def save(self, image: Image.Image, name: str) -> None:
        images.save_png(image, self.figures / f"experiments_{name}.png")


# Samplers ----------------------------------------------------------------------------------


def sampler_row(name: str, evaluations: int, context: Context) -> dict:
    """A sampler with about so many evaluations of the denoiser, the usual guidance."""
    per_step, beyond = COST.get(name, (1, 0))
    steps = max(1, round((evaluations - beyond) / per_step))
    pipe = context.bench.pipe

    def run(pipe):
        return context.bench.quality(pipe, sampler=name, num_inference_steps=steps)

    found, calls = measure.counted(pipe, run)
    return found | {"steps": steps, "evaluations": calls}


def adaptive_row(tolerance: float, context: Context) -> dict:
    """The adaptive solver to a tolerance, in units of the latents."""
    solver = partial(probability_flow, rtol=tolerance, atol=tolerance)

    def draw(texts):
        plan = context.bench.pipe.plan(texts, seed=measure.SEED, sampler="euler")
        plan.sampler = solver
        latents = plan.run(plan.noise() * plan.sigmas[0], plan.sigmas)
        return rounded(context.bench.pipe.decode(latents))

    def run(pipe):
        return context.bench.quality(pipe, draw=draw)

    found, calls = measure.counted(context.bench.pipe, run)
    return found | {"tolerance": tolerance, "evaluations": calls}


def rounded(pixels: np.ndarray) -> np.ndarray:
    """Images as they are in a file, in whole grey levels."""
    return images.from_pil(images.to_pil(pixels))


# Guidance ----------------------------------------------------------------------------------


def guidance_row(scale: float, interval, rescale: float, context: Context) -> dict:
    return context.bench.quality(
        context.bench.pipe,
        thorough=True,
        guidance_scale=scale,
        guidance_interval=interval,
        guidance_rescale=rescale,
    )


def classifier_row(scale: float, context: Context) -> dict:
    """No prompt: the noisy classifier of the run says which digit."""
    bench = context.bench
    config = model_folder.read_config(bench.folder)
    classifier = model_folder.load_network(bench.folder, config, "noisy_classifier")
    index, _, _ = bench.chosen(measure.SAMPLES)
    digits = bench.wanted(index)[0]

    def draw(_):
        options = {"classifier_scale": scale, "seed": measure.SEED}
        return images.from_pil(editing.classifier_guided(bench.pipe, classifier, digits, **options))

    return bench.quality(bench.pipe, draw=draw, thorough=True)


# Latents against pixels --------------------------------------------------------------------

SMALL = {"block_out_channels": (44, 60), "norm_num_groups": 4}  # as many parameters as the pixels'


def step_seconds(base: Path, steps: int = 80, turns: int = 3) -> dict[str, float]:
    """Seconds of a training step of pixels and of latents, by the log of short trainings that take
    turns: the median over every 20 steps."""
    run = trainings.training.Run(base, steps={"pixel": steps, "unet": steps})
    stages = {"pixel": run.build("pixel")}
    with trainings.settings(None, SMALL):
        stages["latent"] = run.build("unet")
    found = {name: [] for name in stages}
    for _ in range(turns):
        for name, stage in stages.items():
            with tempfile.TemporaryDirectory() as folder:
                trainings.fit(stage, Path(folder))
                log = (Path(folder) / f"{stage.name}.csv").read_text().splitlines()
                at = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(log)]
            found[name] += [(t - s) / (m - n) for (n, s), (m, t) in pairwise(at)]
    return {name: float(np.median(seconds)) for name, seconds in found.items()}


def spaces_row(context: Context) -> dict:
    """The model of pixels, and one of latents with as many parameters, as long in training."""
    base = context.base
    seconds = step_seconds(base)
    steps = {"pixel": trainings.training.Run(base).pixel_config.steps}
    steps["latent"] = round(steps["pixel"] * seconds["pixel"] / seconds["latent"])
    latent = trainings.trained(base, context.runs / "latent", steps["latent"], network=SMALL)
    pipes = {"pixel": model_folder.load(base / "pixel"), "latent": latent.pipeline}
    found = {}
    for name, pipe in pipes.items():
        context.save(overview(pipe), f"space_{name}")
    speed = images_a_second(pipes)
    for name, pipe in pipes.items():
        row = context.bench.quality(pipe, thorough=True)
        found[name] = row | {
            "parameters": pipe.unet.count_parameters(),
            "training_steps": steps[name],
            "seconds_a_step": round(seconds[name], 3),
            "images_a_second": round(speed[name], 1),
        }
    return found


def images_a_second(pipes: dict, images: int = 128, turns: int = 5) -> dict[str, float]:
    """Images a second that pipelines draw, in turns: the median."""
    prompts = [captions.caption(i % 10, i // 10 % 3, i // 30 % 3) for i in range(images)]
    found = {name: [] for name in pipes}
    for turn in range(turns):
        for name, pipe in pipes.items():
            began = time.perf_counter()
            pipe(prompts, seed=turn)
            found[name].append(images / (time.perf_counter() - began))
    return {name: float(np.median(speeds)) for name, speeds in found.items()}


def overview(pipe) -> Image.Image:
    """Ten digits of each of three descriptions."""
    rows = [(0, 0), (1, 1), (2, 2)]
    prompts = [captions.caption(digit, *row) for row in rows for digit in range(10)]
    labels = [captions.caption(0, *row).replace("zero", "...") for row in rows]
    pictures = images.from_pil(pipe(prompts, seed=measure.SEED))
    return images.grid(pictures, 10, scale=2, row_labels=labels)


def likelihood_row(context: Context) -> dict:
    """Bits per dimension of 200 test digits."""
    pipe = model_folder.load(context.base / "pixel")
    index, _, _ = context.bench.chosen(200)
    digits = context.bench.test[0][index]
    bits = digit_bits(pipe, digits, measure.SEED)
    plain = histogram_bits(trainings.training.mnist.load("train")[0], digits)
    return {
        "digits": len(digits),
        "bits": round(float(bits.mean()), 4),
        "standard_error": round(float(bits.std(ddof=1) / len(bits) ** 0.5), 4),
        "histograms": round(float(plain.mean()), 4),
    }


# What each part is worth -------------------------------------------------------------------


def part_row(name: str, settings: dict, context: Context) -> dict:
    """A training with one thing changed, a third as long as the usual one."""
    stage = trainings.trained(context.base, context.runs / name, **settings)
    found = context.bench.quality(stage.pipeline)
    if "autoencoder" in settings:
        _, pixels, labels, _, _ = context.bench.test
        some = pixels[:2000]
        decoded = stage.pipeline.decode(stage.pipeline.encode(some)).clip(-1, 1)
        found["autoencoder_mse"] = round(float(((decoded - some) ** 2).mean()), 5)
        read = context.bench.judge.read(decoded)
        found["autoencoder_digit"] = float((read == labels[: len(some)]).mean())
        found["latent_scale"] = round(stage.settings.latent_scale, 3)
    return found


def one_token_row(context: Context) -> dict:
    """Captions of one token, in training and in sampling."""
    stage = trainings.trained(context.base, context.runs / "one_token", change=trainings.one_token)

    def draw(texts):
        digits = [captions.DIGITS[captions.parse(text)[0]] for text in texts]
        return images.from_pil(stage.pipeline(digits, seed=measure.SEED))

    return context.bench.quality(stage.pipeline, draw=draw)


def full_row(averaged: bool, context: Context) -> dict:
    """The usual training, with its averaged weights or its last ones."""
    pipe = context.bench.pipe
    if not averaged:
        pipe = model_folder.load(context.bench.folder, "cpu")
        trainings.last_weights(context.base, pipe)
    return context.bench.quality(pipe, thorough=True)


# Composition -------------------------------------------------------------------------------


def composition_row(context: Context) -> dict:
    """The nine combinations that training never saw, 50 samples each, and all others, 10 each."""
    bench, found = context.bench, {}
    unseen = [tuple(c) for c in captions.HELD_OUT]
    rest = [c for c in captions.full_prompts() if c not in unseen]
    for name, combinations, count in (("held_out", unseen, 50), ("rest", rest, 10)):
        wanted = np.array([c for c in combinations for _ in range(count)]).T
        prompts = [captions.caption(*map(int, c)) for c in wanted.T]
        drawn = images.from_pil(bench.pipe(prompts, seed=measure.SEED))
        accuracy = bench.accuracy(drawn, tuple(wanted))
        found[name] = {k: accuracy[k] for k in ("digit", "slant", "stroke", "all")}
        found[name]["samples"] = len(prompts)
    return found


# Editing, attention, memory ----------------------------------------------------------------


def inpaint_row(context: Context) -> dict:
    """The lower half of 200 test digits, drawn anew for their own captions."""
    bench = context.bench
    index, _, texts = bench.chosen(200)
    given = [Image.fromarray(picture) for picture in bench.test[0][index]]
    hole = np.zeros((28, 28), np.uint8)
    hole[14:] = 255
    pictures = editing.inpaint(
        bench.pipe, texts, given, Image.fromarray(hole), seed=measure.SEED
    )
    kept = all(np.array_equal(np.asarray(a)[:14], np.asarray(b)[:14])
               for a, b in zip(pictures, given))  # fmt: skip
    drawn = images.from_pil(pictures)
    covered = [np.where(hole > 0, 96, np.asarray(g)).astype(np.uint8) for g in given]
    shown = [*given[:10], *map(Image.fromarray, covered[:10]), *pictures[:10]]
    rows = ["a test digit", "what is kept", "filled"]
    context.save(images.grid(images.from_pil(shown), 10, 2, row_labels=rows), "inpaint")
    return bench.accuracy(drawn, bench.wanted(index)) | {"samples": 200, "kept": bool(kept)}


def slant_row(strength: float, context: Context) -> dict:
    """300 leaning test digits, turned to lean the other way."""
    bench = context.bench
    index, _, _ = bench.chosen(2000)
    slants = bench.test[4]
    index = index[slants[index] != 1][:300]
    digit, weight, slant = bench.wanted(index)
    wanted = digit, weight, 2 - slant
    texts = [captions.caption(*map(int, c)) for c in zip(*wanted)]
    given = [Image.fromarray(picture) for picture in bench.test[0][index]]
    pictures = editing.image_to_image(
        bench.pipe, texts, given, strength=strength, seed=measure.SEED
    )
    if strength == 0.6:
        shown = images.from_pil([*given[:10], *pictures[:10]])
        rows = ["a test digit", "to lean the other way"]
        context.save(images.grid(shown, 10, 2, row_labels=rows), "slant")
    found = bench.accuracy(images.from_pil(pictures), wanted)
    return {k: found[k] for k in ("digit", "slant", "stroke", "all")} | {"samples": len(index)}


def inversion_row(method: str, steps: int, context: Context) -> dict:
    """100 test digits' latents, taken to noise and back."""
    bench = context.bench
    index, _, texts = bench.chosen(100)
    given = [Image.fromarray(picture) for picture in bench.test[0][index]]
    options = {"num_inference_steps": steps, "method": method}
    noise = editing.invert(bench.pipe, texts, given, **options)
    back = editing.reconstruct(bench.pipe, texts, noise, **options)
    latents = bench.pipe.encode(images.from_pil(given))
    error = np.linalg.norm(back - latents) / np.linalg.norm(latents)
    return {"relative_error": round(float(error), 5), "samples": len(index)}


def words_row(digits: tuple[int, ...], context: Context) -> dict:
    """How each word's map covers the ink, of 200 samples of "a bold ... leaning left"; and by how
    much the digit's word does so better than "a", with the standard error of that."""
    bench = context.bench
    prompts = [captions.caption(digits[i % len(digits)], 2, 0) for i in range(200)]
    drawn, words, maps = attention_maps.word_maps(bench.pipe, prompts, seed=measure.SEED)
    if len(digits) > 1:
        context.save(attention_maps.figure(drawn[5:8], words[5:8], maps[5:8]), "words")
    ink = drawn[..., 0] > 0
    heats = zip(("a", "bold", "digit", "leaning", "left"), zip(*maps))
    overlaps = {word: attention_maps.overlap(np.stack(heat), ink) for word, heat in heats}
    found = {word: round(float(values.mean()), 4) for word, values in overlaps.items()}
    better = overlaps["digit"] - overlaps["a"]
    error = better.std(ddof=1) / len(better) ** 0.5
    return found | {"samples": len(prompts), "digit_minus_a": round(float(better.mean()), 4),
                    "standard_error": round(float(error), 4)}  # fmt: skip


def memory_row(context: Context) -> dict:
    """Distance to the nearest training digit, in pixels of [-1, 1]: of samples, of test digits."""
    bench = context.bench
    index, _, texts = bench.chosen(500)
    drawn = images.from_pil(bench.pipe(texts, seed=measure.SEED))
    train = trainings.training.mnist.to_float(trainings.training.mnist.load("train")[0])
    found = {}
    for name, pictures in (("samples", drawn), ("test", bench.test[1][index])):
        distance, place = nearest(pictures, train)
        found[name] = {f"quantile_{q}": round(float(np.quantile(distance, q / 100)), 2)
                       for q in (1, 10, 50, 90)}  # fmt: skip
        if name == "samples":
            digits = bench.wanted(index)[0]
            order = distance[:, 0].argsort()
            closest = [order[digits[order] == digit][0] for digit in range(10)]
            pairs = np.concatenate([pictures[closest], train[place[closest, 0]]])
            rows = ["samples nearest to a training digit", "that digit"]
            context.save(images.grid(pairs, 10, 2, row_labels=rows), "memory")
    return found


EXPERIMENTS = {
    "samplers": {
        f"{name}-{n}": partial(sampler_row, name, n)
        for name in SAMPLERS if name != "probability_flow"
        for n in EVALUATIONS
    } | {f"probability_flow-{t:g}": partial(adaptive_row, t) for t in TOLERANCES},
    "guidance": {
        f"{scale:g}-{where}": partial(guidance_row, scale, interval, 0.0)
        for where, interval in (("interval", (0.3, 5.0)), ("everywhere", EVERYWHERE))
        for scale in SCALES
    } | {"4-rescaled": partial(guidance_row, 4.0, EVERYWHERE, 0.7)},
    "classifier": {f"{scale:g}": partial(classifier_row, scale) for scale in (0, 1, 2, 4, 8)},
    "composition": {"held-out": composition_row},
    "editing": {
        "inpaint": inpaint_row,
        **{f"slant-{s:g}": partial(slant_row, s) for s in (0.4, 0.5, 0.6, 0.7, 0.8)},
        **{f"inversion-{m}-{n}": partial(inversion_row, m, n)
           for m in ("heun", "euler") for n in (10, 50, 200)},
    },
    "words": {"seven": partial(words_row, (7,)), "digits": partial(words_row, tuple(range(10)))},
    "memory": {"nearest": memory_row},
    "parts": {
        "shipped": partial(full_row, True),
        "no-average": partial(full_row, False),
        "third": partial(part_row, "third", {}),
        "no-dropping": partial(part_row, "no_dropping", {"drop_condition": 0.0}),
        "no-perceptual": partial(
            part_row, "no_perceptual", {"autoencoder": {"perceptual_weight": 0.0}}
        ),
        **{f"kl-{kl:g}": partial(part_row, f"kl_{kl:g}", {"autoencoder": {"kl_weight": kl}})
           for kl in (0.0, 1e-6, 1e-3, 1e-1)},
        "one-token": one_token_row,
        "no-self-attention": partial(
            part_row, "no_self_attention", {"change": trainings.no_self_attention}
        ),
    },
    "spaces": {"models": spaces_row, "likelihood": likelihood_row},
}  # fmt: skip


def small_parameters() -> tuple[int, int]:
    """Parameters of the two U-Nets that are compared: of latents, of pixels."""
    shape = dataclasses.replace(unet_models.MNIST, **SMALL)
    return UNet(shape).count_parameters(), UNet(unet_models.PIXEL).count_parameters()
