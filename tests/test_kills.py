"""The command line in processes of its own: killed, interrupted, on a full disk; then resumed."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ldm_numpy import checkpoint
from ldm_numpy.data import mnist
from ldm_numpy.processes import can_fork

from .small_training import ROOT, rows, step

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not can_fork(), reason="tried on Linux alone"),
]

SETTINGS = {"steps": 8, "checkpoint_every": 2, "sample_every": 4}
STAGES = ("perceptual", "reader", "autoencoder")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of IDX files with a few digits."""
    folder = tmp_path_factory.mktemp("data")
    images, labels = (array[:100] for array in mnist.load("test"))
    for name in ("train", "t10k"):
        header = struct.pack(">IIII", 0x803, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, len(labels))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


class Training:
    """`train autoencoder`, which is three stages, over small networks and by two ranks."""

    def __init__(self, folder, data, *options, settings=SETTINGS, **popen):
        command = [sys.executable, "-m", "tests.small_training", json.dumps(settings), "train"]
        command += ["autoencoder", "--out", str(folder), "--data", str(data), "--threads", "2"]
        self.process = subprocess.Popen(
            [*command, "--device", "cpu", *options],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, **popen,
        )  # fmt: skip

    def begins(self):
        """Wait for the first line, which comes before any work."""
        assert self.process.stdout.readline().startswith("device: cpu, 2 threads")
        return self

    def ends(self):
        """The exit code, and what was printed as errors."""
        errors = self.process.communicate()[1]
        assert "Traceback" not in errors
        return self.process.returncode, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """The folder of an undisturbed training, and how long it took from its first line on."""
    folder = tmp_path_factory.mktemp("whole")
    training = Training(folder, data).begins()
    began = time.monotonic()
    assert training.ends()[0] == 0
    return folder, time.monotonic() - began


def whole_run(folder, expected):
    """The same files, names and bytes, but for the seconds in logs."""
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in expected.iterdir())
    for path in expected.iterdir():
        if path.suffix == ".csv":
            assert rows(folder / path.name) == rows(path)
        else:
            assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def wait_for_writing(folder, process, count):
    """Return when a temporary file is there for the `count`-th time, or the process has ended."""
    there = False
    while count > 0 and process.poll() is None:
        before, there = there, any(name.endswith(".tmp") for name in os.listdir(folder))
        count -= there and not before


def killed(folder, data, duration, rng, writing):
    """A training that was killed at some instant, or as it was writing some file."""
    while True:
        folder.mkdir()
        training = Training(folder, data).begins()
        if writing:
            wait_for_writing(folder, training.process, rng.randint(1, 24))
        else:
            time.sleep(rng.uniform(0, duration))
        if rng.random() < 0.5:
            training.process.kill()  # rank 0 alone: the other finds out by itself
        else:
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.killpg(training.process.pid, signal.SIGKILL)
        # The end of rank 0. The other may still be there, and must not matter.
        if training.process.wait() == -signal.SIGKILL:
            return training
        assert training.ends()[0] == 0  # it was faster
        shutil.rmtree(folder)
        duration *= 0.8


def killed_and_resumed(folder, data, whole, rng, writing):
    """Kill a training, look at what is there, and resume it to its end; returns whether it was
    killed as it was writing a file."""
    expected, duration = whole
    training = killed(folder, data, duration, rng, writing)
    written = any(folder.glob(".*.tmp"))
    for path in folder.glob("*.safetensors"):
        checkpoint.load(path)
    for path in folder.glob("*.csv"):
        steps = [int(row[0]) for row in rows(path)[1:]]
        assert steps == sorted(set(steps))
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            picture.load()
    code, errors = Training(folder, data, "--resume").ends()
    assert code == 0 and "warning" not in errors, errors
    whole_run(folder, expected)
    training.ends()  # as its pipes do, which the last of its processes closes
    return written


@pytest.mark.parametrize("count", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_instant(count, data, whole, tmp_path):
    rng = random.Random(count)
    written = sum(
        killed_and_resumed(tmp_path / str(i), data, whole, rng, writing=i % 2 == 1)
        for i in range(count)
    )
    print(f"{count} trainings killed, {written} as they were writing a file; all resumed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_a_group_of_processes(number, data, whole, tmp_path):
    """As a terminal sends them; then another training goes on to the end."""
    expected, _ = whole
    training = Training(tmp_path, data).begins()
    while not (tmp_path / "reader.csv").exists():
        time.sleep(0.01)
    os.killpg(training.process.pid, number)
    code, errors = training.ends()
    assert code == 128 + number
    assert errors.endswith(": --resume continues\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(training.process.pid, 0)  # nobody of them is left
    assert not list(tmp_path.glob(".*"))
    saved = {name: step(p) for name in STAGES if (p := tmp_path / f"{name}.safetensors").exists()}
    assert saved["perceptual"] == 8 and saved["reader"] >= 2
    assert Training(tmp_path, data, "--resume").ends()[0] == 0
    for name in STAGES:
        for suffix in ("safetensors", "csv"):
            ours, theirs = (f / f"{name}.{suffix}" for f in (tmp_path, expected))
            read = rows if suffix == "csv" else Path.read_bytes
            assert read(ours) == read(theirs)


def test_a_full_disk_is_one_line_and_loses_nothing(data, whole, tmp_path):
    """A limit on the size of files acts as a full disk does, half way through a file."""
    expected, _ = whole
    for path in expected.iterdir():
        if path.stem.partition("_")[0] in ("perceptual", "reader", "perceptual.previous"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "reader.safetensors").write_bytes(
        (expected / "reader.previous.safetensors").read_bytes()
    )
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")}
    size = len(before["reader.safetensors"])

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    code, errors = Training(tmp_path, data, "--resume", preexec_fn=limit).ends()
    assert code == 2
    last = errors.splitlines()[-1]
    assert last == f"error: cannot write {tmp_path / 'reader.safetensors'}: File too large"
    assert before == {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")}
    assert not list(tmp_path.glob(".*"))
    assert Training(tmp_path, data, "--resume").ends()[0] == 0
    for name in STAGES:
        ours, theirs = (f / f"{name}.safetensors" for f in (tmp_path, expected))
        assert ours.read_bytes() == theirs.read_bytes()


def test_a_place_that_cannot_exist(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, errors = Training(tmp_path / "file" / "run", data).ends()
    assert code == 2
    assert errors.startswith("error: cannot write into the folder ") and errors.count("\n") == 1
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.slow
def test_the_real_training_is_stopped_and_goes_on(tmp_path):
    """`train autoencoder` as users start it, stopped in its first stage, twice."""
    command = [sys.executable, "-m", "ldm_numpy", "train", "autoencoder", "--out", str(tmp_path)]
    path, steps = tmp_path / "perceptual.safetensors", []
    for options, number in [([], signal.SIGINT), (["--resume"], signal.SIGTERM)]:
        process = subprocess.Popen(
            [*command, *options, "--device", "cpu"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        process.stdout.readline()
        while "step/s" not in (line := process.stderr.read(1)) and line != "s":
            pass
        time.sleep(5)
        os.killpg(process.pid, number)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + number, errors
        assert "perceptual stopped at step" in errors and "Traceback" not in errors
        steps.append(step(path))
    assert 0 < steps[0] < steps[1] < 300
