"""The folder that a model is kept in.

It holds `config.json`, one safetensors file a network, the tokenizer, and `metrics.json` where the
model has been measured. Each file that is loaded carries its own SHA-256.

A folder may come from anywhere: what its files say is checked before it is believed, and nothing
in them is ever run.
"""

import dataclasses
import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np

from . import checkpoint
from .backend import choose_device
from .files import check_intact, checksum, one_line, read_json, write_atomically
from .models.autoencoder import AutoencoderConfig, AutoencoderKL, PixelSpace, PixelSpaceConfig
from .models.classifier import Classifier, ClassifierConfig, NoisyClassifier
from .models.clip import CLIP, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from .models.unet import UNet, UNetConfig
from .nn import Module
from .pipeline import PipelineConfig, TextToImage
from .text import MAX_CONTEXT, Tokenizer

VERSION = 1
SHIPPED = Path(__file__).parent / "weights"

# The largest whole numbers a configuration may have. Stable Diffusion stays below them; a network
# that does not would be built for hours, or drawn with for days.
LARGEST = {
    "layers_per_block": 32,
    "transformer_layers_per_block": 12,
    "num_hidden_layers": 32,
    "max_position_embeddings": MAX_CONTEXT,
    "image_size": 512,
    "padded_size": 512,
    "latent_size": 128,
    "num_inference_steps": 1000,
    "fourier_exponents": 16,
}
MAY_BE_ZERO = {"layers_per_block", "eos_token_id", "fourier_exponents"}
LARGEST_OF_OTHERS = 100_000  # channels, tokens of a vocabulary
MOST_LEVELS = 8

BUILDERS: dict[str, Callable[[dict], Module]] = {
    "unet": lambda c: UNet(checked_options(UNetConfig, c)),
    "autoencoder": lambda c: AutoencoderKL(checked_options(AutoencoderConfig, c)),
    "pixel_space": lambda c: PixelSpace(checked_options(PixelSpaceConfig, c)),
    "text_encoder": lambda c: CLIPTextModel(checked_options(CLIPTextConfig, c)),
    "clip": lambda c: CLIP(*_clip_options(c)),
    "reader": lambda c: Classifier(checked_options(ClassifierConfig, c)),
    "noisy_classifier": lambda c: NoisyClassifier(checked_options(ClassifierConfig, c)),
}
ENTRIES = {"format_version", "pipeline", "sha256", *BUILDERS}  # of config.json


def load(
    path: str | Path | None = None, device: str = "auto", threads: int | None = None
) -> TextToImage:
    """The model in a folder: the shipped one by default, or that of a finished run.

    Raises ValueError, in one line, for a folder that is missing, of another version, incomplete,
    damaged, or whose weights belong to another configuration.
    """
    device = choose_device(device)
    folder = find_model(path)
    config = _parse_config(folder)  # its checksum comes last, for it says less than other checks
    names = ("unet", _codec(config), "text_encoder")
    networks = {name: load_network(folder, config, name, device) for name in names}
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    pipe = _join(folder, config, networks, tokenizer, device, threads)
    check_intact(folder / "config.json", config)
    return pipe


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
    """The configuration of a model folder; ValueError where it cannot be understood or was altered.
    One that was written before there were checksums has none."""
    config = _parse_config(folder)
    check_intact(folder / "config.json", config)
    return config


def load_network(folder: Path, config: dict, name: str, device: str = "cpu") -> Module:
    """One network of a model folder, with its weights, on a device. ValueError as for `load`."""
    if name not in config:
        raise ValueError(f"{folder / 'config.json'} describes no {name}")
    network = _build(folder, BUILDERS[name], config, name)
    if network.count_parameters():
        path = folder / f"{name}.safetensors"
        largest = checkpoint.MAX_HEADER + 8 * network.count_parameters()
        if path.is_file() and path.stat().st_size > largest:
            raise ValueError(
                f"{path} does not belong to its config.json: it has more than that tells"
            )
        _fill(network, checkpoint.load(path)[0], path)
    return network.to(device).eval()


def check(
    folder: str | Path,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    configs: Mapping[str, dict],
    tokenizer: Tokenizer,
    settings: PipelineConfig,
) -> None:
    """ValueError unless a folder to which these are `save`d could be loaded; nothing is written."""
    folder = Path(folder)
    config = {**configs, "pipeline": json.loads(json.dumps(dataclasses.asdict(settings)))}
    networks = {name: _build(folder, BUILDERS[name], configs, name) for name in configs}
    for name, network in networks.items():
        arrays = checkpoint.half_precision(weights.get(name, {}))
        _fill(network, arrays, folder / f"{name}.safetensors")
    _join(folder, config, networks, tokenizer)


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
    write_config(folder, config)


