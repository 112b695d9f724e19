"""Trainings for comparison, each a run of its own beside the usual one."""

import dataclasses
import shutil
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from ldm_numpy import training
from ldm_numpy.backend import blas_threads
from ldm_numpy.checkpoint import load
from ldm_numpy.data import captions
from ldm_numpy.models import unet as unet_models
from ldm_numpy.models.blocks import BasicTransformerBlock
from ldm_numpy.nn import Module
from ldm_numpy.training import loop
from ldm_numpy.training.dataset import Digits

STEPS = 600  # of the U-Net, a third of the usual training


class OneToken(Digits):
    """Digits whose captions name the digit in a word, and nothing else."""

    def captions(self, index, seed, *purpose):
        return [captions.DIGITS[label] for label in self.labels[index]]


class Nothing(Module):
    """In the place of self-attention."""

    def forward(self, x, context=None, recorder=None):
        return x * 0


def without_self_attention(module: Module) -> None:
    for _, child in module.named_children():
        if isinstance(child, BasicTransformerBlock):
            child.attn1 = Nothing()
        else:
            without_self_attention(child)


def prepared(base: Path, folder: Path, names: tuple[str, ...]) -> None:
    """The folder, with the finished earlier stages of the usual run."""
    training.prepare_folder(folder)
    for name in (*(f"{n}.safetensors" for n in names), "tokenizer.json"):
        if not (base / name).is_file():
            raise ValueError(f"{base} has no {name}: `make train-mnist` makes it")
        if not (folder / name).exists():
            shutil.copy(base / name, folder / name)


@contextmanager
def settings(autoencoder: dict | None, network: dict | None):
    """The usual settings of autoencoder stage and U-Net, with these changed, for a while."""
    changed = dataclasses.replace(training.AUTOENCODER, **autoencoder or {})
    shape = dataclasses.replace(unet_models.MNIST, **network or {})
    with (
        mock.patch.object(training, "AUTOENCODER", changed),
        mock.patch.object(unet_models, "MNIST", shape),
    ):
        yield


def trained(
    base: Path,
    folder: Path,
    steps: int = STEPS,
    autoencoder: dict | None = None,
    network: dict | None = None,
    change=None,
    **options,
):
    """The stage "unet", trained to its end (further, where it was interrupted), with averaged
    weights; `change(stage)` alters it before."""
    earlier = ("perceptual", "reader", "clip") + (("autoencoder",) if autoencoder is None else ())
    prepared(base, folder, earlier)
    with settings(autoencoder, network):
        if autoencoder is not None:
            training.Run(folder).fit("autoencoder", resume=True)
        run = training.Run(folder, steps={"unet": steps}, **options)
        stage = run.build("unet")
        if change is not None:
            change(stage)
        fit(stage, folder)
    return stage


def fit(stage, folder: Path) -> None:
    """Train a stage to its end, further where it was interrupted."""
    with blas_threads(1):
        loop.run(stage, folder, 0, resume=True)


def one_token(stage) -> None:
    fields = (getattr(stage.train, f.name) for f in dataclasses.fields(stage.train))
    stage.train = OneToken(*fields)


def no_self_attention(stage) -> None:
    without_self_attention(stage.network)


def last_weights(base: Path, pipe) -> None:
    """Give a pipeline the weights that the usual training ended with, instead of their average."""
    arrays, _ = load(base / "unet.safetensors")
    start = "weights/unet/"
    pipe.unet.load_state_dict(
        {k.removeprefix(start): a for k, a in arrays.items() if k.startswith(start)}
    )
