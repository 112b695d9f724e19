"""Trainings of a second, to be disturbed: as a function, and as the command line over small data
and small networks, in a process of its own:

    python -m tests.small_training '{"steps": 8}' train autoencoder --out ...

The first argument changes the settings of every stage.
"""

import csv
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

from ldm_numpy import checkpoint
from ldm_numpy.__main__ import main
from ldm_numpy.training import loop

from . import tiny

ROOT = Path(__file__).resolve().parent.parent
NAME = "classifier.safetensors"
OLDER = "classifier.previous.safetensors"
DAMAGED = "classifier.damaged.safetensors"


def small_main(settings: str, *arguments: str) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs start without it
    tiny.STEPS |= json.loads(settings)
    tiny.run_all(SimpleNamespace(setattr=setattr), Path())
    quicken(setattr)
    return main(list(arguments))


def quicken(setattr) -> None:
    """A log of few steps, and no picture of it: importing matplotlib would take longer than all the
    rest."""
    setattr(loop, "LOG_EVERY", 2)
    setattr(loop.Log, "plot", lambda self: None)


def resume(folder: Path, threads: int = 1, **options) -> None:
    """Six steps of the smallest stage, from where the folder's checkpoint is; one at 3 and 6."""
    loop.run(tiny.stage("classifier", **options), folder, 0, resume=True, threads=threads)


def step(path: Path) -> int:
    return checkpoint.load(path)[1]["step"]


def rows(path: Path) -> list[list[str]]:
    """A log without the seconds, its last column."""
    with open(path, newline="") as lines:
        return [row[:-1] for row in csv.reader(lines)]


def same_run(ours: Path, theirs: Path) -> None:
    """The same checkpoint, log and pictures; nothing else but an older checkpoint lies about."""
    assert (ours / NAME).read_bytes() == (theirs / NAME).read_bytes()
    assert rows(ours / "classifier.csv") == rows(theirs / "classifier.csv")
    for picture in theirs.glob("*.png"):
        assert (ours / picture.name).read_bytes() == picture.read_bytes()
    names = {path.name for path in ours.iterdir()} - {OLDER, DAMAGED}
    assert names == {path.name for path in theirs.iterdir()} - {OLDER}


class OpenFile:
    """In the place of `open`: a file, for subclasses that write otherwise."""

    def __init__(self, *args):
        self.file = open(*args)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


if __name__ == "__main__":
    sys.exit(small_main(*sys.argv[1:]))
