"""Stage 3: the U-Net, which learns to denoise latents as their captions say."""

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np

from .. import images
from ..backend import array_module, generator, to_device
from ..checks import known
from ..data import captions, mnist
from ..diffusion.denoiser import Denoiser, denoising_loss, edm_sigmas, stratified_normals
from ..diffusion.objectives import OBJECTIVES, WEIGHTINGS
from ..models.autoencoder import AutoencoderKL, PixelSpace
from ..models.clip import CLIPTextModel
from ..models.unet import UNet, UNetConfig
from ..parallel import Shards
from ..pipeline import PipelineConfig, TextToImage
from ..tensor import no_grad
from ..text import Tokenizer
from .autoencoder import encode_moments
from .dataset import Digits
from .export import TRAINED
from .loop import Stage, StageConfig


@dataclasses.dataclass(frozen=True)
class UNetStageConfig(StageConfig):
    """Besides StageConfig's fields:

    P_mean, P_std: ln(sigma) of training is normal with these (Karras et al. 2022, Table 1)
    drop_condition: share of captions replaced by the empty one, for guidance (Ho and Salimans 2022)
    objective, weighting: what the network is asked for, and what its errors count
    text_encoder: "frozen" as CLIP left it, as in Stable Diffusion; or "joint": trained along from
        there, as in the latent diffusion paper
    """

    P_mean: float = -0.4
    P_std: float = 1.2
    drop_condition: float = 0.1
    objective: str = "edm"
    weighting: str = "target"
    text_encoder: str = "frozen"

    def __post_init__(self):
        super().__post_init__()
        known("objective", self.objective, OBJECTIVES)
        known("weighting", self.weighting, WEIGHTINGS)
        if self.text_encoder not in ("frozen", "joint"):
            raise ValueError(f"text_encoder must be 'frozen' or 'joint', not {self.text_encoder!r}")


class UNetStage(Stage):
    """The denoising loss on scaled latents. With the usual objective and weighting, an answer of
    zero has loss 1 at every noise level.

    Images are encoded once; each step draws latents from their posteriors, noise levels, noise,
    captions, and which captions to drop.
    """

    name = "unet"
    report = ("loss",)

    def __init__(
        self,
        network: UNetConfig,
        config: UNetStageConfig,
        settings: PipelineConfig,
        autoencoder: AutoencoderKL | PixelSpace,
        text_encoder: CLIPTextModel,
        tokenizer: Tokenizer,
        train: Digits,
        seed: int,
        device: str = "cpu",
        threads: int | None = None,
    ):
        settings = dataclasses.replace(settings, objective=config.objective)
        self.config, self.settings, self.seed, self.device = config, settings, seed, device
        self.tokenizer, self.text_encoder = tokenizer, text_encoder.to(device)
        self.train = train.captioned()
        network = dataclasses.replace(network, cross_attention_dim=text_encoder.config.hidden_size)
        self.network = UNet(network, seed=seed).to(device)
        self.networks = {"unet": self.network}
        self.learns_text = config.text_encoder == "joint"
        if self.learns_text:
            self.networks["text_encoder"] = text_encoder
        self.known_states = {}  # of a frozen text encoder: text -> (T, D), on the device
        usual = (config.objective, config.weighting) == ("edm", "target")
        self.baselines = {"loss": 1.0} if usual else {}
        self.denoiser = Denoiser(self.network, settings.sigma_data, settings.objective)
        self.pipeline = TextToImage(
            self.network, autoencoder, text_encoder, tokenizer, settings, device, threads
        )

    def before_steps(self) -> None:
        self.posteriors  # noqa: B018 - worked out once, for all processes

    @cached_property
    def posteriors(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of every training image's scaled latent, (N, h, w, C)."""
        return encode_moments(
            self.pipeline.autoencoder,
            self.train.images,
            self.settings.padded_size,
            self.pipeline.shards,
            self.device,
            self.settings.latent_scale,
        )

    def describe(self) -> dict:
        networks = {"network": dataclasses.asdict(self.network.config)}
        settings = {name: getattr(self.settings, name) for name in TRAINED}
        return super().describe() | networks | {"pipeline": settings}

    def normal(self, step: int, purpose: str, shape) -> np.ndarray:
        """Standard normal numbers, others for every step and purpose."""
        rng = generator(self.seed, self.name, step, purpose)
        return rng.standard_normal(shape, np.float32)

    def clean(self, index, step: int):
        """What is to be restored: the scaled latents of a batch, drawn from their posteriors."""
        mean, std = (moments[index] for moments in self.posteriors)  # (N, h, w, C)
        return to_device(mean + std * self.normal(step, "posterior", mean.shape), self.device)

    def gradients(self, step: int, shards: Shards, parameters) -> list:
        config, n = self.config, self.config.batch_size
        index = mnist.batch_indices(len(self.train), n, self.seed, step)
        clean = self.clean(index, step)  # (N, h, w, C)
        noise = to_device(self.normal(step, "noise", clean.shape), self.device)
        levels = stratified_normals(n, generator(self.seed, self.name, step, "level"))
        sigma = to_device(edm_sigmas(levels, config.P_mean, config.P_std), self.device)
        texts = self.train.captions(index, self.seed, self.name, step)
        drop = generator(self.seed, self.name, step, "drop").random(n) < config.drop_condition
        given = self.conditions(["" if d else text for d, text in zip(drop, texts)])

        def loss(rows):
            cond = self.text_encoder(given[rows]) if self.learns_text else given[rows]
            arrays = clean[rows], sigma[rows], noise[rows]
            return [denoising_loss(self.denoiser, *arrays, cond, config.weighting)]

        return shards.backward(loss, n, parameters)

    def conditions(self, texts: list[str]):
        """What the loss is given of the texts: token ids (N, T) to learn through or, when frozen,
        token states (N, T, D), an array on the device.

        A frozen encoder has the same answer every time, so each caption is encoded once; on its
        own, for the last digits of a matrix product depend on how many rows it has.
        """
        if self.learns_text:
            return self.tokenizer(texts)
        for text in texts:
            if text not in self.known_states:
                with no_grad():
                    states = self.text_encoder(self.tokenizer([text])).data  # (1, T, D)
                self.known_states[text] = states[0]
        states = [self.known_states[text] for text in texts]
        return array_module(states[0]).stack(states)

    def draw(self, path: Path, shards: Shards) -> None:
        """Ten digits of each of six descriptions."""
        rows = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2), (None, None)]
        prompts = [captions.caption(digit, *row) for row in rows for digit in range(10)]
        pixels = self.pipeline.decode(self.pipeline.sample(prompts, seed=self.seed))
        labels = [captions.caption(0, *row).replace("zero", "...") for row in rows]
        images.save_png(images.grid(pixels, 10, scale=2, row_labels=labels), path)
