"""Small data and small networks, so that whole trainings take a second."""

import dataclasses
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ldm_numpy import training
from ldm_numpy.data import captions, mnist
from ldm_numpy.diffusion.guidance import EVERYWHERE
from ldm_numpy.models.autoencoder import (
    AutoencoderConfig,
    AutoencoderKL,
    PixelSpace,
    PixelSpaceConfig,
)
from ldm_numpy.models.classifier import Classifier, ClassifierConfig
from ldm_numpy.models.clip import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from ldm_numpy.models.unet import UNet, UNetConfig
from ldm_numpy.nn import Module
from ldm_numpy.pipeline import PipelineConfig, TextToImage
from ldm_numpy.text import Tokenizer
from ldm_numpy.training.autoencoder import AutoencoderStage, AutoencoderStageConfig
from ldm_numpy.training.classifier import ClassifierStage
from ldm_numpy.training.clip import CLIPStage, train_tokenizer
from ldm_numpy.training.dataset import Digits
from ldm_numpy.training.loop import Stage, StageConfig
from ldm_numpy.training.noisy import NoisyClassifierStage, NoisyStageConfig
from ldm_numpy.training.pixel import PixelStage, pixel_moments
from ldm_numpy.training.unet import UNetStage, UNetStageConfig

CLASSIFIER = ClassifierConfig(
    block_out_channels=(4, 8), layers_per_block=0, embedding_dim=8, norm_num_groups=2
)
NOISY = dataclasses.replace(CLASSIFIER, in_channels=5, image_size=8, patch_size=1)
AUTOENCODER = AutoencoderConfig(
    in_channels=1,
    out_channels=1,
    block_out_channels=(4, 8),
    layers_per_block=1,
    norm_num_groups=2,
    patch_size=2,
)
TEXT = CLIPTextConfig(
    vocab_size=600,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=12,
    eos_token_id=599,
)
VISION = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=7,
    num_channels=1,
)
PROJECTION_DIM = 8
UNET = UNetConfig(
    block_out_channels=(8, 16),
    attention_levels=(True, True),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=16,
    norm_num_groups=4,
)
PIXEL = dataclasses.replace(UNET, fourier_exponents=(1, 3))
PIXEL_SPACE = PixelSpaceConfig()
SETTINGS = PipelineConfig(num_inference_steps=2, guidance_interval=EVERYWHERE)
PIXEL_SETTINGS = dataclasses.replace(SETTINGS, padded_size=28, latent_size=14)
CONTEXT_LENGTH = 12

# A batch of 20 in shards of 8 leaves an uneven last one of 4.
STEPS = {
    "steps": 6,
    "batch_size": 20,
    "shard_size": 8,
    "warmup": 2,
    "checkpoint_every": 3,
    "sample_every": 6,
}
KINDS = ("classifier", "autoencoder", "clip", "unet-frozen", "unet-joint", "pixel", "noisy")


@lru_cache(maxsize=2)
def digits(split: str) -> Digits:
    """400 real digits to train on, 64 others to test; held-out combinations are among them."""
    rows = slice(0, 400) if split == "train" else slice(400, 464)
    images, labels = (array[rows] for array in mnist.load("test"))
    return Digits(images, labels.astype(np.int64), *captions.attributes(images))


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    return train_tokenizer(digits("train").captioned(), 0, CONTEXT_LENGTH)


def text_config() -> CLIPTextConfig:
    """TEXT with the tokenizer's vocabulary."""
    words = tokenizer()
    return dataclasses.replace(TEXT, vocab_size=words.vocab_size, eos_token_id=words.end_token)


def randomise(network: Module, seed: int = 0) -> Module:
    """Fill every parameter, zero-initialised ones too, with numbers that let a signal through."""
    rng = np.random.default_rng(seed)
    for p in network.parameters():
        if p.ndim >= 2:
            p.data[...] = rng.normal(size=p.shape) / np.sqrt(p.size / p.shape[-1])
        else:
            p.data[...] = (p.init == "ones") + 0.1 * rng.normal(size=p.shape)
    return network


def text_to_image(threads: int | None = 1, **options) -> TextToImage:
    """A pipeline of random networks: it draws nonsense, but nonsense that depends on everything."""
    return TextToImage(
        randomise(UNet(UNET), 1),
        randomise(AutoencoderKL(AUTOENCODER), 2),
        randomise(CLIPTextModel(text_config()), 3),
        tokenizer(),
        dataclasses.replace(SETTINGS, latent_scale=0.5),
        threads=threads,
        **options,
    )


