"""The training loop that all stages share: steps, log, pictures, checkpoints, resume.

A stage (see `Stage`) knows its networks, its data and its loss. The loop knows the rest. What a
step computes depends on the seed and the step number alone, so a training that was stopped and
resumed ends with the same bits as one that was not.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import checkpoint
from ..backend import array_module, to_host
from ..nn import Module
from ..optim import EMA, AdamW, Muon, warmup_cosine
from ..parallel import Shards
from ..processes import RankShards, Ring, can_fork
from .dataset import Digits
from .folder import existing, locked, newest, of_a_training, reinstate
from .log import Log
from .stop import Stop, Stopped

LOG_EVERY = 20  # steps between looks at the loss: each look waits for the device
OPTIMIZERS = {"muon": Muon, "adamw": AdamW}
FLOOR = 0.02  # of the learning rate, as a share of its peak


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """What every stage can be told.

    Fields:
        steps, batch_size: length of the training, images a step
        shard_size: images a thread works on at a time, at most (CPU only)
        learning_rate, warmup: peak, and steps until it; then a cosine to 2%
        optimizer: "muon" or "adamw"
        weight_decay, clip_norm, ema_decay: see optim.py
        checkpoint_every, sample_every: steps
    """

    steps: int
    batch_size: int = 128
    shard_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 50
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    checkpoint_every: int = 200
    sample_every: int = 400

    def __post_init__(self):
        for name in ("steps", "batch_size", "shard_size", "checkpoint_every", "sample_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be 'muon' or 'adamw', not {self.optimizer!r}")


class Stage:
    """What a stage of the training supplies. Subclasses set the attributes and fill the methods.

    Attributes:
        name: of its files
        config: a StageConfig
        train: the digits it learns from
        networks: the networks it trains, by name
        report: the names of the numbers that `gradients` returns, the first being the loss
        baselines: for some of them, the value that an answer of zero would have
        upstream: fingerprints of the checkpoints it builds upon
    """

    name: str
    config: StageConfig
    train: Digits
    networks: dict[str, Module]
    report: tuple[str, ...] = ("loss",)
    baselines: dict[str, float]
    upstream: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed

    def before_steps(self) -> None:
        """Anything to do once, before the first step and before there are other processes."""

    def gradients(self, step: int, shards: Shards, parameters) -> list:
        """Add the gradients of batch number `step` to `.grad`; returns the numbers of `report`."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Anything to do to the weights after an update."""

    def draw(self, path: Path, shards: Shards) -> None:
        """Save a picture of what the networks (with averaged weights) can do."""

    def describe(self) -> dict:
        """Everything that decides the outcome, for the checkpoint: what JSON can hold."""
        return {
            "stage": self.name,
            "data": self.train.fingerprint(),
            "upstream": self.upstream,
            **dataclasses.asdict(self.config),
        }

    def measure(self, shards: Shards) -> dict:
        """What later stages need to know (the latent scale), of the averaged weights."""
        return {}


def run(
    stage: Stage,
    folder: Path,
    seed: int,
    *,
    resume: bool = False,
    device: str = "cpu",
    threads: int | None = None,
) -> None:
    """Train a stage to its end, leaving checkpoint, log and pictures in `folder`.

    At the end the networks hold the averaged weights. Raises ValueError if there is a checkpoint
    already and `resume` is not asked for, if it was made with other options, if the loss becomes
    NaN or infinite (the last good checkpoint is kept), or if another training has the folder.
    Ctrl-C and SIGTERM raise Stopped, after a checkpoint; a second Ctrl-C KeyboardInterrupt, at
    once.
    """
    with locked(folder):
        _run(stage, folder, seed, resume, device, threads)


