"""The model of pixels: nothing is lost on the way, and likelihoods are those of pixels."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest

from ldm_numpy import model_folder
from ldm_numpy.backend import generator
from ldm_numpy.data import mnist
from ldm_numpy.diffusion.likelihood import dequantise
from ldm_numpy.evaluation import evaluate, verdict
from ldm_numpy.models.autoencoder import PixelSpace, PixelSpaceConfig
from ldm_numpy.models.unet import UNet
from ldm_numpy.pixel_likelihood import digit_bits, histogram_bits
from ldm_numpy.tensor import Tensor
from ldm_numpy.training.pixel import pixel_moments

from . import tiny


@pytest.fixture(scope="module")
def digits():
    return tiny.digits("train").images[:40]


def test_pixel_space_is_a_permutation(rng):
    space = PixelSpace(PixelSpaceConfig(channels=2, patch_size=2, mean=0.25))
    x = rng.standard_normal((3, 4, 6, 2))
    latents, log_variance = space.encode(Tensor(x))
    assert latents.shape == (3, 2, 3, 8) and space.config.latent_channels == 8
    np.testing.assert_allclose(np.sort(latents.data.ravel()), np.sort(x.ravel()) - 0.25)
    np.testing.assert_allclose(space.decode(latents).data, x, atol=1e-12)
    assert (log_variance.data == -30).all()
    assert space.count_parameters() == 0


@pytest.mark.parametrize("mean", ["x", None, float("nan")])
def test_a_mean_that_is_none(mean):
    with pytest.raises(ValueError, match="mean must be a finite number"):
        PixelSpaceConfig(mean=mean)


@pytest.mark.parametrize("field", ["channels", "patch_size"])
def test_pixel_space_that_cannot_be(field):
    with pytest.raises(ValueError, match="start at 1"):
        PixelSpaceConfig(**{field: 0})


def test_training_sees_every_grey_level_spread_over_its_bin():
    stage = tiny.stage("pixel")
    index = np.arange(20)
    first, again, other = (stage.clean(index, step) for step in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (20, 14, 14, 4) and first.dtype == np.float32
    pixels = stage.pipeline.decode(first)  # scaled back and put in order
    inside = (pixels[..., 0] + 1) * 128 - stage.train.images[index]
    assert -1e-3 < inside.min() < 0.01 and 0.99 < inside.max() < 1.001
    assert inside.mean() == pytest.approx(0.5, abs=0.01)
    many = stage.clean(np.arange(len(stage.train)), 0)
    assert many.std() == pytest.approx(1, abs=0.03) and abs(many.mean()) < 0.03


def test_the_moments_are_those_of_the_first_2048_digits():
    digits = tiny.digits("train")
    pictures = np.resize(digits.images, (2060, 28, 28))
    pictures[2048:] = 255
    mean, deviation = pixel_moments(dataclasses.replace(digits, images=pictures))
    pixels = pictures[:2048] / 127.5 - 1
    assert mean == pytest.approx(pixels.mean(), abs=1e-6)
    assert deviation == pytest.approx(pixels.std(), abs=1e-6)


def test_a_model_of_pixels_from_training_to_pictures(tmp_path, monkeypatch):
    run = tiny.run_all(monkeypatch, tmp_path, P_mean=0.0)
    with pytest.raises(ValueError, match=r"reader\.safetensors"):
        run.fit("pixel")
    for name in ("autoencoder", "clip", "pixel"):
        run.fit(name)
    with pytest.raises(ValueError, match="no model"):
        model_folder.load(tmp_path)  # what would be the model of latents
    pipe = model_folder.load(tmp_path / "pixel")
    assert isinstance(pipe.autoencoder, PixelSpace)
    pixels = mnist.to_float(tiny.digits("train").images)
    assert pipe.config.latent_scale == pytest.approx(1 / pixels.std(), abs=1e-3)
    assert pipe.autoencoder.config.mean == pytest.approx(pixels.mean(), abs=1e-3)
    assert [p.size for p in pipe(["seven", "a thin 3"], num_inference_steps=3)] == [(28, 28)] * 2
    assert not (tmp_path / "pixel" / "autoencoder.safetensors").exists()
    stage = run.build("pixel")
    assert stage.config.P_mean == 0.0
    clip = hashlib.sha256((tmp_path / "clip.safetensors").read_bytes()).hexdigest()
    assert stage.upstream == {"clip.safetensors": clip[:16]}  # as runs of earlier versions have it


def test_encoding_loses_nothing(digits):
    pipe = tiny.pixel_model()
    pixels = mnist.to_float(digits)
    latents = pipe.encode(pixels)
    assert latents.shape == (40, 14, 14, 4)
    np.testing.assert_allclose(pipe.decode(latents), pixels, atol=1e-6)


# Likelihood --------------------------------------------------------------------------------


def test_bits_of_a_model_that_knows_nothing(digits):
    """A network that answers zero stands for white Gaussian data, whose density is known."""
    pipe = tiny.pixel_model()
    pipe.unet = UNet(tiny.PIXEL, seed=0)  # its last layer is zero
    seed, scale = 3, pipe.config.latent_scale
    digits = digits[:10]
    found = digit_bits(pipe, digits, seed, sigma_min=0.01, tolerance=1e-5)
    pixels = dequantise(digits[..., None], generator(seed, "dequantise")).reshape(10, -1)
    x = scale * (pixels - pipe.autoencoder.config.mean)
    variance = 1 + 0.01**2
    squares = (x.astype(float) ** 2).sum(axis=1) / variance
    log_p = -0.5 * (squares + 784 * math.log(math.tau * variance))
    bits = 7 - (log_p + 784 * math.log(scale)) / (784 * math.log(2))
    np.testing.assert_allclose(found, bits, atol=1e-3)


def test_bits_depend_on_the_network_and_the_seed(digits):
    pipe = tiny.pixel_model()
    pipe.unet.conv_out.weight.data *= 0.05  # a random network's ODE takes thousands of steps

    def bits(seed):
        return digit_bits(pipe, digits[:3], seed, sigma_min=0.5, tolerance=1e-2)

    first = bits(0)
    assert np.array_equal(first, bits(0)) and (first != bits(1)).all()
    pipe.unet = UNet(tiny.PIXEL, seed=0)
    assert np.abs(first - bits(0)).max() > 0.01


def test_likelihood_is_for_models_of_pixels(digits):
    with pytest.raises(ValueError, match="model of pixels"):
        digit_bits(tiny.text_to_image(), digits, 0)
    with pytest.raises(ValueError, match="model of pixels"):
        evaluate(likelihood=2)  # of the shipped model, before any work
    for number, least in ((-1, 0), (1, 2)):
        with pytest.raises(ValueError, match=f"likelihood must be a whole number >= {least}"):
            evaluate(likelihood=number)


def test_evaluate_tells_the_mean_and_its_standard_error(monkeypatch, digits):
    """Of digits drawn from all of the test set, and the same ones for both models."""
    seen = []

    def fake(pipe, pictures, seed):
        seen.append(pictures)
        return np.arange(len(pictures)) / 4

    def plain(train, pictures):
        assert np.array_equal(pictures, seen[0]) and len(train) == 700
        return np.full(len(pictures), 2.0)

    pictures, labels = mnist.load("test")
    sizes = {"test": 600, "train": 700}
    monkeypatch.setattr(
        mnist, "load", lambda split, data: (pictures[: sizes[split]], labels[: sizes[split]])
    )
    monkeypatch.setattr("ldm_numpy.evaluation.digit_bits", fake)
    monkeypatch.setattr("ldm_numpy.evaluation.histogram_bits", plain)
    monkeypatch.setattr("ldm_numpy.evaluation.draw", lambda pipe, texts, *_: np.resize(
        mnist.to_float(digits), (len(texts), 28, 28, 1)))  # fmt: skip
    found = evaluate(model_folder.SHIPPED / "pixel", per_combination=1, frechet_samples=50,
                     likelihood=9)  # fmt: skip
    assert found["bits_per_dimension"] == 1.0 and found["bits_of_histograms"] == 2.0
    assert found["bits_standard_error"] == pytest.approx(np.std(np.arange(9) / 4, ddof=1) / 3)
    assert not np.array_equal(seen[0], pictures[:9])
    assert "1.0000   standard error 0.2282; 2.0000 by" in "\n".join(verdict(found))


def test_bits_of_histograms_by_hand():
    train = np.zeros((3, 1, 2), np.uint8)
    train[0, 0, 0], train[:, 0, 1] = 7, 7
    digits = np.array([[[0, 7]], [[9, 9]]], np.uint8)
    found = histogram_bits(train, digits, uniform=256.0)
    wanted = [(-math.log2(3 / 259) - math.log2(4 / 259)) / 2, -math.log2(1 / 259)]
    assert found == pytest.approx(wanted)