def pixel_model() -> TextToImage:
    """As `text_to_image`, of pixels."""
    return TextToImage(
        randomise(UNet(PIXEL), 1),
        PixelSpace(dataclasses.replace(PIXEL_SPACE, mean=-0.7)),
        randomise(CLIPTextModel(text_config()), 3),
        tokenizer(),
        dataclasses.replace(PIXEL_SETTINGS, latent_scale=1.6),
        threads=1,
    )


def stage(
    kind: str, seed: int = 0, threads: int | None = 1, device: str | None = None, **options
) -> Stage:
    """A small stage of one of KINDS, with the optimizer it has in earnest; `options` change its
    configuration. Without a `device` it is the one that stages have by default."""
    train, test, options = digits("train"), digits("test"), STEPS | options
    there = {"device": device} if device else {}
    if kind == "classifier":
        return ClassifierStage(kind, CLASSIFIER, StageConfig(**options), train, test, seed, **there)
    if kind == "autoencoder":
        config = AutoencoderStageConfig(**{"optimizer": "muon"} | options)
        perceptual = Classifier(CLASSIFIER, seed=5)
        return AutoencoderStage(AUTOENCODER, config, perceptual, train, test, seed, **there)
    if kind == "clip":
        config = StageConfig(**options)
        networks = TEXT, VISION, PROJECTION_DIM
        return CLIPStage(*networks, config, tokenizer(), train, test, seed, **there)
    options = {"optimizer": "muon"} | options
    if kind == "noisy":
        autoencoder = AutoencoderKL(AUTOENCODER, seed=5)
        autoencoder = autoencoder.to(device) if device else autoencoder
        arguments = NOISY, NoisyStageConfig(**options), autoencoder, 32, 0.8, train, seed
        return NoisyClassifierStage(*arguments, **there)
    text = CLIPTextModel(text_config(), seed=5), tokenizer()
    if kind == "pixel":
        mean, deviation = pixel_moments(train)
        settings = dataclasses.replace(PIXEL_SETTINGS, latent_scale=1 / deviation)
        space = dataclasses.replace(PIXEL_SPACE, mean=mean)
        arguments = PIXEL, UNetStageConfig(**options), settings, PixelSpace(space)
        return PixelStage(*arguments, *text, train, seed, threads=threads, **there)
    config = UNetStageConfig(text_encoder=kind.removeprefix("unet-"), **options)
    arguments = UNET, config, SETTINGS, AutoencoderKL(AUTOENCODER, seed=5)
    return UNetStage(*arguments, *text, train, seed, threads=threads, **there)


def run_all(monkeypatch, folder: Path, **options) -> training.Run:
    """A `Run` over the small data and networks."""
    monkeypatch.setattr(Digits, "load", lambda split, data=None: digits(split))
    for module, name, value in [
        (training.autoencoder_models, "MNIST", AUTOENCODER),
        (training.classifier_models, "PERCEPTUAL", CLASSIFIER),
        (training.classifier_models, "READER", dataclasses.replace(CLASSIFIER, embedding_dim=6)),
        (training.clip_models, "MNIST_TEXT", TEXT),
        (training.clip_models, "MNIST_VISION", VISION),
        (training.clip_models, "MNIST_PROJECTION_DIM", PROJECTION_DIM),
        (training.classifier_models, "NOISY", NOISY),
        (training.unet_models, "MNIST", UNET),
        (training.unet_models, "PIXEL", PIXEL),
        (training, "PERCEPTUAL", StageConfig(**STEPS)),
        (training, "READER", StageConfig(**STEPS)),
        (training, "AUTOENCODER", AutoencoderStageConfig(**STEPS, optimizer="muon")),
        (training, "CLIP", StageConfig(**STEPS)),
        (training, "UNET", UNetStageConfig(**STEPS, optimizer="muon")),
        (training, "PIXEL", UNetStageConfig(**STEPS, optimizer="muon")),
        (training, "NOISY", NoisyStageConfig(**STEPS)),
        (training, "CONTEXT_LENGTH", CONTEXT_LENGTH),
        (training, "PipelineConfig", partial(PipelineConfig, num_inference_steps=3)),
    ]:
        monkeypatch.setattr(module, name, value)
    return training.Run(folder, threads=1, **options)
