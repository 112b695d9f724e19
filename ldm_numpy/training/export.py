"""From a run's checkpoints to a model folder."""

import warnings
from pathlib import Path

from .. import model_folder
from ..pipeline import PipelineConfig
from ..text import Tokenizer
from .loop import finished

# What training decides of a PipelineConfig. The rest is how to sample, and may change afterwards.
TRAINED = ("image_size", "padded_size", "latent_size", "latent_scale", "sigma_data", "objective")


def export(run: str | Path, out: str | Path, denoiser: str = "unet") -> None:
    """Write the finished run as a model folder: averaged weights in float16, and how to join them.

    denoiser: the stage that made it, "unet" or "pixel", whose model has no autoencoder.

    Weights come from the checkpoints, the tokenizer from its file, and how to sample from
    PipelineConfig's defaults; no data is needed. A classifier of noised latents goes along where
    the run has a finished one. Raises ValueError where a stage is missing or
    unfinished.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run} is not the folder of a run")
    if Path(out).resolve() == run.resolve():
        raise ValueError(f"{out} holds the run's checkpoints: name another folder with --out")
    stages = (denoiser, "clip", "reader") + (("autoencoder",) if denoiser == "unet" else ())
    loaded = {stage: finished(run / f"{stage}.safetensors") for stage in stages}
    arrays = {stage: arrays for stage, (arrays, _) in loaded.items()}
    options = {stage: metadata["options"] for stage, (_, metadata) in loaded.items()}

    weights = {
        "unet": averaged(arrays[denoiser], "unet"),
        "clip": averaged(arrays["clip"], "clip"),
        "reader": averaged(arrays["reader"], "classifier"),
    }
    configs = {"unet": options[denoiser]["network"]}
    configs |= {stage: options[stage]["network"] for stage in stages[1:]}
    configs["text_encoder"] = configs["clip"]["text"]
    if denoiser == "unet":
        weights["autoencoder"] = averaged(arrays["autoencoder"], "autoencoder")
    else:
        configs["pixel_space"] = options[denoiser]["pixel_space"]
    if options[denoiser]["text_encoder"] == "joint":
        weights["text_encoder"] = averaged(arrays[denoiser], "text_encoder")
    else:
        weights["text_encoder"] = averaged(arrays["clip"], "clip/text_model", ".")
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    decided = options[denoiser]["pipeline"]  # a run of an earlier version may lack some
    settings = PipelineConfig(**{name: decided[name] for name in TRAINED if name in decided})
    model_folder.save(out, weights, configs, tokenizer, settings)
    if denoiser == "unet" and (run / "noisy.safetensors").is_file():
        try:
            add_noisy(run, out)
        except ValueError as error:
            warnings.warn(f"without its noisy classifier: {error}", stacklevel=2)


def add_noisy(run: str | Path, out: str | Path) -> None:
    """Put the run's classifier of noised latents into a model folder; ValueError if unfinished."""
    arrays, metadata = finished(Path(run) / "noisy.safetensors")
    weights = averaged(arrays, "noisy_classifier")
    model_folder.add(out, "noisy_classifier", weights, metadata["options"]["network"])


def averaged(arrays: dict, network: str, separator: str = "/") -> dict:
    """The averaged weights of one network, by parameter name."""
    prefix = f"ema/{network}{separator}"
    return {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
