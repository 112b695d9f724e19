"""The stages, one after the other: classifiers and autoencoder, CLIP, U-Net; then a model folder.

Every stage leaves `name.safetensors` (checkpoint), `name.previous.safetensors` (the one before it),
`name.csv` (log) and, where there is something to see, pictures in the run's folder, and reads what
earlier stages left there.
"""

import dataclasses
import hashlib
from functools import cached_property
from pathlib import Path

from ..backend import blas_threads, tune_cpu
from ..data import mnist
from ..files import sweep
from ..models import autoencoder as autoencoder_models
from ..models import classifier as classifier_models
from ..models import clip as clip_models
from ..models import unet as unet_models
from ..models.autoencoder import PixelSpace
from ..models.clip import CLIPTextModel
from ..pipeline import PipelineConfig
from ..text import Tokenizer
from .autoencoder import AutoencoderStage, AutoencoderStageConfig
from .classifier import ClassifierStage
from .clip import CLIPStage, train_tokenizer
from .dataset import Digits
from .export import add_noisy, export, stated
from .folder import existing, locked, of_a_training, prepare_folder
from .loop import Stage, StageConfig, finished, load_trained, run
from .noisy import NoisyClassifierStage, NoisyStageConfig
from .pixel import PixelStage, pixel_moments
from .unet import UNetStage, UNetStageConfig

STAGES = ("autoencoder", "clip", "unet")  # of `all`
BESIDE = ("pixel", "noisy")  # a model of pixels; a classifier of noised latents
UPSTREAM = {  # what a stage builds upon: a resumed one must find the same
    "autoencoder": ("perceptual.safetensors",),
    "clip": ("tokenizer.json",),
    "unet": ("autoencoder.safetensors", "clip.safetensors"),
    "pixel": ("clip.safetensors",),
    "noisy": ("autoencoder.safetensors",),
}
EARLIER = {
    "unet": ("perceptual", "reader", "autoencoder", "clip"),
    "pixel": ("reader", "clip"),
    "noisy": ("perceptual", "autoencoder"),
}
MODELS = {"unet": "model", "pixel": "pixel"}  # the folder of the model that a stage completes
CONTEXT_LENGTH = 16  # tokens of a prompt, start and end included

PERCEPTUAL = StageConfig(steps=300, sample_every=300, weight_decay=0.05)
READER = StageConfig(steps=1000, sample_every=1000, weight_decay=0.05)
AUTOENCODER = AutoencoderStageConfig(
    steps=600, batch_size=64, learning_rate=5e-3, optimizer="muon", sample_every=300
)
CLIP = StageConfig(
    steps=700,
    batch_size=256,
    learning_rate=5e-3,
    optimizer="muon",
    weight_decay=0.05,
    sample_every=700,
)
UNET = UNetStageConfig(
    steps=1800,
    batch_size=128,
    shard_size=32,
    learning_rate=6e-3,
    optimizer="muon",
    ema_decay=0.998,
    P_mean=0.3,
    checkpoint_every=300,
    sample_every=600,
)
PIXEL = dataclasses.replace(UNET, steps=1600, P_mean=-0.6, P_std=1.8)
NOISY = NoisyStageConfig(
    steps=800, batch_size=128, learning_rate=5e-3, optimizer="muon", weight_decay=0.05
)
READER_SEED = 1  # added to the run's: the reader shares nothing with the perceptual classifier


