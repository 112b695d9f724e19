"""The folder that a model is kept in.

It holds `config.json`, one safetensors file a network, the tokenizer, and `metrics.json` where the
model has been measured.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from . import checkpoint
from .backend import choose_device
from .models.autoencoder import AutoencoderConfig, AutoencoderKL, PixelSpace, PixelSpaceConfig
from .models.classifier import Classifier, ClassifierConfig, NoisyClassifier
from .models.clip import CLIP, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from .models.unet import UNet, UNetConfig
from .nn import Module
from .pipeline import PipelineConfig, TextToImage
from .text import Tokenizer

VERSION = 1
SHIPPED = Path(__file__).parent / "weights"

BUILDERS: dict[str, Callable[[dict], Module]] = {
    "unet": lambda c: UNet(UNetConfig(**c)),
    "autoencoder": lambda c: AutoencoderKL(AutoencoderConfig(**c)),
    "pixel_space": lambda c: PixelSpace(PixelSpaceConfig(**c)),
    "text_encoder": lambda c: CLIPTextModel(CLIPTextConfig(**c)),
    "clip": lambda c: CLIP(
        CLIPTextConfig(**c["text"]), CLIPVisionConfig(**c["vision"]), c["projection_dim"]
    ),
    "reader": lambda c: Classifier(ClassifierConfig(**c)),
    "noisy_classifier": lambda c: NoisyClassifier(ClassifierConfig(**c)),
}


def load(
    path: str | Path | None = None, device: str = "auto", threads: int | None = None
) -> TextToImage:
    """The model in a folder: the shipped one by default, or that of a finished run.

    Raises ValueError, in one line, for a folder that is missing, of another version, incomplete,
    damaged, or whose weights belong to another configuration.
    """
    device = choose_device(device)
    folder = find_model(path)
    config = read_config(folder)
    names = ("unet", "pixel_space" if "pixel_space" in config else "autoencoder", "text_encoder")
    unet, autoencoder, text_encoder = (load_network(folder, config, n, device) for n in names)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    text = text_encoder.config
    for what, ours, theirs in (
        ("a vocabulary", tokenizer.vocab_size, text.vocab_size),
        ("a context length", tokenizer.context_length, text.max_position_embeddings),
        ("an end token", tokenizer.end_token, text.eos_token_id),
    ):
        if ours != theirs:
            raise ValueError(
                f"{folder}: the tokenizer has {what} of {ours}, the text encoder of {theirs}"
            )
    if "pipeline" not in config:
        raise ValueError(f"{folder / 'config.json'} does not say how to join the networks")
    settings = _build(folder, lambda c: PipelineConfig(**c), config["pipeline"])
    for what, ours, theirs in (
        (
            "the latent's side times the autoencoder's factor",
            settings.latent_size * autoencoder.config.downsampling,
            settings.padded_size,
        ),
        ("the U-Net's in_channels", unet.config.in_channels, autoencoder.config.latent_channels),
        ("the U-Net's out_channels", unet.config.out_channels, autoencoder.config.latent_channels),
        ("the U-Net's cross_attention_dim", unet.config.cross_attention_dim, text.hidden_size),
    ):
        if ours != theirs:
            raise ValueError(f"{folder / 'config.json'}: {what} is {ours}, but should be {theirs}")
    return TextToImage(unet, autoencoder, text_encoder, tokenizer, settings, device, threads)


def find_model(path: str | Path | None) -> Path:
    """The model folder meant by `path`: itself, a run's `model` inside it, or the shipped one."""
    folder = SHIPPED if path is None else Path(path)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.exists():
        raise ValueError(f"model folder {folder} does not exist; `make train-mnist` trains one")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name the folder of a model or of a finished run")
    raise ValueError(f"{folder} holds no model (no config.json): finish or export its training")


def read_config(folder: Path) -> dict:
    """The configuration of a model folder; ValueError where it cannot be understood."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != VERSION:
        raise ValueError(f"{path} has format version {version!r}, this program reads {VERSION}")
    return config


def load_network(folder: Path, config: dict, name: str, device: str = "cpu") -> Module:
    """One network of a model folder, with its weights, on a device."""
    if name not in config:
        raise ValueError(f"{folder / 'config.json'} describes no {name}")
    network = _build(folder, BUILDERS[name], config[name])
    if not network.count_parameters():
        return network
    path = folder / f"{name}.safetensors"
    arrays, _ = checkpoint.load(path)
    try:
        network.load_state_dict(arrays)
    except ValueError as error:
        raise ValueError(f"{path} does not belong to its config.json: {error}") from None
    return network.to(device).eval()


def save(
    folder: str | Path,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    configs: Mapping[str, dict],
    tokenizer: Tokenizer,
    settings: PipelineConfig,
) -> None:
    """Write a model folder: {network: {parameter: array}} in float16, and their configurations.

    `config.json` comes last: a folder without it is no model.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "metrics.json"):  # they speak of the weights before
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write the folder {folder}: {error.strerror}") from None
    for name, arrays in weights.items():
        checkpoint.save(folder / f"{name}.safetensors", checkpoint.half_precision(arrays), {})
    tokenizer.save(folder / "tokenizer.json")
    config = {"format_version": VERSION, "pipeline": dataclasses.asdict(settings), **configs}
    text = json.dumps(config, indent=2) + "\n"
    checkpoint.write_atomically(folder / "config.json", text.encode())


def add(
    folder: str | Path, name: str, weights: Mapping[str, np.ndarray], network: dict
) -> None:
    """Put one network more into a model folder, in float16, or in the place of an earlier one."""
    folder = Path(folder)
    config = read_config(folder) | {name: network}
    checkpoint.save(folder / f"{name}.safetensors", checkpoint.half_precision(weights), {})
    text = json.dumps(config, indent=2) + "\n"
    checkpoint.write_atomically(folder / "config.json", text.encode())


def _build(folder: Path, build: Callable, section: dict):
    try:
        if not isinstance(section, dict):
            raise TypeError(f"{section!r} is no set of options")
        return build(section)
    except (TypeError, KeyError, ValueError, ArithmeticError, MemoryError) as error:
        raise ValueError(f"{folder / 'config.json'} does not fit this program: {error}") from None
