"""Samplers against closed forms: the ODE of a Gaussian, and the moments of a mixture."""

import math

import numpy as np
import pytest

from ldm_numpy.diffusion import (
    SAMPLERS,
    GaussianMixture,
    dpmpp_2m,
    euler,
    euler_ancestral,
    heun,
    karras_sigmas,
)

ORDERS = {euler: 1, heun: 2, dpmpp_2m: 2}
GAUSSIAN = GaussianMixture([1], [[0.5, -1.0]], [[[0.8, 0.3], [0.3, 0.4]]])
MIXTURE = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[2.0, 0.0], [-2.0, 1.0], [0.0, -3.0]],
    [[[0.4, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.5]], [[0.3, -0.2], [-0.2, 0.4]]],
)


def gaussian_flow(x, sigma, sigma_next):
    """The ODE solved for one Gaussian: distances from the mean shrink as the spread does,
    x - m ~ sqrt(l + sigma^2) along the eigenvector of each eigenvalue l."""
    mean, axes = GAUSSIAN.means[0], GAUSSIAN.axes[0]
    ratio = (GAUSSIAN.variances[0] + sigma_next**2) / (GAUSSIAN.variances[0] + sigma**2)
    return mean + ((x - mean) @ axes * np.sqrt(ratio)) @ axes.T


def even_levels(n: int) -> list[float]:
    return karras_sigmas(n + 1, 0.3, 10.0)[:-1]


