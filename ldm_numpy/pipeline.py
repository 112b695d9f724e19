"""TextToImage: a prompt in, pictures out.

    prompt -> token ids -> text states -> [noise -> sampler -> latent] -> autoencoder -> picture
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image

from . import images
from .backend import blas_threads, generator, to_device, to_host
from .checks import known, number, shown, whole
from .diffusion.denoiser import Denoiser
from .diffusion.guidance import EVERYWHERE, checked_interval, guide
from .diffusion.objectives import OBJECTIVES
from .diffusion.samplers import SAMPLERS, checked_sigmas, ddim
from .diffusion.schedules import SCHEDULES
from .models.autoencoder import AutoencoderKL, PixelSpace
from .models.clip import CLIPTextModel
from .models.unet import UNet
from .parallel import Shards
from .tensor import concatenate
from .text import Tokenizer

SHARD = 64  # images a thread works on at a time, on a CPU, at most
MOST_STEPS, MOST_PICTURES = 10_000, 100_000  # of one call
LARGEST_SCALE = 1e4  # of guidance: beyond, numbers leave their type


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """How the networks are joined, and what a call defaults to.

    Fields:
        image_size, padded_size: side of a picture, and of what the autoencoder sees: paper around
        latent_size: side of the latent
        latent_scale: factor that gives encoded latents standard deviation 1
        sigma_data: standard deviation of the scaled latents
        objective: what the U-Net was asked for in training, one of `diffusion.OBJECTIVES`
        sigma_min, sigma_max: least and largest noise level of sampling, of the scaled latents
        sampler, num_inference_steps, guidance_scale, guidance_interval: defaults of a call
    """

    image_size: int = 28
    padded_size: int = 32
    latent_size: int = 8
    latent_scale: float = 1.0
    sigma_data: float = 1.0
    objective: str = "edm"
    sigma_min: float = 0.02
    sigma_max: float = 40.0
    sampler: str = "dpmpp_2m"
    num_inference_steps: int = 20
    guidance_scale: float = 2.4
    guidance_interval: tuple[float, float] = (0.3, 5.0)

    def __post_init__(self):
        # JSON gives a list
        object.__setattr__(self, "guidance_interval", checked_interval(self.guidance_interval))
        for name in ("image_size", "padded_size", "latent_size", "num_inference_steps"):
            whole(f"PipelineConfig: {name}", getattr(self, name), at_least=1)
        for name in ("latent_scale", "sigma_data", "sigma_min", "sigma_max", "guidance_scale"):
            number(f"PipelineConfig: {name}", getattr(self, name))
        if min(self.latent_scale, self.sigma_data) <= 0:
            raise ValueError("PipelineConfig: latent_scale and sigma_data must be positive")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError("PipelineConfig: 0 < sigma_min < sigma_max is needed")
        if self.image_size > self.padded_size:
            raise ValueError("PipelineConfig: image_size is larger than padded_size")
        known("sampler", self.sampler, SAMPLERS)
        known("objective", self.objective, OBJECTIVES)


def texts_of(name: str, value) -> list[str]:
    """One text or several, as a list; ValueError for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"{name} must be a text or a list of texts, not {shown(value)}")
    if not texts:
        raise ValueError(f"{name} must not be an empty list")
    return list(texts)


def repeated_negatives(negative_prompt, prompts: int, count: int) -> list[str]:
    """One text or one for each prompt, as what `count` pictures of each prompt steer away from."""
    given = "" if negative_prompt is None else negative_prompt
    negatives = [given] * prompts if isinstance(given, str) else texts_of("negative_prompt", given)
    if len(negatives) != prompts:
        raise ValueError(f"{len(negatives)} negative prompts for {prompts} prompts")
    return [p for p in negatives for _ in range(count)]


