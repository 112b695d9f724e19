"""From a run's checkpoints to a model folder."""

from pathlib import Path

from .. import checkpoint, pipeline
from ..pipeline import PipelineConfig
from ..text import Tokenizer


def export(run: str | Path, out: str | Path) -> None:
    """Write the finished run as a model folder: averaged weights in float16, and how to join them.

    Everything comes from the checkpoints; neither data nor options are needed. Raises ValueError
    where a stage is missing or unfinished.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run} is not the folder of a run")
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
    settings = PipelineConfig(**options["unet"]["pipeline"])
    pipeline.save(out, weights, configs, tokenizer, settings)


def finished(path: Path) -> tuple[dict, dict]:
    """A checkpoint's arrays and metadata; ValueError unless its training reached the end."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no trained {path.stem} ({path.name}): train it first")
    arrays, metadata = checkpoint.load(path)
    step, steps = metadata["step"], metadata["options"]["steps"]
    if step != steps:
        raise ValueError(f"{path} is at step {step} of {steps}: finish it first, with --resume")
    return arrays, metadata


def averaged(arrays: dict, network: str, separator: str = "/") -> dict:
    """The averaged weights of one network, by parameter name."""
    prefix = f"ema/{network}{separator}"
    return {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
