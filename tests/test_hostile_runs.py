"""A run from a stranger: its checkpoints' checksums are right, and what they say is not."""

import copy
import os

import numpy as np
import pytest

from ldm_numpy import checkpoint, model_folder, training
from ldm_numpy.__main__ import main

from . import tiny

pytestmark = pytest.mark.host
STAGES = ("perceptual", "autoencoder", "clip", "reader", "unet", "noisy")


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A run of all stages, and the arrays and metadata of each."""
    folder = tmp_path_factory.mktemp("honest")
    with pytest.MonkeyPatch.context() as patch:
        whole = tiny.run_all(patch, folder)
        patch.setattr(training.loop.Log, "plot", lambda self: None)
        whole.fit("all")
        whole.fit("noisy")
    loaded = {stage: checkpoint.load(folder / f"{stage}.safetensors") for stage in STAGES}
    return (folder / "tokenizer.json").read_bytes(), loaded


def write(folder, honest, stage=None, lie=None):
    """The run in a folder, after `lie(arrays, metadata)` has changed one stage's checkpoint."""
    tokenizer, loaded = honest
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    for name, (arrays, metadata) in loaded.items():
        arrays, metadata = dict(arrays), copy.deepcopy(metadata)
        if name == stage:
            lie(arrays, metadata)
        checkpoint.save(folder / f"{name}.safetensors", arrays, metadata)


def says(*path, value=None):
    """A lie: another value of an option; None: it is not there."""

    def lie(arrays, metadata):
        place = metadata
        for name in path[:-1]:
            place = place[name]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return lie


def averages(change):
    """A lie: other averaged weights; None: they are not there."""

    def lie(arrays, metadata):
        for key in [key for key in arrays if key.startswith("ema/")]:
            changed = change(arrays.pop(key))
            if changed is not None:
                arrays[key] = changed

    return lie


HUGE = {"out_channels": 10**9}
LIES = {
    "steps a list": ("unet", says("options", "steps", value=[6]), ["at step 6 of [6]"]),
    "no text encoder": ("unet", says("options", "text_encoder"), ["does not say its text_encoder"]),
    "another's text encoder": (
        "unet", says("options", "text_encoder", value="joint"), ["text_encoder.safetensors does"]),
    "no pipeline": ("unet", says("options", "pipeline"), ["does not say its pipeline"]),
    "pipeline a list": ("unet", says("options", "pipeline", value=[1]), ["not say its pipeline"]),
    "a size that is a text": (
        "unet", says("options", "pipeline", "image_size", value="28"), ["image_size must be"]),
    "a scale of 400 digits": (
        "unet", says("options", "pipeline", "latent_scale", value=10**400), ["latent_scale must"]),
    "latents of another size": (
        "unet", says("options", "pipeline", "latent_size", value=99), ["the latent's side times"]),
    "CLIP without texts": ("clip", says("options", "network", "text"), ["does not say its text"]),
    "CLIP's texts a number": (
        "clip", says("options", "network", "text", value=3), ["does not say its text"]),
    "another vocabulary": (
        "clip", says("options", "network", "text", "vocab_size", value=999), ["do not fit"]),
    "a network of a billion channels": (
        "unet", says("options", "network", value=HUGE), ["out_channels must be", "1000000000"]),
    "no weights": ("unet", averages(lambda a: None), ["unet.safetensors", "weights do not fit"]),
    "whole weights": ("unet", averages(lambda a: a.astype(int)), ["unet", "int64", "must be"]),
    "weights NaN": ("unet", averages(lambda a: a * np.nan), ["float16 cannot hold"]),
    "weights of another shape": ("clip", averages(lambda a: a[None]), ["clip.safetensors does"]),
} | {
    f"{stage} {how}": (
        stage, says("options", "network", value=value),
        ["does not say its network" if value in (None, [1]) else "no option 'evil'"])
    for stage in ("unet", "reader", "autoencoder")
    for how, value in [("no network", None), ("a list", [1]), ("evil", {"evil": 1})]
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_export(name, honest, tmp_path, capsys):
    """One line, before the model that was there is touched."""
    stage, lie, words = LIES[name]
    run, out = tmp_path / "run", tmp_path / "out"
    write(run, honest, stage, lie)
    out.mkdir()
    (out / "config.json").write_text("the model before")
    assert main(["export", str(run), "--out", str(out)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and str(run) in shown
    for word in words:
        assert word in shown
    if "does not say" in shown:
        assert f"{stage}.safetensors is no checkpoint" in shown
    assert os.listdir(out) == ["config.json"]
    assert (out / "config.json").read_text() == "the model before"


@pytest.mark.parametrize(
    "lie, words",
    [
        (says("options", "network"), "does not say its network"),
        (says("options", "network", value={"evil": 1}), "no option 'evil'"),
        (averages(lambda a: None), "weights do not fit"),
    ],
)
def test_a_noisy_classifier_that_lies_stays_behind(lie, words, honest, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    write(run, honest, "noisy", lie)
    with pytest.warns(UserWarning, match=f"without its noisy classifier: .*{words}"):
        training.export(run, out)
    assert "noisy_classifier" not in model_folder.read_config(out)
    assert not (out / "noisy_classifier.safetensors").exists()
    model_folder.load(out)


def test_the_honest_run_is_exported_whole(honest, tmp_path):
    write(tmp_path / "run", honest)
    training.export(tmp_path / "run", tmp_path / "out")
    config = model_folder.read_config(tmp_path / "out")
    for name in model_folder.BUILDERS.keys() & config.keys():
        model_folder.load_network(tmp_path / "out", config, name)
    assert "noisy_classifier" in config


def test_another_runs_folder_is_not_written_to(honest, tmp_path, capsys):
    write(tmp_path / "run", honest)
    write(tmp_path / "other", honest)
    (tmp_path / "other" / "clip.csv").write_text("step")
    before = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "other")]) == 2
    assert "other holds a run's checkpoints: name another folder" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}


@pytest.mark.parametrize("scale", [None, "1", [1.0]])
@pytest.mark.parametrize("what", ["unet", "noisy"])
def test_a_latent_scale_that_is_none(what, scale, honest, tmp_path, monkeypatch):
    run = tmp_path / "run"
    write(run, honest, "autoencoder", says("measured", "latent_scale", value=scale))
    (run / f"{what}.safetensors").unlink()
    whole = tiny.run_all(monkeypatch, run)
    with pytest.raises(ValueError, match=r"autoencoder\.safetensors .* not say its latent_scale"):
        whole.fit(what, resume=True)