class TextToImage:
    """Draws pictures from prompts. Its parts are public, so each step can be taken by hand."""

    def __init__(
        self,
        unet: UNet,
        autoencoder: AutoencoderKL | PixelSpace,
        text_encoder: CLIPTextModel,
        tokenizer: Tokenizer,
        config: PipelineConfig,
        device: str = "cpu",
        threads: int | None = None,
    ):
        self.unet, self.autoencoder = unet.to(device), autoencoder.to(device)
        self.text_encoder = text_encoder.to(device)
        self.tokenizer, self.config, self.device = tokenizer, config, device
        self.shards = Shards(SHARD if device == "cpu" else None, threads)
        self.denoiser = Denoiser(self._network, config.sigma_data, config.objective)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int = 0,
        sampler: str | Callable | None = None,
        schedule: str | Callable = "karras",
        eta: float | None = None,
        callback: Callable | None = None,
    ) -> list[Image.Image]:
        """Pictures of the prompt(s), 28x28 and of mode "L": all of the first prompt, then the next.

        Args:
            prompt: one or several; an empty one asks for anything
            num_inference_steps, guidance_scale, guidance_interval, sampler: as the model's
                configuration has them unless given
            guidance_scale: 1 is no guidance, larger values follow the prompt more closely, smaller
                ones less; 0 ignores it, and negative values flee from it, but only at the levels of
            guidance_interval: (low, high), the noise levels at which there is guidance; (0, inf)
                are all. A warning says if the sampler meets none of them
            guidance_rescale: how much of the deviation that guidance adds is taken back, 0 to 1
            negative_prompt: what to steer away from, one or one a prompt; by default nothing, and
                without effect where there is no guidance
            seed: picture number i depends on seed and i only, and on its prompt (but with the
                samplers probability_flow and predictor_corrector a little on the others', for
                their steps are chosen for all)
            sampler: one of `diffusion.SAMPLERS` or a function like those, such as
                partial(probability_flow, rtol=1e-3)
            schedule: how the noise levels fall, one of `diffusion.SCHEDULES` or a function like
                those, such as partial(karras_sigmas, rho=5)
            eta: noise of the sampler ddim, from 0 (none; the default) to 1
            callback: called as callback(step, sigma, latents) after each step

        Raises ValueError for counts below 1 and for what no model can do.
        """
        count = whole("num_images_per_prompt", num_images_per_prompt, 1, MOST_PICTURES)
        prompts = texts_of("prompt", prompt)
        latents = self.sample(
            [p for p in prompts for _ in range(count)],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            negative_prompt=repeated_negatives(negative_prompt, len(prompts), count),
            seed=seed,
            sampler=sampler,
            schedule=schedule,
            eta=eta,
            callback=callback,
        )
        return images.to_pil(self.decode(latents))

    def sample(self, prompts: Sequence[str], **options):
        """Latents (N, h, w, C) of N prompts, an array on the device; options as of a call."""
        plan = self.plan(prompts, **options)
        return plan.run(plan.noise() * plan.sigmas[0], plan.sigmas)

    def plan(
        self,
        prompts: Sequence[str],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str | Sequence[str] | None = None,
        seed: int = 0,
        sampler: str | Callable | None = None,
        schedule: str | Callable = "karras",
        eta: float | None = None,
        callback: Callable | None = None,
    ) -> "Plan":
        """How N prompts are drawn: noise levels, what denoises, and what steps from level to level;
        options as of a call."""
        config = self.config
        steps = config.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        interval = config.guidance_interval if guidance_interval is None else guidance_interval
        name = config.sampler if sampler is None else sampler
        run_sampler = name if callable(name) else SAMPLERS[known("sampler", name, SAMPLERS)]
        if eta is not None:
            if run_sampler is not ddim:
                raise ValueError(f"eta is for the sampler ddim, not for {name}")
            run_sampler = partial(ddim, eta=number("eta", eta, 0, 1))
        steps = whole("num_inference_steps", steps, 1, MOST_STEPS)
        seed = whole("seed", seed, at_least=0)
        scale = number("guidance_scale", scale, -LARGEST_SCALE, LARGEST_SCALE)
        interval = checked_interval(interval)
        rescale = number("guidance_rescale", guidance_rescale, 0, 1)
        if callback is not None and not callable(callback):
            raise ValueError(f"callback must be a function, not {shown(callback)}")
        prompts = texts_of("prompts", prompts)
        if len(prompts) > MOST_PICTURES:
            raise ValueError(f"{len(prompts):,} pictures at a time: at most {MOST_PICTURES:,}")
        if not callable(schedule):
            schedule = SCHEDULES[known("schedule", schedule, SCHEDULES)]
        sigmas = checked_sigmas(schedule(steps, config.sigma_min, config.sigma_max))
        negatives = repeated_negatives(negative_prompt, len(prompts), 1)
        with blas_threads(1):
            cond = self.encode_prompts(prompts)
            uncond = self.encode_prompts(negatives) if scale != 1 else None
        D = guide(self.denoiser, scale, uncond, joined, interval, rescale)
        shape = (len(prompts), config.latent_size, config.latent_size, self.unet.config.in_channels)
        guided = interval if scale != 1 else None
        plan = Plan(D, cond, sigmas, run_sampler, shape, seed, self.device, callback, guided)
        plan.warn_if_unguided()
        return plan

    def encode_prompts(self, prompts: Sequence[str]):
        """The text encoder's token states (N, T, D), an array on the device."""
        prompts = texts_of("prompts", prompts)
        distinct = list(dict.fromkeys(prompts))
        ids = self.tokenizer(distinct)  # (U, T)
        states = self.shards.forward(self.text_encoder, ids)  # (U, T, D)
        place = {prompt: i for i, prompt in enumerate(distinct)}
        return states[to_device(np.array([place[p] for p in prompts]), self.device)]

    def decode(self, latents) -> np.ndarray:
        """Images (N, 28, 28, 1) on the host, in [-1, 1] but for overshoot, of scaled latents."""
        unscaled = latents / self.config.latent_scale
        with blas_threads(1):
            padded = self.shards.forward(self.autoencoder.decode, unscaled)  # (N, 32, 32, 1)
        return to_host(images.crop_to(padded, self.config.image_size))

    def encode(self, pictures):
        """Scaled latents (N, h, w, C) on the device, the means, of images (N, 28, 28, 1)."""
        padded = to_device(images.pad_to(pictures, self.config.padded_size), self.device)
        with blas_threads(1):
            mean = self.shards.forward(lambda x: self.autoencoder.encode(x)[0], padded)
        return mean * self.config.latent_scale

    def trajectory(self, latents, sigma: float) -> np.ndarray:
        """Images of latents that still hold noise of level `sigma`, for looking at.

        They are scaled back to the size of clean ones, x / sqrt(1 + sigma^2 / sigma_data^2), which
        is what the autoencoder can decode.
        """
        return self.decode(latents / math.sqrt(1 + (sigma / self.config.sigma_data) ** 2))

    def _network(self, x, timestep, cond):
        """The U-Net as the denoiser calls it, without a graph, in shards."""
        return self.shards.forward(self.unet, x.data, timestep, cond)