def add(
    folder: str | Path, name: str, weights: Mapping[str, np.ndarray], network: dict
) -> None:
    """Put one network more into a model folder, in float16, or in the place of an earlier one.
    ValueError where it could not be loaded again."""
    path = Path(folder) / f"{name}.safetensors"
    config = read_config(path.parent) | {name: network}
    arrays = checkpoint.half_precision(weights)
    _fill(_build(path.parent, BUILDERS[name], config, name), arrays, path)
    checkpoint.save(path, arrays, {})
    write_config(path.parent, config)


def write_config(folder: Path, config: dict) -> None:
    """Write `config.json`, with its checksum."""
    text = json.dumps(config | {"sha256": checksum(config)}, indent=2) + "\n"
    write_atomically(folder / "config.json", text.encode())


def _parse_config(folder: Path) -> dict:
    """What config.json says, of this version, altered or not."""
    path = folder / "config.json"
    config = read_json(path, "the configuration")
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{path} has format version {reprlib.repr(version)}, this program reads {VERSION}"
        )
    if unknown := config.keys() - ENTRIES:
        raise ValueError(f"{path} describes {reprlib.repr(min(unknown))}, which no model has")
    return config


def _codec(config: dict) -> str:
    """What stands between pictures and latents."""
    return "pixel_space" if "pixel_space" in config else "autoencoder"


def _join(
    folder: Path,
    config: dict,
    networks: dict[str, Module],
    tokenizer: Tokenizer,
    device: str = "cpu",
    threads: int | None = None,
) -> TextToImage:
    """The pipeline of the networks; ValueError where they and the tokenizer do not fit together."""
    unet, text_encoder = networks["unet"], networks["text_encoder"]
    autoencoder, text = networks[_codec(config)], text_encoder.config
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
    settings = _build(folder, lambda c: checked_options(PipelineConfig, c), config, "pipeline")
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


def _fill(network: Module, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Give a network the weights of a file; ValueError where they are not its own."""
    for key, array in arrays.items():
        if array.dtype not in (np.float16, np.float32) or not np.isfinite(array).all():
            what = f"{reprlib.repr(key)} ({array.dtype})"
            raise ValueError(f"{path}: {what} must be finite numbers of float16 or float32")
    try:
        network.load_state_dict(arrays)
    except ValueError as error:
        raise ValueError(f"{path} does not belong to its config.json: {one_line(error)}") from None


def _build(folder: Path, build: Callable, config: dict, name: str):
    try:
        return build(config[name])
    except (TypeError, KeyError, ValueError, ArithmeticError, MemoryError) as error:
        reason = one_line(error) or "it is too large for this machine's memory"
        raise ValueError(
            f"{folder / 'config.json'} does not fit this program: {name}: {reason}"
        ) from None


def checked_options(kind: type, section: object):
    """A dataclass of the options that a file gives it. ValueError for those it has not, and for
    values of another type than its fields or beyond all bounds."""
    if not isinstance(section, dict):
        raise ValueError(f"{reprlib.repr(section)} is no set of options")
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    for name, value in section.items():
        if name not in types:
            raise ValueError(f"there is no option {reprlib.repr(name)} in {kind.__name__}")
        _check_option(name, types[name], value)
    return kind(**section)


def _clip_options(section: object) -> tuple[CLIPTextConfig, CLIPVisionConfig, int]:
    names = ["projection_dim", "text", "vision"]
    if not isinstance(section, dict) or sorted(section) != names:
        raise ValueError(f"it must consist of {', '.join(names)}")
    _check_option("projection_dim", int, section["projection_dim"])
    text, vision = section["text"], section["vision"]
    options = checked_options(CLIPTextConfig, text), checked_options(CLIPVisionConfig, vision)
    return *options, section["projection_dim"]


def _check_option(name: str, kind: type, value: object, each: str = "") -> None:
    """ValueError unless an option's value is of the kind that its field asks for."""
    if items := get_args(kind):
        if not isinstance(value, list) or len(value) > MOST_LEVELS:
            shown = reprlib.repr(value)
            raise ValueError(f"{name} must be a list of at most {MOST_LEVELS}, not {shown}")
        for item in value:
            _check_option(name, items[0], item, "each of ")
        return
    least, largest = int(name not in MAY_BE_ZERO), LARGEST.get(name, LARGEST_OF_OTHERS)
    wanted, fits = {
        int: (
            f"a whole number {least} ... {largest}",
            type(value) is int and least <= value <= largest,
        ),
        float: (
            "0 or a number of a size of 1e-9 ... 1e9",
            type(value) in (int, float) and (value == 0 or 1e-9 <= abs(value) <= 1e9),
        ),
        bool: ("true or false", type(value) is bool),
        str: ("a text", type(value) is str),
    }[kind]
    if not fits:
        raise ValueError(f"{each}{name} must be {wanted}, not {reprlib.repr(value)}")
