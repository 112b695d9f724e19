"""Minutes, not seconds: real trainings through the command line, and what can go wrong in them."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ldm_numpy import checkpoint
from ldm_numpy.evaluation import BANDS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent

# One stage of the training, short: the perceptual classifier, in a process of its own.
STAGE = """
import sys
from ldm_numpy.training import Run
folder, threads = sys.argv[1], int(sys.argv[2])
Run(folder, threads=threads, steps={"perceptual": 300}).fit("perceptual", resume=True)
"""


def train(*arguments, **options):
    command = [sys.executable, "-m", "ldm_numpy", "train", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, **options
    ).stdout


def start_stage(folder, threads=2):
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, str(folder), str(threads)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_short_training_reaches_its_quality(tmp_path):
    """Two thirds to a fifth of the steps of `make train-mnist`, through the same commands.

    Chance would be 10% for a digit and 1% for all three attributes.
    """
    run = tmp_path / "run"
    train("autoencoder", "--steps", 400, "--out", run)
    train("clip", "--steps", 300, "--out", run)
    printed = train("unet", "--steps", 400, "--out", run)
    metrics = json.loads((run / "model" / "metrics.json").read_text())
    assert metrics["reader_accuracy"] >= 0.99
    assert metrics["autoencoder_digit"] >= 0.97
    assert metrics["autoencoder_mse"] <= 0.01
    assert metrics["clip_zero_shot"] >= 0.85
    assert metrics["sample_digit"] >= 0.90
    assert metrics["sample_all"] >= 0.50
    assert 0.7 <= metrics["sample_ink"] <= 1.4
    for band in BANDS:
        assert band.meaning in printed
    for name in ("autoencoder", "clip", "unet"):
        rows = (run / f"{name}.csv").read_text().splitlines()
        assert rows[0].startswith("step,loss") and len(rows) > 10
        assert (run / f"{name}_loss.png").is_file()
    assert (run / "samples.png").is_file() and (run / "unet_000400.png").is_file()


def test_killed_trainings_resume_to_the_same_bits(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start_stage(undisturbed).wait() == 0
    process = start_stage(killed)
    path = killed / "perceptual.safetensors"
    deadline = time.monotonic() + 300
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.load(path)[1]["step"] < 300
    assert start_stage(killed).wait() == 0
    assert path.read_bytes() == (undisturbed / "perceptual.safetensors").read_bytes()
    log = [line.rsplit(",", 1)[0] for line in (killed / "perceptual.csv").read_text().splitlines()]
    expected = (undisturbed / "perceptual.csv").read_text().splitlines()
    assert log == [line.rsplit(",", 1)[0] for line in expected]  # all but the seconds


def test_threads_do_not_change_a_bit(tmp_path):
    files = []
    for threads in (1, 2, 3):
        assert start_stage(tmp_path / str(threads), threads).wait() == 0
        files.append((tmp_path / str(threads) / "perceptual.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


def test_the_wheel_carries_data_and_weights(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("ldm_numpy-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "data/train-images-idx3-ubyte.gz",
        "data/t10k-labels-idx1-ubyte.gz",
        "weights/config.json",
        "weights/unet.safetensors",
        "weights/tokenizer.json",
    ):
        assert f"ldm_numpy/{wanted}" in names
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "import ldm_numpy; print(ldm_numpy.__file__); print(ldm_numpy.load()('a 3')[0].size)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(site) in result.stdout and "(28, 28)" in result.stdout
