"""What else a text-to-image model can do: change a picture, fill a hole in it, walk between two.

None of it needs training, but for the classifier. All of it starts or steers the same sampling
somewhere else:

    image_to_image      from the picture, noised to a level in the middle
    inpaint             with the known part put back after every step
    interpolate         from noise, or for texts, between two
    classifier_guided   to where a classifier sees what is wanted
    invert              backwards, from the picture to the noise that leads to it

Names of arguments are those of diffusers. Pictures are PIL images of mode "L" and the model's size;
one for all prompts, one for each, or several for one prompt.
"""

import dataclasses
import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation

from . import images
from .backend import array_module, blas_threads, to_device
from .checks import known, number, shown, whole
from .diffusion.guidance import EVERYWHERE, classifier_guide
from .diffusion.samplers import invert as invert_ode
from .models.classifier import NoisyClassifier
from .pipeline import MOST_PICTURES, MOST_STEPS, TextToImage, repeated_negatives, texts_of

EDIT_GUIDANCE = 5.0  # of image_to_image


def image_to_image(
    pipe: TextToImage,
    prompt: str | Sequence[str],
    image: Image.Image | Sequence[Image.Image],
    *,
    strength: float = 0.6,
    guidance_scale: float | None = None,
    num_images_per_prompt: int = 1,
    **options,
) -> list[Image.Image]:
    """Pictures of the prompts that keep something of `image`.

    Its latent is noised to the level after which int(strength num_inference_steps) steps are left,
    and denoised from there: strength 0 changes nothing (but that the picture goes through the
    autoencoder), 1 starts from noise of the highest level, which leaves little to be seen. With
    the empty prompt, and several images a prompt, it draws variations.
    Meng et al. 2022, "SDEdit".

    guidance_scale is 5 unless given: what is left of the picture pulls back to what it was.
    `options` are those of a call of the pipeline. Raises ValueError for a strength outside 0 ... 1
    or too small for a single step, and for pictures that are no such pictures.
    """
    strength = number("strength", strength, 0, 1)
    scale = EDIT_GUIDANCE if guidance_scale is None else guidance_scale
    prompts, pictures, options = repeated(pipe, prompt, image, num_images_per_prompt, options)
    plan = pipe.plan(prompts, guidance_scale=scale, **options)
    steps = len(plan.sigmas) - 1
    first = steps - min(int(steps * strength + 1e-9), steps)
    if strength > 0 and first == steps:
        raise ValueError(
            f"strength {strength:g} of {steps} steps leaves none to take: at least {1 / steps:g}"
        )
    x = pipe.encode(pictures)
    if first < steps:
        plan.warn_if_unguided(first)
        x = plan.run(x + plan.sigmas[first] * plan.noise(), plan.sigmas[first:])
    return images.to_pil(pipe.decode(x))


def inpaint(
    pipe: TextToImage,
    prompt: str | Sequence[str],
    image: Image.Image | Sequence[Image.Image],
    mask_image: Image.Image,
    *,
    num_images_per_prompt: int = 1,
    resamplings: int = 5,
    **options,
) -> list[Image.Image]:
    """Pictures in which the white part of `mask_image` is drawn anew, as the prompt says, and the
    black part is the picture's, pixel by pixel.

    Each step is begun anew: samplers that look back at earlier ones (dpmpp_2m) do without, and
    edm_stochastic churns as much as it ever does.
    At every noise level the known part of the latent is the picture's, noised to that level. Alone
    that gives halves that do not fit, for what is drawn knows nothing of what the known part will
    be: so each step is taken `resamplings` times, noised back up in between, while both parts grow
    to match. Lugmayr et al. 2022, "RePaint", Algorithm 1, with jumps of one step.

    A cell of the latent is known if all of its pixels and all cells beside it are: the cell beside
    the hole would say that strokes end there. What the mask covers is never looked at.
    Raises ValueError for a mask of another size or mode, or with other values than 0 and 255.
    """
    times = whole("resamplings", resamplings, at_least=1)
    prompts, pictures, options = repeated(pipe, prompt, image, num_images_per_prompt, options)
    hole = checked_mask(pipe, mask_image)  # (28, 28, 1)
    plan = pipe.plan(prompts, **options)
    callback, plan.callback, config = plan.callback, None, pipe.config
    paper = np.where(hole, np.float32(-1), pictures)
    covered = images.pad_to(np.where(hole, np.float32(1), -1)[None], config.padded_size) > 0
    cell = config.padded_size // config.latent_size
    cells = covered.reshape(config.latent_size, cell, config.latent_size, cell).any(axis=(1, 3))
    touched = binary_dilation(cells, np.ones((3, 3)))[None, :, :, None]  # (1, h, w, 1)
    known = to_device(~touched, pipe.device)
    clean, xp = pipe.encode(paper), array_module(known)
    x = plan.noise() * plan.sigmas[0]
    for step, (sigma, sigma_next) in enumerate(zip(plan.sigmas, plan.sigmas[1:])):
        for turn in range(times):
            x = xp.where(known, clean + sigma * plan.noise("known", step, turn), x)
            lower = plan.run(x, [sigma, sigma_next])
            added = math.sqrt(sigma**2 - sigma_next**2)
            x = lower + added * plan.noise("again", step, turn)
        x = lower
        if callback is not None:
            callback(step, sigma_next, x)
    drawn = np.where(hole, pipe.decode(xp.where(known, clean, x)), pictures)
    return images.to_pil(drawn)