def _run(
    stage: Stage, folder: Path, seed: int, resume: bool, device: str, threads: int | None
) -> None:
    config = stage.config
    path = folder / f"{stage.name}.safetensors"
    here = Shards(config.shard_size if device == "cpu" else None, threads)
    ring, shards = ranks(here, config.batch_size)
    optimizer, ema = prepare(stage, shards)
    start = 0
    if found := existing(path):
        if not resume:
            raise ValueError(
                f"{found} exists: continue it with --resume, or choose another folder with --out"
            )
        start = restore(stage, optimizer, ema, path, seed)

    def picture_due(done: int) -> Path | None:
        due = done > 0 and (done % config.sample_every == 0 or done == config.steps)
        return folder / f"{stage.name}_{done:06d}.png" if due else None

    log = Log(folder / f"{stage.name}.csv", stage.report, stage.baselines, start)
    stage.before_steps()
    if (picture := picture_due(start)) and not picture.exists():  # stopped before it was drawn
        with ema.applied():
            stage.draw(picture, here)
    with Stop() as stop, ring:
        ring.fork()
        steps = range(start, config.steps)
        if shards.leads:
            steps = tqdm(
                steps, f"{stage.name:12}", config.steps, initial=start, mininterval=1.0, unit="step"
            )
        for step in steps:
            optimizer.zero_grad()
            values = stage.gradients(step, shards, optimizer.parameters)
            norm = optimizer.clip_gradient(config.clip_norm)
            factor = warmup_cosine(step, config.steps, config.warmup, FLOOR)
            optimizer.step(config.learning_rate * factor)
            stage.after_step()
            ema.update()
            if not shards.leads:
                continue  # and wait at the next step's first barrier
            done = step + 1
            stopping = stop.signal  # looked at once, for it may change at any time
            due = done % config.checkpoint_every == 0 or done == config.steps
            row = due or done % LOG_EVERY == 0  # none because of a signal: logs stay the same
            if row or stopping:
                numbers = [float(v) for v in (*values, norm)]
                check_finite(stage, path, done, numbers, optimizer if due or stopping else None)
            if row:
                log.add(done, numbers, config.learning_rate * factor)
                steps.set_postfix_str(", ".join(describe_numbers(stage, numbers)))
            if due or stopping:
                log.flush()  # first: rows beyond the checkpoint are dropped, missing ones are lost
                save_checkpoint(stage, optimizer, ema, path, seed, done, here)
            if stopping:
                steps.close()
                at = f"{stage.name} stopped at step {done} of {config.steps}, which is saved"
                raise Stopped(stopping, at)
            if picture := picture_due(done):
                with ema.applied():
                    stage.draw(picture, here)
        if shards.leads and stop.signal:  # heard while the last step was saved and drawn
            raise Stopped(stop.signal, f"{stage.name} stopped at its end, which is saved")
    log.plot()
    optimizer.weights[...] = ema.average


def ranks(here: Shards, batch_size: int) -> tuple[Ring, Shards]:
    """Processes for a training step, as many as `here` has threads and a batch has shards; or
    where they cannot be had, and on a GPU, one process and `here`."""
    count = min(here.threads, len(here.slices(batch_size))) if can_fork() else 1
    ring = Ring(count)
    return ring, RankShards(here.size, ring) if count > 1 else here


def prepare(stage: Stage, shards: Shards) -> tuple[AdamW, EMA]:
    """An optimizer over all the stage's networks, and the average of its weights."""
    parameters = [p for network in stage.networks.values() for p in network.parameters()]
    kind = OPTIMIZERS[stage.config.optimizer]
    optimizer = kind(parameters, weight_decay=stage.config.weight_decay, shards=shards)
    return optimizer, EMA(optimizer, stage.config.ema_decay)


def save_checkpoint(
    stage: Stage, optimizer: AdamW, ema: EMA, path: Path, seed: int, step: int, shards: Shards
) -> None:
    """Everything needed to go on from `step`, or to use the averaged weights, in one file."""
    arrays = weights_of(stage, "weights")
    with ema.applied():
        arrays |= weights_of(stage, "ema")
        measured = stage.measure(shards)
    state = optimizer.state_dict()
    arrays |= {"optimizer/m": to_host(state["m"]), "optimizer/v": to_host(state["v"])}
    metadata = {
        "options": stage.describe() | {"seed": seed},
        "step": step,
        "step_count": state["step_count"],
        "measured": measured,
    }
    checkpoint.save(path, arrays, metadata, keep=True)