def joined(*states):
    """Conditions of several batches as those of one."""
    return concatenate(states)


@dataclasses.dataclass
class Plan:
    """A drawing that has been thought through: see `TextToImage.plan`.

    Fields:
        D, cond: the denoiser, guided, and the condition that it is given
        sigmas: the noise levels, falling to 0
        sampler: one of `diffusion.SAMPLERS`
        shape: (N, h, w, C), of the latents
    """

    D: Callable
    cond: object
    sigmas: list[float]
    sampler: Callable
    shape: tuple[int, ...]
    seed: int
    device: str
    callback: Callable | None
    guided: tuple[float, float] | None  # the noise levels at which there is guidance, if any

    def __post_init__(self):
        self.rng = StepNoise(self.seed)

    def warn_if_unguided(self, first: int = 0) -> None:
        """Say so where guidance was asked for, and none of the levels from `first` on has it, but
        some before do; of all levels it is said once, when the drawing is planned."""
        low, high = self.guided or EVERYWHERE
        inside = [low < sigma <= high for sigma in self.sigmas[:-1]]
        if not any(inside[first:]) and (first == 0 or any(inside)):
            warnings.warn(
                f"no noise level of these {len(inside) - first} steps lies in guidance_interval "
                f"{self.guided}: guidance has no effect",
                stacklevel=4,
            )

    def noise(self, *purpose):
        """White noise of the latents' shape, an array on the device: row i holds the i-th numbers
        of the seed, others for each purpose."""
        rng = generator(self.seed, "sample", "start", *purpose)
        return to_device(rng.standard_normal(self.shape, np.float32), self.device)

    def run(self, x, sigmas: list[float]):
        """Latents at level sigmas[0] taken to the last of them."""
        with blas_threads(1):
            return self.sampler(self.D, x, sigmas, self.cond, rng=self.rng, callback=self.callback)


class StepNoise:
    """The noise that a sampler adds on its way, in place of a generator.

    A generator's numbers for one picture would depend on how many are drawn beside it. Here every
    step has its own generator, and row i its i-th numbers.
    """

    def __init__(self, seed: int):
        self.seed, self.step = seed, 0

    def standard_normal(self, shape) -> np.ndarray:
        self.step += 1
        rng = generator(self.seed, "sample", "step", self.step)
        return rng.standard_normal(shape, np.float32)
