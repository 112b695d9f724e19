"""The verdict: bands, causes; and what the evaluation asks for."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest

from ldm_numpy import evaluation, model_folder
from ldm_numpy.data import captions, mnist
from ldm_numpy.diffusion.likelihood import log_likelihood
from ldm_numpy.evaluation import BANDS, Judge, combination_prompts, reconstruction_quality, verdict
from ldm_numpy.pixel_likelihood import digit_bits, histogram_bits

from . import tiny

GOOD = {
    "reader_accuracy": 0.993,
    "autoencoder_digit": 0.99,
    "autoencoder_slant": 0.98,
    "autoencoder_stroke": 0.91,
    "autoencoder_mse": 0.006,
    "clip_zero_shot": 0.975,
    "sample_ink": 1.02,
    "sample_digit": 0.995,
    "sample_slant": 0.96,
    "sample_stroke": 0.92,
    "sample_all": 0.89,
    "frechet_ratio": 3.9,
    "sample_held_out": 0.85,
    "sample_rest": 0.90,
    "clip_score": 1.1,
}


def test_a_good_model_has_nothing_out_of_band():
    lines = verdict(GOOD)
    assert len(lines) == len(BANDS) + 2
    assert not [line for line in lines if line.startswith("OUT")]


@pytest.mark.parametrize("band", BANDS, ids=lambda band: band.name)
def test_every_band_has_an_inside_and_an_outside(band):
    outside = band.low - 0.01 if np.isfinite(band.low) else band.high * 1.5
    lines = verdict(GOOD | {band.name: outside})
    (out,) = (line for line in lines if line.startswith("OUT"))
    assert band.meaning in out and len(out.split(": ", 1)[1]) > 20  # a cause in a sentence
    edge = band.low if np.isfinite(band.low) else band.high
    assert band.holds(GOOD | {band.name: edge})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sample_ink": 0.05, "sample_digit": 0.1}, "black"),
        ({"sample_ink": 4.0, "sample_digit": 0.1}, "noise"),
        ({"sample_digit": 0.12}, "condition is ignored"),
        ({"sample_digit": 0.95}, "guidance_scale"),
        ({"frechet_ratio": 9.0}, "guidance"),
        ({"sample_ink": 1.5}, "strokes"),
        ({"autoencoder_mse": 0.05}, "KL weight"),
        ({"frechet_ratio": float("nan")}, "not a number"),
    ],
)
def test_causes_are_told_from_the_other_numbers(changes, word):
    lines = [line for line in verdict(GOOD | changes) if line.startswith("OUT")]
    assert any(word in line for line in lines)


def test_held_out_combinations_are_measured_against_the_rest():
    fine = [line for line in verdict(GOOD | {"sample_held_out": 0.81}) if "held-out" in line]
    poor = [line for line in verdict(GOOD | {"sample_held_out": 0.79}) if "held-out" in line]
    assert fine[0].startswith("ok") and poor[0].startswith("OUT")


def test_prompts_cover_all_combinations_in_words_and_numerals():
    prompts, (digits, weights, slants) = combination_prompts(4)
    assert len(prompts) == 360 == len(digits) == len(weights) == len(slants)
    for prompt, *wanted in zip(prompts, digits, weights, slants):
        assert captions.parse(prompt) == tuple(wanted)
    numerals = sum(any(c.isdigit() for c in prompt) for prompt in prompts)
    assert numerals == 180
    assert len(set(zip(digits, weights, slants))) == 90
    numerals = [any(c.isdigit() for c in prompt) for prompt in combination_prompts(3)[0]]
    assert numerals == [False, True, False] * 90


def test_counts_are_checked_before_any_work():
    with pytest.raises(ValueError, match="per_combination"):
        evaluation.evaluate(per_combination=0)
    with pytest.raises(ValueError, match="frechet_samples"):
        evaluation.evaluate(frechet_samples=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight test digits of each combination, as IDX files, and their attributes."""
    pictures, labels = mnist.load("test")
    weights, slants = captions.attributes(pictures)
    triples = np.stack([labels, weights, slants], 1)
    index = np.concatenate(
        [np.flatnonzero((triples == c).all(1))[:8] for c in captions.full_prompts()]
    )
    path = tmp_path_factory.mktemp("digits")
    header = struct.pack(">IIII", 0x803, len(index), 28, 28)
    (path / "t10k-images-idx3-ubyte").write_bytes(header + pictures[index].tobytes())
    header = struct.pack(">II", 0x801, len(index))
    (path / "t10k-labels-idx1-ubyte").write_bytes(header + labels[index].tobytes())
    return path, mnist.to_float(pictures[index]), triples[index]


def draw_from(pixels, triples):
    """A model that cannot be better: it answers a prompt with a real digit that fits."""

    def draw(pipe, prompts, scale, seed):
        rng = np.random.default_rng(seed)
        chosen = []
        for prompt in prompts:
            asked = captions.parse(prompt)
            fits = [a is None or triples[:, i] == a for i, a in enumerate(asked)]
            chosen.append(rng.choice(np.flatnonzero(np.all(np.broadcast_arrays(*fits), axis=0))))
        return pixels[chosen]

    return draw


def test_a_perfect_model_is_measured_as_perfect(folder, monkeypatch):
    path, pixels, triples = folder
    monkeypatch.setattr(evaluation, "draw", draw_from(pixels, triples))
    metrics = evaluation.evaluate(None, path, "cpu", per_combination=3, frechet_samples=300)
    assert metrics["sample_slant"] == metrics["sample_stroke"] == 1.0
    assert metrics["sample_digit"] > 0.97 and metrics["sample_all"] == metrics["sample_digit"]
    assert 0.95 < metrics["sample_ink"] < 1.05
    assert metrics["frechet_ratio"] < 2.5
    assert metrics["clip_score"] > 1


