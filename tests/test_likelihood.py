"""Densities by the ODE against those of mixtures, which are known."""

import math

import numpy as np
import pytest

from ldm_numpy.diffusion import GaussianMixture, bits_per_dimension, dequantise, log_likelihood
from ldm_numpy.diffusion.likelihood import estimated_trace, exact_trace

ONE = GaussianMixture([0.7, 0.3], [[1.0], [-2.0]], [[[0.3]], [[0.1]]])
TWO = GaussianMixture(
    [0.6, 0.4], [[2.0, 0.0], [-1.0, 1.0]], [[[0.4, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.5]]]
)
FINE = {"rtol": 1e-7, "atol": 1e-7, "sigma_max": 2e4}


@pytest.mark.parametrize("mixture", [ONE, TWO])
@pytest.mark.parametrize("sigma_min", [0.002, 0.5])
def test_exact_log_likelihood(mixture, sigma_min):
    """To 1e-3, in the middle and in the tails. (The prior's error is |m| / sigma_max.)"""
    rng = np.random.default_rng(0)
    x = mixture.sample(30, rng)
    x[:5] *= 2
    found = log_likelihood(mixture.denoiser, x, sigma_min=sigma_min, **FINE)
    np.testing.assert_allclose(found, mixture.log_density(x, sigma_min), atol=1e-3)


def test_a_condition():
    x, cond = TWO.sample(10, np.random.default_rng(1)), np.array([0.0, 1.0])
    found = log_likelihood(TWO.denoiser, x, cond, sigma_min=0.1, **FINE)
    np.testing.assert_allclose(found, TWO.log_density(x, 0.1, cond), atol=1e-3)
    assert np.abs(found - TWO.log_density(x, 0.1)).max() > 0.5


def test_traces():
    """tr J by differences; the estimate's mean over all 8 signs of three dimensions is exact."""
    rng = np.random.default_rng(2)
    root = rng.standard_normal((2, 3, 3))
    mixture = GaussianMixture([1, 2], rng.standard_normal((2, 3)), root @ root.swapaxes(1, 2))
    x, h = rng.standard_normal((4, 3)), 1e-5
    value, trace = exact_trace(mixture.denoiser, x, 0.8)
    np.testing.assert_array_equal(value, mixture.denoiser(x, 0.8))
    steps = h * np.eye(3)
    expected = sum(
        (mixture.denoiser(x + e, 0.8) - mixture.denoiser(x - e, 0.8))[:, i] / (2 * h)
        for i, e in enumerate(steps)
    )
    np.testing.assert_allclose(trace, expected, rtol=1e-7)
    signs = [np.array([a, b, c], float) for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)]
    estimates = [
        estimated_trace(mixture.denoiser, x, 0.8, None, np.broadcast_to(v, x.shape).copy())[1]
        for v in signs
    ]
    np.testing.assert_allclose(np.mean(estimates, axis=0), trace, rtol=1e-10)
    assert np.std(estimates, axis=0).min() > 1e-3


def test_hutchinson_is_right_on_the_average():
    """In 16 dimensions: the mean over 100 draws of signs within 3 standard errors, at each of four
    points; the exact one is right there too."""
    rng, d = np.random.default_rng(3), 16
    roots = 0.5 * rng.standard_normal((2, d, d)) / 4
    covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(d)
    mixture = GaussianMixture([0.5, 0.5], rng.standard_normal((2, d)), covariances)
    x, draws = mixture.sample(4, rng), 100
    options = {"sigma_min": 0.05, "sigma_max": 5e3, "rtol": 1e-5, "atol": 1e-5}
    expected = mixture.log_density(x, 0.05)
    many = np.tile(x, (draws, 1))
    found = log_likelihood(mixture.denoiser, many, rng=rng, **options).reshape(draws, 4)
    error = found.std(axis=0, ddof=1) / math.sqrt(draws)
    assert np.all(error > 0.001) and np.all(error < 0.5)
    assert np.all(np.abs(found.mean(axis=0) - expected) < 3 * error)
    exact = log_likelihood(mixture.denoiser, x, sigma_min=0.05, **FINE)
    np.testing.assert_allclose(exact, expected, atol=1e-3)


def test_images_and_float32():
    """Samples of any shape, on the ODE in float32; white data, whose density is plain."""
    rng, shape = np.random.default_rng(4), (3, 4, 2, 1)
    x = rng.standard_normal(shape).astype(np.float32)

    def D(x, sigma, cond=None):
        assert x.shape == shape and x.dtype == np.float32
        return x * np.float32(1 / (1 + sigma**2))

    variance = 1 + 0.002**2
    expected = -0.5 * (x.reshape(3, -1) ** 2 / variance + math.log(2 * math.pi * variance)).sum(1)
    for rng in (None, np.random.default_rng(0)):  # J is a multiple of 1: signs change nothing
        found = log_likelihood(D, x, rng=rng)
        assert found.shape == (3,) and found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_dequantised_pixels():
    rng, pixels = np.random.default_rng(5), np.array([[0, 1, 128, 255]] * 1000)
    x = dequantise(pixels, rng)
    assert x.dtype == np.float32 and x.min() >= -1 and x.max() < 1
    np.testing.assert_array_equal(np.floor((x.astype(float) + 1) * 128), pixels)
    assert x[:, 1].std() == pytest.approx(1 / 128 / math.sqrt(12), rel=0.1)


def test_bits_per_dimension():
    """White noise of 256 values: 8 bits. A fair choice of two neighbours: 1 bit, by its density."""
    d = 10
    assert bits_per_dimension(np.array([-d * math.log(2)]), d) == pytest.approx(8)
    assert bits_per_dimension(np.array([d * math.log(64)]), d) == pytest.approx(1)


def test_errors():
    x = np.zeros((2, 2))
    for levels in ({"sigma_min": 0}, {"sigma_min": 2, "sigma_max": 1}, {"sigma_max": math.inf}):
        with pytest.raises(ValueError, match=r"0 < sigma_min < sigma_max|sigma_max must be"):
            log_likelihood(TWO.denoiser, x, **levels)
    wrong = {"rtol": (0, math.nan, 100, None), "atol": (-1, 0, math.nan), "sigma_data": (-5, 0)}
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        with pytest.raises(ValueError, match=f"{name} must be"):
            log_likelihood(TWO.denoiser, x, **{name: value})


def test_the_prior_at_a_low_level_holds_the_data_too():
    """White data of deviation 2, of which much is left beside noise of 3."""
    data = GaussianMixture([1], [[0.0, 0.0]], [4 * np.eye(2)])
    x = data.sample(20, np.random.default_rng(0))
    options = {"sigma_min": 0.01, "sigma_max": 3.0, "sigma_data": 2.0, "rtol": 1e-8, "atol": 1e-8}
    found = log_likelihood(data.denoiser, x, **options)
    np.testing.assert_allclose(found, data.log_density(x, 0.01), atol=1e-5)


def test_the_brightest_value_stays_below_one():
    class Highest:
        def random(self, shape):
            return np.full(shape, np.nextafter(1.0, 0))

    assert dequantise(np.array([255]), Highest())[0] < 1


def test_pixels_and_dimensions_that_are_none():
    rng = np.random.default_rng(0)
    for pixels in (np.array([-3, 4]), np.array([0, 256])):
        with pytest.raises(ValueError, match=r"pixels must be in 0 \.\.\. 255"):
            dequantise(pixels, rng)
    for dimensions in (0, -1, 2.5):
        with pytest.raises(ValueError, match="dimensions must be a whole number >= 1"):
            bits_per_dimension(np.zeros(1), dimensions)