class Run:
    """A run's folder, and how to build each stage from what is in it.

    Args:
        folder: where everything goes
        data: a folder of IDX files, or None for the embedded digits
        seed, device, threads: of all stages
        steps: overrides {stage: number of steps}
        options: override fields of the configurations of the stages "unet" and "pixel"
    """

    def __init__(
        self,
        folder: str | Path,
        data: str | Path | None = None,
        seed: int = 0,
        device: str = "cpu",
        threads: int | None = None,
        steps: dict[str, int] | None = None,
        **options,
    ):
        self.folder, self.seed, self.device, self.threads = Path(folder), seed, device, threads
        self.unet_config = dataclasses.replace(UNET, **options)
        self.pixel_config = dataclasses.replace(PIXEL, **options)
        self.steps = steps or {}
        self.data = data

    @cached_property
    def train(self) -> Digits:
        return Digits.load("train", self.data)

    @cached_property
    def test(self) -> Digits:
        return Digits.load("test", self.data)

    def config(self, name: str, config: StageConfig) -> StageConfig:
        """The stage's configuration, with the number of steps that was asked for."""
        return dataclasses.replace(config, steps=self.steps.get(name, config.steps))

    def classifier(self, name: str) -> ClassifierStage:
        """The stage "perceptual" or "reader"."""
        networks = {"perceptual": classifier_models.PERCEPTUAL, "reader": classifier_models.READER}
        configs = {"perceptual": PERCEPTUAL, "reader": READER}
        seed = self.seed + (READER_SEED if name == "reader" else 0)
        config = self.config(name, configs[name])
        return ClassifierStage(
            name, networks[name], config, self.train, self.test, seed, self.device
        )

    def autoencoder(self) -> AutoencoderStage:
        perceptual = self.classifier("perceptual")
        load_trained(perceptual, self.folder)
        return AutoencoderStage(
            autoencoder_models.MNIST,
            self.config("autoencoder", AUTOENCODER),
            perceptual.network,
            self.train,
            self.test,
            self.seed,
            self.device,
        )

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer; trained on its captions when CLIP's training begins, and again where
        its file is gone: the same captions make the same one. ValueError where it is damaged, or
        where they are not the same."""
        path, clip = self.folder / "tokenizer.json", existing(self.folder / "clip.safetensors")
        if clip and path.exists():
            try:
                return Tokenizer.load(path)
            except ValueError as error:
                raise ValueError(f"{error}; without the file, it is made again") from None
        tokenizer = train_tokenizer(self.train.captioned(), self.seed, CONTEXT_LENGTH)
        if clip:
            upstream = stated(clip, of_a_training(clip)[1]["options"], "upstream", dict)
            if short_hash(tokenizer.to_json()) != upstream.get(path.name):
                raise ValueError(
                    f"{path} is gone, and these captions make another one: {clip.name} was made "
                    "with other data or another seed"
                )
        tokenizer.save(path)
        return Tokenizer.load(path)

    def clip(self) -> CLIPStage:
        return CLIPStage(
            clip_models.MNIST_TEXT,
            clip_models.MNIST_VISION,
            clip_models.MNIST_PROJECTION_DIM,
            self.config("clip", CLIP),
            self.tokenizer(),
            self.train,
            self.test,
            self.seed,
            self.device,
        )

    def unet(self) -> UNetStage:
        autoencoder = self.autoencoder()
        scale = self.latent_scale(autoencoder)
        return UNetStage(
            unet_models.MNIST,
            self.config("unet", self.unet_config),
            PipelineConfig(
                padded_size=autoencoder.padded_size,
                latent_size=autoencoder.padded_size // autoencoder.network.config.downsampling,
                latent_scale=scale,
            ),
            autoencoder.network,
            *self.text(),
            self.train,
            self.seed,
            self.device,
            self.threads,
        )

    def pixel(self) -> PixelStage:
        mean, deviation = pixel_moments(self.train)
        space = dataclasses.replace(unet_models.PIXEL_SPACE, mean=mean)
        return PixelStage(
            unet_models.PIXEL,
            self.config("pixel", self.pixel_config),
            PipelineConfig(
                padded_size=mnist.SIDE,
                latent_size=mnist.SIDE // space.downsampling,
                latent_scale=1 / deviation,
            ),
            PixelSpace(space),
            *self.text(),
            self.train,
            self.seed,
            self.device,
            self.threads,
        )

    def noisy(self) -> NoisyClassifierStage:
        autoencoder = self.autoencoder()
        scale = self.latent_scale(autoencoder)
        return NoisyClassifierStage(
            classifier_models.NOISY,
            self.config("noisy", NOISY),
            autoencoder.network,
            autoencoder.padded_size,
            scale,
            self.train,
            self.seed,
            self.device,
            self.threads,
        )

    def latent_scale(self, autoencoder: AutoencoderStage) -> float:
        """What gives latents deviation 1, as the autoencoder's training measured; with its weights
        loaded."""
        measured = load_trained(autoencoder, self.folder)
        return stated(self.folder / "autoencoder.safetensors", measured, "latent_scale", float)

    def text(self) -> tuple[CLIPTextModel, Tokenizer]:
        """A text encoder of its own, as CLIP's training left it, and the tokenizer."""
        clip = self.clip()
        load_trained(clip, self.folder)
        text_encoder = CLIPTextModel(clip.network.text_model.config)
        text_encoder.load_state_dict(clip.network.text_model.state_dict())
        return text_encoder.to(self.device), clip.tokenizer

    def build(self, name: str) -> Stage:
        """The stage of that name; ValueError where an earlier one is not there."""
        if name in ("perceptual", "reader"):
            return self.classifier(name)
        stage = getattr(self, name)()
        stage.upstream = {
            file: short_hash((self.folder / file).read_bytes()) for file in UPSTREAM[name]
        }
        return stage

    def fit(self, what: str, resume: bool = False) -> None:
        """Train one stage, or "all" of them; "unet" leaves the model folder `model`, "pixel"
        the model folder `pixel`, and "noisy" adds to the first what it has trained.

        Raises ValueError before any work if a checkpoint would be overwritten, an earlier stage is
        missing, the data cannot be read, or another training has the folder. Interrupted as `run`.
        """
        prepare_folder(self.folder)
        with locked(self.folder):
            self._fit(what, resume)

    def _fit(self, what: str, resume: bool) -> None:
        names = list(STAGES) if what == "all" else [what]
        if "autoencoder" in names:
            names = ["perceptual", "reader", *names]
        for model in MODELS.values():
            sweep(self.folder / model)
        found = [n for n in names if existing(self.folder / f"{n}.safetensors")]
        if found and not resume:
            raise ValueError(
                f"{self.folder} holds a training already ({', '.join(found)}): continue it "
                "with --resume, or choose another folder with --out"
            )
        for earlier in EARLIER.get(what, ()):
            finished(self.folder / f"{earlier}.safetensors")
        for split in ("train", "test"):
            mnist.load(split, self.data)
        if self.device == "cpu":
            tune_cpu()
        with blas_threads(1):
            for name in names:
                stage = self.build(name)
                run(
                    stage,
                    self.folder,
                    self.seed,
                    resume=resume,
                    device=self.device,
                    threads=self.threads,
                )
        for name in MODELS.keys() & set(names):
            export(self.folder, self.folder / MODELS[name], name)
        if "noisy" in names and (self.folder / "model" / "config.json").is_file():
            add_noisy(self.folder, self.folder / "model")


def short_hash(content: bytes) -> str:
    """The first 16 digits of a file's SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
