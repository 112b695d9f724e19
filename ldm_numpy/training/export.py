"""From a run's checkpoints to a model folder."""

from pathlib import Path

from .. import model_folder
from ..pipeline import PipelineConfig
from ..text import Tokenizer
from .loop import finished

# What training decides of a PipelineConfig. The rest is how to sample, and may change afterwards.
TRAINED = ("image_size", "padded_size", "latent_size", "latent_scale", "sigma_data", "objective")


def export(run: str | Path, out: str | Path) -> None:
    """Write the finished run as a model folder: averaged weights in float16, and how to join them.

    Weights come from the checkpoints, the tokenizer from its file, and how to sample from
    PipelineConfig's defaults; no data is needed. Raises ValueError where a stage is missing or
    unfinished.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run} is not the folder of a run")
    if Path(out).resolve() == run.resolve():
        raise ValueError(f"{out} holds the run's checkpoints: name another folder with --out")
    stages = ("unet", "clip", "autoencoder", "reader")
    loaded = {stage: finished(run / f"{stage}.safetensors") for stage in stages}
    arrays = {stage: arrays for stage, (arrays, _) in loaded.items()}
    options = {stage: metadata["options"] for stage, (_, metadata) in loaded.items()}

    weights = {
        "unet": averaged(arrays["unet"], "unet"),
        "autoencoder": averaged(arrays["autoencoder"], "autoencoder"),
        "clip": averaged(arrays["clip"], "clip"),
        "reader": averaged(arrays["reader"], "classifier"),
    }
    configs = {stage: options[stage]["network"] for stage in stages}
    configs["text_encoder"] = configs["clip"]["text"]
    if options["unet"]["text_encoder"] == "joint":
        weights["text_encoder"] = averaged(arrays["unet"], "text_encoder")
    else:
        weights["text_encoder"] = averaged(arrays["clip"], "clip/text_model", ".")
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    settings = PipelineConfig(**{name: options["unet"]["pipeline"][name] for name in TRAINED})
    model_folder.save(out, weights, configs, tokenizer, settings)


def averaged(arrays: dict, network: str, separator: str = "/") -> dict:
    """The averaged weights of one network, by parameter name."""
    prefix = f"ema/{network}{separator}"
    return {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