def interpolate(
    pipe: TextToImage,
    prompt: str,
    other_prompt: str | None = None,
    *,
    seed: int = 0,
    other_seed: int | None = None,
    frames: int = 8,
    **options,
) -> list[Image.Image]:
    """Pictures on the way from one prompt and seed to another prompt, another seed, or both.

    Text states on a straight line; noise on an arc (Shoemake 1985), where all lengths are those of
    noise: in the middle of a line it would be too weak, by the root of two.
    """
    frames = whole("frames", frames, 2, MOST_STEPS)
    second = seed if other_seed is None else whole("other_seed", other_seed, at_least=0)
    texts = [prompt, prompt if other_prompt is None else other_prompt]
    for name, text in zip(("prompt", "other_prompt"), texts):
        if not isinstance(text, str):
            raise ValueError(f"{name} must be one text, not {shown(text)}")
    one = pipe.plan(texts[:1], seed=seed, **options)  # a frame: what guides it has one row, too
    ends = pipe.encode_prompts(texts)
    xp = array_module(ends)
    starts = [one.noise(), dataclasses.replace(one, seed=second).noise()]
    found = []
    for part in np.linspace(0, 1, frames):
        # One at a time: a random sampler's noise is then the same for all.
        cond = ends[:1] * np.float32(1 - part) + ends[1:] * np.float32(part)
        frame = dataclasses.replace(one, cond=cond)
        x = frame.run(slerp(*starts, float(part)) * one.sigmas[0], one.sigmas)
        found.append(x)
    return images.to_pil(pipe.decode(xp.concatenate(found)))


def slerp(a, b, part: float):
    """The point `part` of the way along the arc from a to b; a and b of one shape."""
    xp = array_module(a)
    cosine = float((a * b).sum() / xp.sqrt((a * a).sum() * (b * b).sum()))
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    if angle < 1e-4:
        return a * np.float32(1 - part) + b * np.float32(part)
    weights = math.sin((1 - part) * angle), math.sin(part * angle)
    return (a * np.float32(weights[0]) + b * np.float32(weights[1])) / np.float32(math.sin(angle))


def classifier_guided(
    pipe: TextToImage,
    classifier: NoisyClassifier,
    classes: Sequence[int],
    *,
    classifier_scale: float = 1.0,
    guidance_interval: tuple[float, float] = EVERYWHERE,
    **options,
) -> list[Image.Image]:
    """A picture of each of the classes, of a model that is not told which: a classifier of noised
    latents steers it (see `diffusion.classifier_guide`). Scale 0 draws anything.

    The classifier is the network "noisy_classifier" of a model folder, where `train noisy` has made
    one: `model_folder.load_network`.
    """
    last = classifier.config.num_classes - 1
    listed = isinstance(classes, Sequence | np.ndarray) and getattr(classes, "ndim", 1) == 1
    several = listed and len(classes) > 0
    if not several or not all(
        isinstance(c, Integral) and not isinstance(c, bool) and 0 <= c <= last for c in classes
    ):
        raise ValueError(
            f"classes must be a list of whole numbers 0 ... {last}, not {shown(classes)}"
        )
    if "guidance_scale" in options:
        raise ValueError("there is no prompt to guide by: classifier_scale, not guidance_scale")
    classifier_scale, given = number("classifier_scale", classifier_scale), np.asarray(classes)
    plan = pipe.plan([""] * len(given), guidance_scale=1.0, **options)

    def log_probability(x, sigma, cond):
        return classifier.log_probability(x, sigma, given)

    plan.D = classifier_guide(plan.D, log_probability, classifier_scale, guidance_interval)
    return images.to_pil(pipe.decode(plan.run(plan.noise() * plan.sigmas[0], plan.sigmas)))