def weights_of(stage: Stage, prefix: str) -> dict[str, np.ndarray]:
    """The weights of all networks: "prefix/network/parameter" -> array."""
    return {
        f"{prefix}/{name}/{key}": array
        for name, network in stage.networks.items()
        for key, array in network.state_dict().items()
    }


def load_weights(stage: Stage, arrays: dict[str, np.ndarray], prefix: str) -> None:
    """Copy what `weights_of` returned back into the networks."""
    for name, network in stage.networks.items():
        start = f"{prefix}/{name}/"
        state = {key.removeprefix(start): a for key, a in arrays.items() if key.startswith(start)}
        network.load_state_dict(state)


def restore(stage: Stage, optimizer: AdamW, ema: EMA, path: Path, seed: int) -> int:
    """Go back to a checkpoint, or to the one before it where it is damaged; returns its step.
    ValueError, naming it, for another option."""
    arrays, metadata, found = newest(path)
    asked = json.loads(json.dumps(stage.describe() | {"seed": seed}))  # tuples become lists
    asked, made = flat(asked), flat(metadata["options"])
    different = [
        f"{key} was {made.get(key)!r} and is now {asked.get(key)!r}"
        for key in sorted(asked.keys() | made.keys())
        if made.get(key) != asked.get(key)
    ]
    if different:
        raise ValueError(f"{found} was made with other options: {'; '.join(different)}")
    if found != path:
        reinstate(path)
    if missing := {"optimizer/m", "optimizer/v"} - arrays.keys():
        raise ValueError(f"{found} cannot be gone on from: it has no {min(missing)}")
    load_weights(stage, arrays, "ema")
    ema.average[...] = optimizer.weights
    load_weights(stage, arrays, "weights")
    optimizer.load_state_dict(
        {
            "m": arrays["optimizer/m"],
            "v": arrays["optimizer/v"],
            "step_count": metadata["step_count"],
        }
    )
    return metadata["step"]


def flat(options: dict, prefix: str = "") -> dict:
    """Nested options by path: {"network": {"pool": 1}} -> {"network.pool": 1}."""
    result = {}
    for key, value in options.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def load_trained(stage: Stage, folder: Path) -> dict:
    """Give the networks the averaged weights of a finished training; returns what was measured."""
    arrays, metadata = finished(folder / f"{stage.name}.safetensors")
    load_weights(stage, arrays, "ema")
    return metadata["measured"]


def finished(path: Path) -> tuple[dict, dict]:
    """A checkpoint's arrays and metadata; ValueError unless its training reached the end."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no trained {path.stem} ({path.name}): train it first")
    try:
        arrays, metadata = of_a_training(path)
    except checkpoint.DamagedError as error:
        raise ValueError(f"{error}; train {path.stem} again, with --resume") from None
    step, steps = metadata["step"], metadata["options"].get("steps")
    if step != steps:
        raise ValueError(f"{path} is at step {step} of {steps}: finish it first, with --resume")
    return arrays, metadata


def check_finite(stage: Stage, path: Path, step: int, numbers, optimizer: AdamW | None) -> None:
    """Stop a training that has gone astray, before it overwrites the last good checkpoint."""
    finite = np.isfinite(numbers).all()
    if finite and optimizer is not None:
        finite = bool(array_module(optimizer.weights).isfinite(optimizer.weights).all())
    if not finite:
        shown = ", ".join(describe_numbers(stage, numbers))
        kept = f"{path} keeps the last good step" if path.exists() else "nothing was saved yet"
        raise ValueError(f"{stage.name}: NaN or infinity by step {step} ({shown}); {kept}")


def describe_numbers(stage: Stage, numbers) -> list[str]:
    """ "loss 0.213 (zero: 1)", ... for the progress bar."""
    return [
        f"{name} {value:.4g}" + (f" (zero: {zero:.3g})" if zero is not None else "")
        for name, value in zip(stage.report, numbers)
        for zero in [stage.baselines.get(name)]
    ]
