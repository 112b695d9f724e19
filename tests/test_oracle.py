"""The Gaussian mixture against itself: every formula checked by a route that does not share it."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from ldm_numpy.diffusion import GaussianMixture, score
from ldm_numpy.gradcheck import check_gradients
from ldm_numpy.tensor import Tensor

SIGMAS = [0.05, 0.7, 20.0]


def mixture() -> GaussianMixture:
    """Three components in three dimensions, overlapping, correlated; one of them a flat disc."""
    a = np.random.default_rng(0).standard_normal((3, 3, 3))
    a[2, :, 0] = 0  # rank 2
    return GaussianMixture([5, 3, 2], [[1, 0, 0], [-1, 1, 0], [0, -1, 2]], a @ a.swapaxes(1, 2))


def points(n: int = 7) -> np.ndarray:
    return 2 * np.random.default_rng(1).standard_normal((n, 3))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_log_density_is_scipys(sigma):
    m, x = mixture(), points()
    noised = m.covariances + sigma**2 * np.eye(3)
    parts = zip(m.weights, m.means, noised, strict=True)
    density = sum(w * multivariate_normal(mean, cov).pdf(x) for w, mean, cov in parts)
    np.testing.assert_allclose(m.log_density(x, sigma), np.log(density), rtol=1e-9)


@pytest.mark.parametrize("cond", [None, np.array([0.0, 1.0, 1.0])])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_gradient_of_the_log_density(sigma, cond):
    m, x, h = mixture(), points(), 1e-5
    for i, direction in enumerate(np.eye(3)):
        up, down = (m.log_density(x + s * h * direction, sigma, cond) for s in (1, -1))
        expected = (up - down) / (2 * h)
        # Central differences: h^2 times the third derivative, and rounding / h.
        np.testing.assert_allclose(m.score(x, sigma, cond)[:, i], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_denoiser_and_score_obey_tweedie(sigma):
    m, x = mixture(), points()
    np.testing.assert_allclose(score(m.denoiser, x, sigma), m.score(x, sigma), atol=1e-9, rtol=1e-9)


def test_denoiser_is_the_mean_of_what_could_have_been():
    """E[x0 | x] by importance sampling: clean samples, weighted by how well they explain x."""
    m, sigma = mixture(), 1.5
    x = np.array([[0.5, 0.2, -0.3]])
    x0 = m.sample(200_000, np.random.default_rng(2))
    weight = np.exp(-np.sum((x - x0) ** 2, axis=1) / (2 * sigma**2))
    weight /= weight.sum()
    estimate = weight @ x0
    # Standard error of a weighted mean, 5 of them.
    error = np.sqrt(weight**2 @ (x0 - estimate) ** 2)
    assert np.all(np.abs(m.denoiser(x, sigma)[0] - estimate) < 5 * error)
    assert error.max() < 0.01


def test_every_sample_may_have_its_own_level_and_condition():
    m, x = mixture(), points(3)
    cond = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]])
    for f in (m.denoiser, m.score, m.log_density):
        together = f(x, np.array(SIGMAS), cond)
        alone = [f(x[i : i + 1], SIGMAS[i], cond[i])[0] for i in range(3)]
        np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_condition_selects_components():
    m, x = mixture(), points()
    one = GaussianMixture([1], m.means[1:2], m.covariances[1:2])
    chosen = m.denoiser(x, 0.3, np.array([0, 4, 0]))
    np.testing.assert_allclose(chosen, one.denoiser(x, 0.3), rtol=1e-12)
    np.testing.assert_allclose(m.denoiser(x, 0.3, m.weights), m.denoiser(x, 0.3), rtol=1e-12)
    # A component excluded stays excluded, however much nearer it is.
    far = m.means[:1] + np.array([0, 0, 1e3])
    assert np.all(np.isfinite(m.score(far, 0.01, np.array([0, 1, 0]))))
    points_at = GaussianMixture([1, 1], [[0.0], [1.0]], np.zeros((2, 1, 1)))
    assert points_at.denoiser(np.array([[0.0]]), 1e-3, np.array([0, 1]))[0, 0] == 1


def test_far_away_and_almost_clean_nothing_overflows():
    m, x = mixture(), 1e4 * points()
    for sigma in (1e-3, 1e3):
        results = m.log_density(x, sigma), m.score(x, sigma), m.denoiser(x, sigma)
        assert all(np.all(np.isfinite(r)) for r in results)


def test_samples_have_the_mixtures_moments():
    m, n = mixture(), 100_000
    x = m.sample(n, np.random.default_rng(3))
    mean = m.weights @ m.means
    spread = m.means - mean
    covariance = np.einsum("k,kij->ij", m.weights, m.covariances)
    covariance += np.einsum("k,ki,kj->ij", m.weights, spread, spread)
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    # 5 standard errors, both measured on the samples themselves.
    assert np.all(np.abs(centred.mean(0)) < 5 * x.std(0) / np.sqrt(n))
    assert np.all(np.abs(products.mean(0) - covariance) < 5 * products.std(0) / np.sqrt(n))


@pytest.mark.parametrize("sigma", [0.3, np.array([0.3, 1.0, 3.0, 10.0])])
def test_denoiser_is_differentiable(sigma):
    m = mixture()
    check_gradients(lambda x: m.denoiser(x, sigma), [points(4)])
    check_gradients(lambda x: m.score(x, sigma), [points(4)])


def test_dtype_and_kind_follow_x():
    m, x = mixture(), points().astype(np.float32)
    for y in (m.denoiser(x, 0.5), m.score(x, 0.5), m.log_density(x, 0.5)):
        assert isinstance(y, np.ndarray) and y.dtype == np.float32
    assert isinstance(m.denoiser(Tensor(x), 0.5), Tensor)
    np.testing.assert_allclose(m.denoiser(x, 0.5), m.denoiser(points(), 0.5), atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([1, -1], np.zeros((2, 1)), np.ones((2, 1, 1)), "negative"),
        ([0, 0], np.zeros((2, 1)), np.ones((2, 1, 1)), "zero"),
        ([1], np.zeros((2, 1)), np.ones((2, 1, 1)), "2 components"),
        ([[1, 1]], np.zeros((2, 1)), np.ones((2, 1, 1)), "one weight a component"),
        ([1], np.zeros((1, 2)), np.ones((1, 2)), "do not fit"),
        ([1], np.zeros((1, 2)), [[[1, 2], [2, 1]]], "negative eigenvalue"),
        ([1], np.zeros((1, 2)), [[[1, 1], [0, 1]]], "symmetric"),
        ([1], [[np.inf]], [[[1]]], "finite"),
        ([1], [[0]], [[[np.nan]]], "must be finite"),
    ],
)
def test_impossible_mixtures_are_refused(weights, means, covariances, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(weights, means, covariances)


def test_impossible_arguments_are_refused():
    m, x = mixture(), points()
    with pytest.raises(ValueError, match="positive"):
        m.denoiser(x, 0.0)
    with pytest.raises(ValueError, match="wants"):
        m.denoiser(x[:, :2], 1.0)
    with pytest.raises(ValueError, match="3 components"):
        m.denoiser(x, 1.0, np.ones(2))