def invert(
    pipe: TextToImage,
    prompt: str | Sequence[str],
    image: Image.Image | Sequence[Image.Image],
    *,
    num_inference_steps: int = 50,
    method: str = "heun",
    guidance_scale: float = 1.0,
):
    """The latents at the highest noise level from which sampling by `method` leads back to the
    pictures: the ODE followed upwards. (N, h, w, C), an array on the device.

    method: "heun", or "euler", which is DDIM's inversion (Song et al. 2020, section 4.3) and needs
    many more steps. With guidance the way up is not the way down: its errors grow.
    `reconstruct` goes back. Raises ValueError for another method, and less than two steps, of which
    the way has one less.
    """
    prompts, pictures, _ = repeated(pipe, prompt, image, 1, {})
    plan = plan_of_ode(pipe, prompts, num_inference_steps, method, guidance_scale)
    with blas_threads(1):
        return invert_ode(plan.D, pipe.encode(pictures), plan.sigmas[-2::-1], plan.cond, method)


def reconstruct(
    pipe: TextToImage,
    prompt: str | Sequence[str],
    latents,
    *,
    num_inference_steps: int = 50,
    method: str = "heun",
    guidance_scale: float = 1.0,
):
    """Latents of pictures (N, h, w, C), from what `invert` has found; `prompt` may be another."""
    prompts, shape = texts_of("prompt", prompt), getattr(latents, "shape", None)
    if len(prompts) == 1 and shape:
        prompts = prompts * max(shape[0], 1)
    if shape and len(prompts) != shape[0] > 0:
        raise ValueError(f"{len(prompts)} prompts for the latents of {shape[0]} pictures")
    plan = plan_of_ode(pipe, prompts, num_inference_steps, method, guidance_scale)
    good = shape == plan.shape and latents.dtype.kind == "f"
    if not good or not bool(array_module(latents).isfinite(latents).all()):
        raise ValueError(f"latents must be an array {plan.shape} of finite numbers, of invert, "
                         f"not {type(latents).__name__} {shape or ''}")  # fmt: skip
    return plan.run(latents, plan.sigmas[:-1])


def plan_of_ode(pipe: TextToImage, prompts, num_inference_steps, method, guidance_scale):
    """The plan of a way that can be gone both up and down."""
    return pipe.plan(
        prompts,
        num_inference_steps=whole("num_inference_steps", num_inference_steps, at_least=2),
        sampler=known("method", method, ("heun", "euler")),
        guidance_scale=guidance_scale,
    )


# What is given -----------------------------------------------------------------------------


def checked_picture(pipe: TextToImage, name: str, picture, modes=("L",)) -> Image.Image:
    """The picture, if it is one of the model's size and of one of these modes."""
    side = pipe.config.image_size
    if not isinstance(picture, Image.Image):
        raise ValueError(f"{name} must be a PIL image, not {type(picture).__name__}")
    if picture.mode not in modes:
        raise ValueError(
            f'{name} has mode "{picture.mode}": convert it to "L", as image.convert("L")'
        )
    if picture.size != (side, side):
        width, height = picture.size
        raise ValueError(f"{name} has {width}x{height} pixels, the model's have {side}x{side}")
    return picture


def checked_mask(pipe: TextToImage, mask_image) -> np.ndarray:
    """Where a mask is white, (28, 28, 1)."""
    mask = np.asarray(checked_picture(pipe, "mask_image", mask_image, ("L", "1")).convert("L"))
    if not np.isin(mask, (0, 255)).all():
        raise ValueError("mask_image must be black (0, kept) and white (255, drawn anew), no grey")
    return mask[:, :, None] == 255


def repeated(pipe: TextToImage, prompt, image, count: int, options: dict):
    """Prompts, pictures (N, 28, 28, 1), and options with negative prompts: `count` of the first
    prompt, then of the next."""
    count = whole("num_images_per_prompt", count, 1, MOST_PICTURES)
    prompts = texts_of("prompt", prompt)
    negatives = repeated_negatives(options.get("negative_prompt"), len(prompts), 1)
    given = [image] if isinstance(image, Image.Image) else image
    if not isinstance(given, list | tuple) or not given:
        kind = type(image).__name__
        raise ValueError(f"image must be a PIL image or a list of them, not {kind}")
    pixels = images.from_pil([checked_picture(pipe, "image", picture) for picture in given])
    if len(given) != len(prompts):
        if 1 not in (len(given), len(prompts)):
            raise ValueError(f"{len(given)} pictures for {len(prompts)} prompts")
        n = max(len(given), len(prompts))
        prompts, negatives = (texts * (n // len(texts)) for texts in (prompts, negatives))
        pixels = np.repeat(pixels, n // len(given), axis=0)
    prompts, negatives = ([p for p in x for _ in range(count)] for x in (prompts, negatives))
    return prompts, np.repeat(pixels, count, axis=0), options | {"negative_prompt": negatives}
