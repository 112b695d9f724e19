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
    the run has a finished one. Raises ValueError, before anything is written, where a stage is
    missing or unfinished, where what the checkpoints hold makes no model that could be loaded, and
    where `out` is the folder of a run.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run} is not the folder of a run")
    if Path(out).resolve() == run.resolve() or any(Path(out).glob("*.csv")):  # a log: it is a run
        raise ValueError(f"{out} holds a run's checkpoints: name another folder with --out")
    stages = (denoiser, "clip", "reader") + (("autoencoder",) if denoiser == "unet" else ())
    loaded = {stage: finished(run / f"{stage}.safetensors") for stage in stages}
    arrays = {stage: arrays for stage, (arrays, _) in loaded.items()}

    def option(stage: str, name: str, kind: type):
        return stated(run / f"{stage}.safetensors", loaded[stage][1]["options"], name, kind)

    weights = {
        "unet": averaged(arrays[denoiser], "unet"),
        "clip": averaged(arrays["clip"], "clip"),
        "reader": averaged(arrays["reader"], "classifier"),
    }
    configs = {"unet": option(denoiser, "network", dict)}
    configs |= {stage: option(stage, "network", dict) for stage in stages[1:]}
    configs["text_encoder"] = stated(run / "clip.safetensors", configs["clip"], "text", dict)
    if denoiser == "unet":
        weights["autoencoder"] = averaged(arrays["autoencoder"], "autoencoder")
    else:
        configs["pixel_space"] = option(denoiser, "pixel_space", dict)
    if option(denoiser, "text_encoder", str) == "joint":
        weights["text_encoder"] = averaged(arrays[denoiser], "text_encoder")
    else:
        weights["text_encoder"] = averaged(arrays["clip"], "clip/text_model", ".")
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    decided = option(denoiser, "pipeline", dict)  # a run of an earlier version may lack some
    decided = {name: decided[name] for name in TRAINED if name in decided}
    try:
        settings = model_folder.checked_options(PipelineConfig, decided)
        model_folder.check(out, weights, configs, tokenizer, settings)
    except ValueError as error:  # before a model that may be in `out` is overwritten
        raise ValueError(f"{run} makes no model that could be loaded: {error}") from None
    model_folder.save(out, weights, configs, tokenizer, settings)
    if denoiser == "unet" and (run / "noisy.safetensors").is_file():
        try:
            add_noisy(run, out)
        except ValueError as error:
            warnings.warn(f"without its noisy classifier: {error}", stacklevel=2)


def stated(path: Path, options: dict, name: str, kind: type):
    """What the options in a checkpoint say of one; ValueError where that is nothing, or nonsense.
    A run may be a stranger's, too."""
    if not isinstance(options.get(name), kind):
        raise ValueError(f"{path} is no checkpoint of this program: it does not say its {name}")
    return options[name]


def add_noisy(run: str | Path, out: str | Path) -> None:
    """Put the run's classifier of noised latents into a model folder; ValueError if unfinished."""
    path = Path(run) / "noisy.safetensors"
    arrays, metadata = finished(path)
    network = stated(path, metadata["options"], "network", dict)
    model_folder.add(out, "noisy_classifier", averaged(arrays, "noisy_classifier"), network)


def averaged(arrays: dict, network: str, separator: str = "/") -> dict:
    """The averaged weights of one network, by parameter name."""
    prefix = f"ema/{network}{separator}"
    return {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
