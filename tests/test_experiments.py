"""The experiments' own parts: which rows there are, how one is measured, and the page."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from benchmarks.experiments import __main__ as command
from benchmarks.experiments import measure, page, rows, text, trainings
from ldm_numpy import training
from ldm_numpy.data import captions
from ldm_numpy.models.unet import UNet
from ldm_numpy.tensor import Tensor

from . import tiny

QUALITY = {"digit": 0.98, "slant": 0.9, "stroke": 0.91, "all": 0.85, "held_out": 0.8, "rest": 0.9,
           "samples": 500, "frechet": 4.0, "floor": 2.5, "seconds": 7.0}  # fmt: skip
MORE = {"kernel": 1e-3, "kernel_low": 5e-4, "kernel_high": 2e-3, "precision": 0.8, "recall": 0.7,
        "clip_score": 1.8}  # fmt: skip


def test_every_experiment_has_its_words():
    assert set(text.WORDS) == set(rows.EXPERIMENTS)


def test_names_are_chosen():
    assert command.chosen(["words/seven", "memory"]) == [("words", "seven"), ("memory", "nearest")]
    everything = command.chosen(list(rows.EXPERIMENTS))
    assert len(everything) == len(set(everything)) == sum(map(len, rows.EXPERIMENTS.values()))
    assert len(rows.EXPERIMENTS["samplers"]) == 9 * 5 + 4


@pytest.mark.parametrize(
    ("name", "words"), [("magic", "unknown experiment"), ("words/magic", "no row 'magic'")]
)
def test_unknown_names_are_one_line(name, words, tmp_path, capsys):
    assert command.main([name, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_run_is_needed(tmp_path, capsys):
    assert command.main(["words", "--base", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "unet" in capsys.readouterr().err


def test_measured_rows_are_kept_and_named_ones_measured_again(tmp_path, monkeypatch):
    calls = []

    def row(context):
        calls.append(context)
        return {"relative_error": len(calls)}

    monkeypatch.setattr(command, "Context", lambda *_: "context")
    monkeypatch.setattr(command, "EXPERIMENTS", {"editing": {"one": row, "two": row}})
    monkeypatch.setattr(page, "write", lambda results, folder: None)
    assert command.main(["editing/one", "--out", str(tmp_path)]) == 0
    assert command.main(["--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "experiments.json").read_text())
    assert results == {"editing": {"one": {"relative_error": 1}, "two": {"relative_error": 2}}}
    command.main(["editing/one", "--out", str(tmp_path)])
    assert len(calls) == 3


def test_the_page_of_all_experiments(tmp_path):
    (tmp_path / "figures").mkdir()
    results = {}
    for experiment, names in rows.EXPERIMENTS.items():
        results[experiment] = {}
        for i, name in enumerate(names):
            row = QUALITY | MORE | {"evaluations": 5 * (i + 1), "steps": 5}
            if experiment == "spaces":
                row |= {"parameters": 1_200_000, "training_steps": 1600, "seconds_a_step": 0.5,
                        "images_a_second": 40.0}  # fmt: skip
                row = {"pixel": row, "latent": row | {"images_a_second": 160.0}}
            if name == "likelihood":
                row = {"digits": 200, "bits": 1.36, "standard_error": 0.02, "histograms": 1.64}
            if experiment in ("editing", "words"):
                row = {"relative_error": 0.01 * i, "digit": 0.2, "slant": 0.9, "a": 0.1,
                       "samples": 200, "kept": True, "digit_minus_a": 0.01,
                       "standard_error": 0.001}  # fmt: skip
            results[experiment][name] = row
    results["composition"] = {"held-out": dict.fromkeys(("held_out", "rest"), QUALITY)}
    results["memory"] = {"nearest": {k: {f"quantile_{q}": 3.5 for q in (1, 10, 50, 90)}
                                     for k in ("samples", "test")}}  # fmt: skip
    Image.new("L", (3, 3)).save(tmp_path / "figures" / "experiments_words.png")
    page.write(results, tmp_path)
    written = (tmp_path / "experiments.md").read_text()
    for title, _ in text.WORDS.values():
        assert f"## {title}" in written
    for experiment in ("samplers", "guidance"):
        assert (tmp_path / "figures" / f"experiments_{experiment}.png").stat().st_size > 1000
        for name in rows.EXPERIMENTS[experiment]:
            assert f"| {name} | " in written
    assert "| 98.0% | 90.0% | 91.0% | 85.0% | 4.00 | 1.60 |" in written
    assert "Latents give 4.0 times the images" in written and "| models, pixel |" in written
    assert "](figures/experiments_words.png)" in written and "_inpaint.png" not in written


def test_evaluations_are_what_a_sampler_takes(monkeypatch):
    """Rows name evaluations; the counted ones differ by the rounding of the steps."""
    pipe = tiny.text_to_image()

    class Bench:
        def __init__(self):
            self.pipe = pipe

        def quality(self, pipe, **options):
            pipe(["3"], **options)
            return {}

    class Context:
        bench = Bench()

    for name in ("euler", "heun", "predictor_corrector", "edm_stochastic", "dpmpp_2m_sde"):
        for wanted in (5, 10, 20):
            found = rows.sampler_row(name, wanted, Context)
            assert abs(found["evaluations"] - wanted) <= 1


def test_quality_of_real_digits_is_perfect(monkeypatch):
    """Other test digits with the same captions in the place of samples: at the floor, as asked."""
    bench = measure.Bench()
    vars(bench)["test"] = tuple(a[:1500] for a in bench.test)
    index, others, texts = bench.chosen(300)
    assert len(set(index) | set(others)) == 1500
    assert texts[0] == captions.caption(*(int(a[index[0]]) for a in bench.test[2:]))
    found = bench.quality(None, 300, draw=lambda texts: bench.test[1][index], thorough=True)
    assert found["digit"] > 0.98 and found["slant"] == found["stroke"] == 1
    assert 0.3 < found["frechet"] / found["floor"] < 2  # splits differ, by luck
    assert found["kernel_low"] < 0 < found["kernel_high"]
    assert found["precision"] > 0.7 and found["recall"] > 0.7


def test_changed_trainings(monkeypatch, tmp_path):
    base, folder = tmp_path / "base", tmp_path / "other"
    run = tiny.run_all(monkeypatch, base)
    with pytest.raises(ValueError, match="make train-mnist"):
        trainings.trained(base, folder, 6)
    run.fit("all")
    settings = {"attention_levels": (False, True)}
    stage = trainings.trained(base, folder / "a", 6, network=settings, drop_condition=0.0)
    assert stage.config.drop_condition == 0 and not stage.network.down_blocks[0].attentions
    again = trainings.trained(base, folder / "a", 6, network=settings, drop_condition=0.0)
    for ours, theirs in zip(stage.network.parameters(), again.network.parameters()):
        assert np.array_equal(ours.data, theirs.data)  # the averaged ones, without a step more
    plain = trainings.trained(base, folder / "b", 6, autoencoder={"kl_weight": 0.5})
    kept, other = (training.finished(f / "autoencoder.safetensors")[1]["options"]["kl_weight"]
                   for f in (base, folder / "b"))  # fmt: skip
    assert (kept, other) == (1e-3, 0.5)
    last = plain.pipeline
    averaged = last.unet.conv_out.weight.data.copy()
    trainings.last_weights(base, last)
    assert not np.array_equal(averaged, last.unet.conv_out.weight.data)


def test_seconds_of_a_step_are_those_of_a_training(monkeypatch, tmp_path):
    run = tiny.run_all(monkeypatch, tmp_path)
    run.fit("all")
    monkeypatch.setattr(rows, "SMALL", {})
    found = rows.step_seconds(tmp_path, steps=40, turns=1)
    assert found.keys() == {"pixel", "latent"} and all(0 < s < 1 for s in found.values())


def test_captions_of_one_token():
    stage = tiny.stage("unet-frozen")
    index = np.arange(20)
    trainings.one_token(stage)
    wanted = [captions.DIGITS[label] for label in stage.train.labels[index]]
    assert stage.train.captions(index, 0, "x", 1) == wanted


def test_a_network_without_self_attention():
    network = tiny.randomise(UNet(tiny.UNET))
    before = network.count_parameters()

    class Recorder(list):
        def __call__(self, path, weights):
            self.append(path)

    trainings.without_self_attention(network)
    assert network.count_parameters() < before
    paths = Recorder()
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 4))
    network(Tensor(x), np.array([0.5]), np.zeros((1, 3, 16)), recorder=paths)
    assert paths and all(path.endswith("attn2") for path in paths)


def test_the_overview_is_of_ten_digits():
    picture = rows.overview(tiny.text_to_image())
    assert picture.width > 10 * 56 and picture.height > 3 * 56
    assert np.asarray(picture).std() > 0