def test_what_the_frechet_distances_are_between(folder, monkeypatch):
    """Samples of some digits' captions, drawn with a seed of their own, against the other digits;
    the split those very digits; the floor all of them."""
    path, pixels, triples = folder
    draw, drawn, pairs, floors = draw_from(pixels, triples), [], [], []

    def told(pipe, prompts, guidance, seed):
        drawn.append((seed, prompts))
        return draw(pipe, prompts, guidance, seed)

    monkeypatch.setattr(evaluation, "draw", told)
    monkeypatch.setattr(
        evaluation, "frechet_distance", lambda *pair: pairs.append(pair) or float(len(pairs))
    )
    monkeypatch.setattr(evaluation, "frechet_floor", lambda *given: floors.append(given) or 0.5)
    metrics = evaluation.evaluate(None, path, "cpu", seed=5, per_combination=1, frechet_samples=300)
    (first, _), (second, prompts) = drawn
    assert (first, second) == (5, 6) and len(prompts) == 300
    ((sampled, others), (chosen, again)), ((real, count, *_),) = pairs, floors
    assert len(sampled) == len(chosen) == count == 300
    np.testing.assert_array_equal(others, again)
    everything = np.concatenate([chosen, others])
    np.testing.assert_array_equal(everything[np.lexsort(everything.T)], real[np.lexsort(real.T)])
    assert len(real) == len(pixels)
    assert [metrics[f"frechet_{k}"] for k in ("distance", "split", "floor", "ratio")] == [
        1.0, 2.0, 0.5, 2.0,
    ]  # fmt: skip


def test_a_model_that_mixes_up_weight_and_slant_is_found_out(folder, monkeypatch):
    path, pixels, triples = folder
    monkeypatch.setattr(evaluation, "draw", draw_from(pixels, triples[:, [0, 2, 1]]))
    metrics = evaluation.evaluate(None, path, "cpu", per_combination=3, frechet_samples=300)
    assert metrics["sample_digit"] > 0.97
    assert metrics["sample_slant"] == metrics["sample_stroke"] == pytest.approx(1 / 3)
    assert metrics["sample_all"] < 0.4


def test_what_survives_the_autoencoder_by_hand(folder):
    """Of four digits one is read as another, and one is lost: solid ink, brighter than white."""
    _, pixels, triples = folder
    pixels, (labels, weights, slants) = pixels[:4], triples[:4].T
    decoded = np.concatenate([pixels[:3], np.full((1, 28, 28, 1), 7, np.float32)])
    pipe = SimpleNamespace(encode=lambda pictures: pictures, decode=lambda latents: decoded)
    judge = SimpleNamespace(read=lambda pictures: labels + [0, 0, 1, 0])
    found = reconstruction_quality(pipe, judge, pixels, (labels, weights, slants))
    assert found["autoencoder_digit"] == 0.75
    assert found["autoencoder_mse"] == pytest.approx(((1 - pixels[3]) ** 2).mean() / 4)
    (weight,), (slant,) = captions.attributes(np.ones((1, 28, 28, 1)))
    assert found["autoencoder_stroke"] == (3 + (weight == weights[3])) / 4
    assert found["autoencoder_slant"] == (3 + (slant == slants[3])) / 4


def test_a_judge_on_a_cpu_looks_at_a_few_pictures_at_a_time():
    judge = Judge(model_folder.SHIPPED, "cpu", threads=1)
    seen = []

    def look(pixels):
        seen.append(len(pixels))
        return pixels

    pixels = np.zeros((400, 1, 1, 1), np.float32)
    assert judge.on_images(look, pixels).shape == pixels.shape
    assert sum(seen) == 400 and max(seen) < 200


# Likelihood --------------------------------------------------------------------------------


def test_the_likelihood_starts_from_twice_the_highest_level_of_sampling(monkeypatch):
    """There less is left of the data's mean, which the prior leaves out."""
    asked = []

    def spy(*arguments, **options):
        asked.append(options)
        return log_likelihood(*arguments, **options)

    monkeypatch.setattr("ldm_numpy.pixel_likelihood.log_likelihood", spy)
    pipe = tiny.pixel_model()
    pipe.unet.conv_out.weight.data *= 0
    digit_bits(pipe, tiny.digits("test").images[:2], 0, sigma_min=1.0, tolerance=1e-2)
    assert asked[0]["sigma_max"] == 2 * pipe.config.sigma_max
    assert asked[0]["sigma_min"] == 1.0


def test_histograms_give_a_number_a_digit():
    train = np.zeros((8, 1, 2), np.uint8)
    digits = np.array([[[0, 0]], [[0, 9]], [[9, 9]]], np.uint8)
    black, never = -np.log2((8 + 1) / (8 + 256)), -np.log2(1 / (8 + 256))
    wanted = [black, (black + never) / 2, never]
    assert histogram_bits(train, digits, uniform=256.0) == pytest.approx(wanted)


def test_the_shipped_model_is_within_its_size_and_was_measured():
    for folder, limit in ((model_folder.SHIPPED, 8e6), (model_folder.SHIPPED / "pixel", 4e6)):
        files = [file for file in folder.iterdir() if file.is_file()]
        assert sum(file.stat().st_size for file in files) <= limit
        assert {"config.json", "metrics.json", "tokenizer.json"} <= {file.name for file in files}