def uneven_levels(n: int) -> list[float]:
    """Steps of ln(sigma) alternately 1 and 3 long: a multistep method that ignores the ratio of its
    steps is no longer second order. (On smooth levels neighbours become equal, and it would be.)"""
    lengths = np.cumsum([0] + [1, 3] * (n // 2))
    return list(10.0 * (0.3 / 10.0) ** (lengths / lengths[-1]))


def observed_order(sampler, D, x, exact, levels, n: int) -> float:
    coarse, fine = (np.linalg.norm(sampler(D, x, levels(k)) - exact) for k in (n, 2 * n))
    return math.log2(coarse / fine)


@pytest.mark.parametrize("levels", [even_levels, uneven_levels])
@pytest.mark.parametrize("sampler", ORDERS)
def test_order_on_one_gaussian(sampler, levels):
    """Halving the steps divides the error by 2^order; measured where errors are small, so that the
    next term of the expansion moves the exponent by less than 0.05."""
    x = 10 * np.random.default_rng(0).standard_normal((20, 2))
    exact = gaussian_flow(x, 10.0, 0.3)
    order = observed_order(sampler, GAUSSIAN.denoiser, x, exact, levels, 128)
    assert order == pytest.approx(ORDERS[sampler], abs=0.05)


@pytest.mark.parametrize("sampler", ORDERS)
def test_order_on_a_mixture(sampler):
    """Here D is not linear; the reference is Heun with 2048 steps, its error far below theirs."""
    x = 10 * np.random.default_rng(1).standard_normal((20, 2))
    exact = heun(MIXTURE.denoiser, x, even_levels(2048))
    order = observed_order(sampler, MIXTURE.denoiser, x, exact, even_levels, 128)
    assert order == pytest.approx(ORDERS[sampler], abs=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_point_is_reached_exactly(name):
    """Data that is one point has constant D: the ODE is a straight line, and all keep to it."""
    point = GaussianMixture([1], [[3.0, -2.0]], np.zeros((1, 2, 2)))
    rng = np.random.default_rng(2)
    x = 80 * rng.standard_normal((5, 2))
    y = SAMPLERS[name](point.denoiser, x, karras_sigmas(6), rng=rng)
    np.testing.assert_allclose(y, np.broadcast_to(point.means, y.shape), atol=1e-12)
    if name != "euler_ancestral":
        halfway = SAMPLERS[name](point.denoiser, x, [80.0, 20.0, 10.0, 5.0])
        np.testing.assert_allclose(halfway, point.means + (x - point.means) / 16, rtol=1e-12)


def test_dpmpp_2m_reads_a_straight_line_at_the_middle_of_the_step():
    """D = t = -ln(sigma), whatever x is: the second step uses it at exactly t + h / 2.

    Its order alone would not show a ratio of steps upside down: those errors add up to
    (h_last^2 - h^2) / 2 a step, of which over many steps only the two ends remain.
    """
    sigmas = [math.exp(-t) for t in (0.0, 1.0, 4.0)]
    x = dpmpp_2m(lambda x, sigma, cond: np.full_like(x, -math.log(sigma)), np.ones((1, 1)), sigmas)
    first = math.exp(-1) * 1 + (1 - math.exp(-1)) * 0
    assert x[0, 0] == pytest.approx(math.exp(-3) * first + (1 - math.exp(-3)) * 2.5, rel=1e-12)


STEPS = {"euler": 300, "heun": 60, "dpmpp_2m": 60, "euler_ancestral": 400}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_mixtures_weights_means_and_covariances(name):
    """10,000 samples, started from the noised mixture itself and sorted by the nearest component.

    With n samples in a component, the standard errors are sqrt(w (1 - w) / 10,000) for its weight,
    sqrt(S_ii / n) for its mean and sqrt((S_ii S_jj + S_ij^2) / n) for its covariance. Nothing may
    be off by more than 4.5 of them: for the 18 numbers here, that happens by chance once in 8000;
    and there are so many steps that their own error is below one. In figures, for the smallest
    component: 0.018 of its weight 0.2, 0.1 of a standard deviation, 14 % of a variance.
    """
    rng, n, sigma = np.random.default_rng(3), 10_000, 20.0
    x = MIXTURE.sample(n, rng) + sigma * rng.standard_normal((n, 2))
    y = SAMPLERS[name](MIXTURE.denoiser, x, karras_sigmas(STEPS[name], 0.002, sigma), rng=rng)

    offsets = y[:, None, :] - MIXTURE.means  # (n, K, 2)
    distance = np.einsum("nki,kij,nkj->nk", offsets, np.linalg.inv(MIXTURE.covariances), offsets)
    component = distance.argmin(axis=1)
    for k in range(3):
        members, w, S = y[component == k], MIXTURE.weights[k], MIXTURE.covariances[k]
        count, variances = len(members), np.diag(S)
        errors = {
            "weight": (count / n - w) / math.sqrt(w * (1 - w) / n),
            "mean": (members.mean(0) - MIXTURE.means[k]) / np.sqrt(variances / count),
            "covariance": (np.cov(members.T) - S)
            / np.sqrt((np.outer(variances, variances) + S**2) / count),
        }
        for what, error in errors.items():
            assert np.all(np.abs(error) < 4.5), f"{what} of component {k}: {error} standard errors"


def test_ancestral_steps_keep_the_variance_of_their_level():
    """Data at one point, so that x is noise alone: after every step its variance is sigma^2.

    4000 numbers have the relative standard error sqrt(2 / 4000); 4.5 of them is 10 %. A standard
    deviation in place of a variance, or a root forgotten, is off by more.
    """
    rng, n = np.random.default_rng(4), 4000
    point = GaussianMixture([1], [[0.0]], np.zeros((1, 1, 1)))
    levels = [10.0, 9.0, 6.0, 2.0, 1.5, 0.1]
    ratios = []

    def look(step, sigma, x):
        ratios.append(x.var() / sigma**2)

    x = levels[0] * rng.standard_normal((n, 1))
    euler_ancestral(point.denoiser, x, levels, rng=rng, callback=look)
    np.testing.assert_allclose(ratios, 1, atol=4.5 * math.sqrt(2 / n))


def test_ancestral_step_is_ddpms_posterior():
    """q(x_next | x, x0) from Gaussian algebra: x_next is x0 plus noise of sigma_next^2, x is x_next
    plus noise of sigma^2 - sigma_next^2; precisions add."""
    sigma, sigma_next, x, x0 = 3.0, 2.0, 5.0, 1.0
    precision = 1 / sigma_next**2 + 1 / (sigma**2 - sigma_next**2)
    mean = (x0 / sigma_next**2 + x / (sigma**2 - sigma_next**2)) / precision

    noise = np.random.default_rng(5).standard_normal((4, 1))
    y = euler_ancestral(
        lambda x, sigma, cond: np.full_like(x, x0),
        np.full((4, 1), x),
        [sigma, sigma_next],
        rng=np.random.default_rng(5),
    )
    np.testing.assert_allclose(y, mean + noise / math.sqrt(precision), rtol=1e-12)


def test_ancestral_noise_comes_from_the_generator_alone():
    x, levels = np.ones((3, 2)), karras_sigmas(5)

    def run(seed):
        return euler_ancestral(MIXTURE.denoiser, x, levels, rng=np.random.default_rng(seed))

    np.testing.assert_array_equal(run(0), run(0))
    assert np.all(run(0) != run(1))
    with pytest.raises(ValueError, match="generator"):
        euler_ancestral(MIXTURE.denoiser, x, levels)


@pytest.mark.parametrize(
    ("name", "evaluations"), [("euler", 5), ("heun", 9), ("dpmpp_2m", 5), ("euler_ancestral", 5)]
)
def test_calls_and_callbacks(name, evaluations):
    """D is asked at the levels, as Python floats, and given cond; the callback sees the level that
    x has; x is not written to; float32 stays float32."""
    asked, reported = [], []

    def D(x, sigma, cond):
        assert type(sigma) is float and cond == "seven" and x.dtype == np.float32
        asked.append(sigma)
        return MIXTURE.denoiser(x, sigma)

    def callback(step, sigma, x):
        assert x.dtype == np.float32
        reported.append((step, sigma, x.copy()))

    levels = np.array(karras_sigmas(5))  # an array of float64 must not raise the precision of x
    x = np.full((3, 2), 80, dtype=np.float32)
    rng = np.random.default_rng(6)
    y = SAMPLERS[name](D, x, levels, "seven", rng=rng, callback=callback)
    assert y.dtype == np.float32 and np.all(x == 80)
    assert len(asked) == evaluations and set(asked) == set(levels[:-1])
    assert [step for step, *_ in reported] == [0, 1, 2, 3, 4]
    assert [sigma for _, sigma, _ in reported] == list(levels[1:])
    np.testing.assert_array_equal(reported[-1][2], y)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_to_zero_is_the_denoiser(name):
    x = np.random.default_rng(7).standard_normal((3, 2))
    y = SAMPLERS[name](MIXTURE.denoiser, x, [2.0, 0.0], rng=np.random.default_rng(8))
    np.testing.assert_allclose(y, MIXTURE.denoiser(x, 2.0), rtol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "levels",
    [[], [1], [1, 2], [2, 2], [1, -1], [2, 0, 0], [math.nan, 0], [math.inf, 1]],
)
def test_levels_that_do_not_fall_are_refused(name, levels):
    with pytest.raises(ValueError, match="levels"):
        SAMPLERS[name](MIXTURE.denoiser, np.zeros((1, 2)), levels, rng=np.random.default_rng(0))


def test_karras_levels():
    """Ends, count and curve: sigma^(1/rho) falls by equal steps."""
    levels = karras_sigmas(10, 0.01, 50.0, rho=5.0)
    assert len(levels) == 11 and levels[-1] == 0 and all(type(s) is float for s in levels)
    assert (levels[0], levels[-2]) == (pytest.approx(50), pytest.approx(0.01))
    np.testing.assert_allclose(np.diff(np.array(levels[:-1]) ** (1 / 5), n=2), 0, atol=1e-12)
    assert karras_sigmas(1, 0.01, 50.0) == [pytest.approx(50), 0.0]
    # Computed by hand for rho = 7: the middle of three is ((80^(1/7) + 0.002^(1/7)) / 2)^7.
    assert karras_sigmas(3)[1] == pytest.approx(2.5152189, rel=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        (0,),
        (-1,),
        (5, 0, 1),
        (5, -1, 1),
        (5, 1, 1),
        (5, 2, 1),
        (5, 0.1, math.inf),
        (5, math.nan, 1),
        (5, 0.1, 1, 0),
    ],
)
def test_impossible_levels_are_refused(arguments):
    with pytest.raises(ValueError, match=r"steps|sigma_min|rho"):
        karras_sigmas(*arguments)
