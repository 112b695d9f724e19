"""Samplers against closed forms: the ODE of a Gaussian, and the moments of a mixture."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from ldm_numpy.diffusion import PROCESSES, SAMPLERS, GaussianMixture, karras_sigmas, ode
from ldm_numpy.diffusion.process import Process
from ldm_numpy.diffusion.samplers import (
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    edm_stochastic,
    euler,
    euler_maruyama,
    heun,
    invert,
    predictor_corrector,
    probability_flow,
)

ORDERS = {euler: 1, ddim: 1, heun: 2, dpmpp_2m: 2}
RANDOM = ("ddpm", "dpmpp_2m_sde", "edm_stochastic", "euler_maruyama", "predictor_corrector")
EXACT = {"edm_stochastic": {"noise_scale": 1.0}}  # without the correction for a D with errors
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


def observed_order(sampler, D, x, exact, levels) -> float:
    """Slope of ln(error) against ln(steps), fitted from 64 steps up, where errors are small enough
    for the next term of their expansion to matter little."""
    steps = (64, 128, 256, 512)
    errors = [np.linalg.norm(sampler(D, x, levels(n)) - exact) for n in steps]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("levels", [even_levels, uneven_levels])
@pytest.mark.parametrize("sampler", ORDERS)
def test_order_on_one_gaussian(sampler, levels):
    x = 10 * np.random.default_rng(0).standard_normal((20, 2))
    exact = gaussian_flow(x, 10.0, 0.3)
    order = observed_order(sampler, GAUSSIAN.denoiser, x, exact, levels)
    assert order == pytest.approx(ORDERS[sampler], abs=0.1)


@pytest.mark.parametrize("sampler", ORDERS)
def test_order_on_a_mixture(sampler):
    """Here D is not linear; the reference is the ODE solved to 1e-11."""
    x = 10 * np.random.default_rng(1).standard_normal((20, 2))
    exact = probability_flow(MIXTURE.denoiser, x, [10.0, 0.3], rtol=1e-11, atol=1e-11)
    order = observed_order(sampler, MIXTURE.denoiser, x, exact, even_levels)
    assert order == pytest.approx(ORDERS[sampler], abs=0.15)


def test_the_solver_keeps_its_tolerance():
    x = 10 * np.random.default_rng(0).standard_normal((20, 2))
    exact = gaussian_flow(x, 10.0, 0.3)
    errors = [
        np.abs(probability_flow(GAUSSIAN.denoiser, x, [10.0, 0.3], rtol=r, atol=r) - exact).max()
        for r in (1e-3, 1e-5, 1e-7, 1e-9)
    ]
    for tolerance, error in zip((1e-3, 1e-5, 1e-7, 1e-9), errors):
        assert error < 50 * tolerance
    assert errors[0] > 10 * errors[1] > 100 * errors[2] > 1000 * errors[3]


class UnitNoise:
    """In place of a generator: the k-th draw is 1 in row k + 2, and 0 elsewhere."""

    draws = 0

    def standard_normal(self, shape):
        z = np.zeros(shape)
        z[2 + self.draws] = 1
        self.draws += 1
        return z


def transition(sampler, D, levels, **options):
    """(a, variance, b) of a sampler on data for which D is linear, and so is all that it does:

        y = a x + b + sum_k c_k z_k,     variance = sum_k c_k^2

    Rows are independent: row 0 starts at 0 and sees no noise, which gives b, row 1 starts at 1, and
    each of the others sees the noise of one step. So mean and covariance are propagated exactly.
    """
    x = np.zeros((len(levels) + 1, 1))
    x[1] = 1
    y = sampler(D, x, levels, rng=UnitNoise(), **options)[:, 0]
    return y[1] - y[0], ((y[2:] - y[0]) ** 2).sum(), y[0]


WEAK = {
    "ddpm": (ddpm, {}, 1),
    "dpmpp_2m_sde": (dpmpp_2m_sde, {}, 2),
    **{f"em-{p}": (euler_maruyama, {"process": kind()}, 1) for p, kind in PROCESSES.items()},
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_order_on_one_gaussian(name):
    """Of the reverse SDE: x_low given x_high is Gaussian, with the share v_low / v_high of the
    distance to the mean, and the variance v_low (1 - v_low / v_high), v = 2 + sigma^2."""
    sampler, options, order = WEAK[name]
    one, high, low = GaussianMixture([1], [[0.7]], [[[2.0]]]), 10.0, 0.3
    keep = (2 + low**2) / (2 + high**2)
    expected = np.array([keep, (2 + low**2) * (1 - keep), 0.7 * (1 - keep)])
    steps, errors = (64, 128, 256, 512), []
    for n in steps:
        levels = karras_sigmas(n + 1, low, high)[:-1]
        found = transition(sampler, one.denoiser, levels, **options)
        errors.append(np.abs(np.subtract(found, expected)))
    exact = 0
    for error in np.transpose(errors):
        if error.max() < 1e-13:  # a posterior's mean is, where D is linear
            exact += 1
        else:
            assert -np.polyfit(np.log(steps), np.log(error), 1)[0] == pytest.approx(order, abs=0.2)
    assert exact == (0 if sampler is euler_maruyama else 2)


def test_ddim_between_the_ode_and_ddpm():
    """Any eta keeps the densities: weak order 1, on the variance of x_low over both draws."""
    one, high, low = GaussianMixture([1], [[0.7]], [[[2.0]]]), 10.0, 0.3
    for eta in (0.3, 0.7):
        errors = []
        for n in (64, 128, 256, 512):
            levels = karras_sigmas(n + 1, low, high)[:-1]
            a, variance, b = transition(ddim, one.denoiser, levels, eta=eta)
            assert a * 0.7 + b == pytest.approx(0.7)
            errors.append(abs(a * a * (2 + high**2) + variance - (2 + low**2)))
        orders = np.log2(errors[:-1]) - np.log2(errors[1:])
        np.testing.assert_allclose(orders, 1, atol=0.2)
    x, levels = 5 * np.random.default_rng(2).standard_normal((4, 2)), karras_sigmas(8)
    D = MIXTURE.denoiser
    np.testing.assert_allclose(ddim(D, x, levels), euler(D, x, levels), rtol=1e-12)
    drawn = [f(D, x, levels, rng=np.random.default_rng(0), **o) for f, o in
             ((ddim, {"eta": 1}), (ddpm, {}))]  # fmt: skip
    np.testing.assert_array_equal(*drawn)


def scripted(*shape, draws: int):
    """Noise known beforehand: (the arrays, a generator that draws them one after another)."""
    noise = np.random.default_rng(30).standard_normal((draws, *shape))
    queue = iter(noise)
    return noise, SimpleNamespace(standard_normal=lambda shape: next(queue))


@pytest.mark.parametrize("levels", [[200.0, 1.0, 0.0], [1.0, 0.001, 0.0005], [0.001, 0.0]])
def test_euler_maruyamas_own_process_reaches_all_levels(levels):
    """VE's step is sigma's alone: x + 2 sigma^2 ln(sigma / sigma_next) score + noise."""
    x, (z, rng) = np.array([[3.0, -1.0]]), scripted(1, 2, draws=2)
    found, expected = euler_maruyama(MIXTURE.denoiser, x, levels, rng=rng), x
    for noise, sigma, sigma_next in zip(z, levels, levels[1:]):
        if sigma_next == 0:
            expected = MIXTURE.denoiser(expected, sigma)
        else:
            gone = 2 * sigma**2 * math.log(sigma / sigma_next)
            expected = expected + gone * MIXTURE.score(expected, sigma) + math.sqrt(gone) * noise
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_one_step_of_ddim_by_hand():
    """Eq. 12 and 16 of Song et al. 2020 for x / sqrt(alpha_bar), eta between its ends."""
    x, (z, rng) = np.array([[3.0, -1.0], [0.5, 9.0]]), scripted(2, 2, draws=1)
    found = ddim(MIXTURE.denoiser, x, [2.0, 1.5], rng=rng, eta=0.6)
    up = 0.6 * 1.5 * math.sqrt(1 - (1.5 / 2) ** 2)
    clean = MIXTURE.denoiser(x, 2.0)
    expected = clean + math.sqrt(1.5**2 - up**2) * (x - clean) / 2 + up * z[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_uneven_steps_of_dpmpp_2m_sde_by_hand():
    """D at the middle of the second step, in ln(sigma), by the line through it and the last."""
    x, (z, rng) = np.array([[3.0, -1.0], [0.5, 9.0]]), scripted(2, 2, draws=2)
    levels = [4.0, 2.0, 0.2]
    first = MIXTURE.denoiser(x, 4.0)
    at_2 = x / 4 + 0.75 * first + 2 * math.sqrt(0.75) * z[0]
    second = MIXTURE.denoiser(at_2, 2.0)
    middle = second + (second - first) * math.log(10) / (2 * math.log(2))
    expected = at_2 / 100 + 0.99 * middle + 0.2 * math.sqrt(0.99) * z[1]
    found = dpmpp_2m_sde(MIXTURE.denoiser, x, levels, rng=rng)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_predictor_and_two_correctors_by_hand():
    """Algorithms 1, 2 and 4 of Song et al. 2021; norms are means over the rows."""
    x, (z, rng) = np.array([[3.0, -1.0], [0.5, 9.0], [40.0, 2.0]]), scripted(3, 2, draws=3)
    found = predictor_corrector(MIXTURE.denoiser, x, [2.0, 1.5], rng=rng, snr=0.3, corrections=2)
    gone = 2.0**2 - 1.5**2
    expected = x + gone * MIXTURE.score(x, 2.0) + math.sqrt(gone) * z[0]
    for noise in z[1:]:
        slope = MIXTURE.score(expected, 1.5)
        size, steepness = (np.linalg.norm(a, axis=1).mean() for a in (noise, slope))
        step = 2 * (0.3 * size / steepness) ** 2
        expected = expected + step * slope + math.sqrt(2 * step) * noise
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_bias_of_langevins_steps():
    """Predictor and corrector on one Gaussian: the variance is too large by a few percent at a
    signal-to-noise ratio of 0.16, less at 0.05; 100,000 numbers have a standard error of 0.45%."""
    n, rng = 100_000, np.random.default_rng(4)
    one = GaussianMixture([1], [[0.0]], [[[1.0]]])
    found = {}
    for snr in (0.05, 0.16):
        x = math.sqrt(101) * rng.standard_normal((n, 1))
        levels = karras_sigmas(301, 0.01, 10.0)[:-1]
        found[snr] = predictor_corrector(one.denoiser, x, levels, rng=rng, snr=snr).var() - 1
    assert 0.01 < found[0.16] < 0.06
    assert abs(found[0.05]) < found[0.16] / 2


def test_churn_adds_noise_and_takes_it_away_again():
    """Without churn it is Heun's method; with it, each step that churns raises its level first."""
    asked, x = [], np.random.default_rng(5).standard_normal((3, 2))

    def D(x, sigma, cond):
        asked.append(sigma)
        return MIXTURE.denoiser(x, sigma)

    levels, rng = [60.0, 20.0, 1.0, 0.04, 0.0], np.random.default_rng(6)
    y = edm_stochastic(D, x, levels, rng=rng, churn=0)
    np.testing.assert_array_equal(y, heun(MIXTURE.denoiser, x, levels))
    asked.clear()
    edm_stochastic(D, x, levels, rng=rng, churn=1.0)
    expected = [60, 20, 20 * 1.25, 1, 1 * 1.25, 0.04, 0.04]  # only within 0.05 ... 50
    assert asked == pytest.approx(expected)
    asked.clear()
    edm_stochastic(D, x, [20.0, 0.0], rng=rng, churn=100)
    assert asked == pytest.approx([20 * math.sqrt(2)])  # at most


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_point_is_reached_exactly(name):
    """Data that is one point has constant D: the ODE is a straight line, and all keep to it."""
    point = GaussianMixture([1], [[3.0, -2.0]], np.zeros((1, 2, 2)))
    rng = np.random.default_rng(2)
    x = 80 * rng.standard_normal((5, 2))
    y = SAMPLERS[name](point.denoiser, x, karras_sigmas(6), rng=rng, **EXACT.get(name, {}))
    np.testing.assert_allclose(y, np.broadcast_to(point.means, y.shape), atol=1e-12)
    if name not in RANDOM:
        halfway = SAMPLERS[name](point.denoiser, x, [80.0, 20.0, 10.0, 5.0])
        rtol = 1e-3 if name == "probability_flow" else 1e-12
        np.testing.assert_allclose(halfway, point.means + (x - point.means) / 16, rtol=rtol)


def test_dpmpp_2m_reads_a_straight_line_at_the_middle_of_the_step():
    """D = t = -ln(sigma), whatever x is: the second step uses it at exactly t + h / 2.

    Its order alone would not show a ratio of steps upside down: those errors add up to
    (h_last^2 - h^2) / 2 a step, of which over many steps only the two ends remain.
    """
    sigmas = [math.exp(-t) for t in (0.0, 1.0, 4.0)]
    x = dpmpp_2m(lambda x, sigma, cond: np.full_like(x, -math.log(sigma)), np.ones((1, 1)), sigmas)
    first = math.exp(-1) * 1 + (1 - math.exp(-1)) * 0
    assert x[0, 0] == pytest.approx(math.exp(-3) * first + (1 - math.exp(-3)) * 2.5, rel=1e-12)


def mixture(d: int) -> GaussianMixture:
    """Two or three components that hardly overlap, and no covariance along the axes."""
    if d == 1:
        return GaussianMixture([0.7, 0.3], [[2.0], [-2.0]], [[[0.2]], [[0.4]]])
    if d == 2:
        return MIXTURE
    rng = np.random.default_rng(d)
    roots = 0.3 * rng.standard_normal((2, d, d)) / math.sqrt(d)
    covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(d)
    return GaussianMixture([0.6, 0.4], 0.8 * np.sign(rng.standard_normal((2, d))), covariances)


# Enough for their own errors to be below one standard error.
STEPS = {
    "euler": 300, "heun": 60, "dpmpp_2m": 60, "probability_flow": 2, "ddim": 300, "ddpm": 500,
    "dpmpp_2m_sde": 100, "edm_stochastic": 100, "euler_maruyama": 500, "predictor_corrector": 300,
}  # fmt: skip
OPTIONS = EXACT | {"ddim": {"eta": 0.5}, "predictor_corrector": {"snr": 0.04}}


@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_mixtures_weights_means_and_covariances(name, d):
    """10,000 samples, started from the noised mixture itself and sorted by the nearest component.

    With n samples in a component, the standard errors are sqrt(w (1 - w) / 10,000) for its weight,
    sqrt(S_ii / n) for its mean and sqrt((S_ii S_jj + S_ij^2) / n) for its covariance. Nothing may
    be off by more than 4.5 of them (in 16 dimensions, with 306 numbers, 5): by chance that happens
    once in several thousand times. In figures, for a component of weight 0.2: 0.018 of its weight,
    0.1 of a standard deviation, 14 % of a variance. Langevin's steps are shorter here than in use,
    for the sake of their bias.
    """
    rng, n, sigma, mixed = np.random.default_rng(3), 10_000, 20.0, mixture(d)
    x = mixed.sample(n, rng) + sigma * rng.standard_normal((n, d))
    levels = karras_sigmas(STEPS[name], 0.002, sigma)
    y = SAMPLERS[name](mixed.denoiser, x, levels, rng=rng, **OPTIONS.get(name, {}))

    offsets = y[:, None, :] - mixed.means  # (n, K, d)
    precisions = np.linalg.inv(mixed.covariances)
    distance = ((offsets.swapaxes(0, 1) @ precisions) * offsets.swapaxes(0, 1)).sum(-1)
    component, most = distance.argmin(axis=0), 5 if d == 16 else 4.5
    for k in range(len(mixed.weights)):
        members, w, S = y[component == k], mixed.weights[k], mixed.covariances[k]
        count, variances = len(members), np.diag(S)
        errors = {
            "weight": (count / n - w) / math.sqrt(w * (1 - w) / n),
            "mean": (members.mean(0) - mixed.means[k]) / np.sqrt(variances / count),
            "covariance": (np.atleast_2d(np.cov(members.T)) - S)
            / np.sqrt((np.outer(variances, variances) + S**2) / count),
        }
        for what, error in errors.items():
            worst = np.abs(error).max()
            assert worst < most, f"{what} of component {k}: {worst} standard errors"


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
    ddpm(point.denoiser, x, levels, rng=rng, callback=look)
    np.testing.assert_allclose(ratios, 1, atol=4.5 * math.sqrt(2 / n))


def test_ancestral_step_is_ddpms_posterior():
    """q(x_next | x, x0) from Gaussian algebra: x_next is x0 plus noise of sigma_next^2, x is x_next
    plus noise of sigma^2 - sigma_next^2; precisions add."""
    sigma, sigma_next, x, x0 = 3.0, 2.0, 5.0, 1.0
    precision = 1 / sigma_next**2 + 1 / (sigma**2 - sigma_next**2)
    mean = (x0 / sigma_next**2 + x / (sigma**2 - sigma_next**2)) / precision

    noise = np.random.default_rng(5).standard_normal((4, 1))
    y = ddpm(
        lambda x, sigma, cond: np.full_like(x, x0),
        np.full((4, 1), x),
        [sigma, sigma_next],
        rng=np.random.default_rng(5),
    )
    np.testing.assert_allclose(y, mean + noise / math.sqrt(precision), rtol=1e-12)


TWICE = ("heun", "edm_stochastic", "predictor_corrector")  # evaluations a step, but for the last


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [(name, 5) for name in SAMPLERS if name not in (*TWICE, "probability_flow")]
    + [(name, 9) for name in TWICE],
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
    assert len(asked) == evaluations
    if name != "edm_stochastic":
        assert sorted(set(np.round(asked, 9))) == pytest.approx(sorted(levels[:-1]))
    assert [step for step, *_ in reported] == [0, 1, 2, 3, 4]
    assert [sigma for _, sigma, _ in reported] == list(levels[1:])
    np.testing.assert_array_equal(reported[-1][2], y)


def test_the_solver_is_called_as_the_others_are():
    """Its evaluations are its own affair; the callback sees the levels, and float32 stays."""
    reported = []

    def D(x, sigma, cond):
        assert type(sigma) is float and cond == "seven" and x.dtype == np.float32
        return MIXTURE.denoiser(x, sigma)

    def callback(step, sigma, x):
        assert x.dtype == np.float32
        reported.append((step, sigma, x.copy()))

    levels, x = karras_sigmas(5), np.full((3, 2), 80, dtype=np.float32)
    y = probability_flow(D, x, levels, "seven", callback=callback, rtol=1e-4)
    assert y.dtype == np.float32 and np.all(x == 80)
    assert [step for step, *_ in reported] == [0, 1, 2, 3, 4]
    assert [sigma for _, sigma, _ in reported] == pytest.approx(levels[1:])
    np.testing.assert_array_equal(reported[-1][2], y)
    fine = heun(MIXTURE.denoiser, x.astype(float), karras_sigmas(400, 0.02, 80.0)[:-1])
    ends = probability_flow(D, x, [80.0, 0.02], "seven", rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ends, fine, atol=1e-3)


def test_a_solver_that_gives_up_says_so():
    """The ODE leads to infinity before it leads to the last level; or the denoiser answers NaN."""
    x, levels = np.ones((1, 2)), karras_sigmas(3)
    with pytest.raises(ValueError, match=r"the ODE could not be solved: .*step size"):
        probability_flow(lambda x, sigma, cond: x + 5 * x**2, x, levels)
    with pytest.raises(ValueError, match=r"the ODE could not be solved: .*not finite"):
        probability_flow(lambda x, sigma, cond: x * math.nan, x, levels)


def test_a_solver_does_not_go_on_for_ever(monkeypatch):
    """Over a denoiser so rough that no step is small enough."""
    asked = []

    def rough(x, sigma, cond):
        asked.append(sigma)
        return x + math.sin(1e9 * sigma)

    words = r"solved in 20,000 evaluations of its slope: .* a sampler of fixed steps"
    with pytest.raises(ValueError, match=words):
        probability_flow(rough, np.ones((1, 2)), karras_sigmas(3))
    assert len(asked) == 20_000
    asked.clear()
    probability_flow(lambda *a: asked.append(0) or MIXTURE.denoiser(*a), np.ones((1, 2)), [9, 1])
    monkeypatch.setattr(ode, "MAX_EVALUATIONS", len(asked))
    probability_flow(MIXTURE.denoiser, np.ones((1, 2)), [9, 1])
    monkeypatch.setattr(ode, "MAX_EVALUATIONS", len(asked) - 1)
    with pytest.raises(ValueError, match="could not be solved"):
        probability_flow(MIXTURE.denoiser, np.ones((1, 2)), [9, 1])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ddim", {"eta": -0.1}, "eta must be a finite number in 0 ... 1, not -0.1"),
        ("ddim", {"eta": 1.5}, "eta must be"),
        ("ddim", {"eta": math.nan}, "eta must be"),
        ("probability_flow", {"rtol": 0}, "rtol must be a finite number in 1e-12 ... 1, not 0"),
        ("probability_flow", {"rtol": 100}, "rtol must be"),
        ("probability_flow", {"rtol": math.nan}, "rtol must be"),
        ("probability_flow", {"atol": -1e-3}, "atol must be positive, not -0.001"),
        ("probability_flow", {"atol": "low"}, "atol must be a finite number, not 'low'"),
        ("predictor_corrector", {"snr": 0}, "snr must be positive"),
        ("predictor_corrector", {"corrections": -1}, "corrections must be a whole number >= 0"),
        ("predictor_corrector", {"corrections": 1.5}, "corrections must be a whole number"),
        ("edm_stochastic", {"churn": -1}, "churn must be a finite number in 0 ... inf, not -1"),
        ("edm_stochastic", {"churn": math.nan}, "churn must be"),
        ("edm_stochastic", {"noise_scale": math.nan}, "noise_scale must be"),
        ("edm_stochastic", {"low": 2, "high": 1}, "low must be at most high"),
        ("edm_stochastic", {"high": "a"}, "low must be at most high"),
        ("euler_maruyama", {"process": "vp"}, "process must be one of VE(), VP(), SubVP()"),
        ("euler_maruyama", {"process": Process()}, "process must be one of VE(), VP(), SubVP()"),
        ("ddpm", {"rng": 3}, "ddpm draws noise: give it a generator"),
    ],
)
def test_settings_that_make_no_sense(name, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        SAMPLERS[name](MIXTURE.denoiser, np.zeros((1, 2)), [1.0, 0.0],
                       **{"rng": np.random.default_rng(0)} | options)  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_and_types_that_make_no_sense(name):
    rng = np.random.default_rng(0)
    for levels in (None, 3, ["a", "b"], [], [1.0], [1.0, 2.0], [1.0, math.nan], [2.0, -1.0]):
        with pytest.raises(ValueError, match="noise levels"):
            SAMPLERS[name](MIXTURE.denoiser, np.zeros((1, 2)), levels, rng=rng)
    with pytest.raises(ValueError, match="x must be of a floating-point type, not int64"):
        SAMPLERS[name](MIXTURE.denoiser, np.zeros((1, 2), np.int64), [1.0, 0.0], rng=rng)


@pytest.mark.parametrize("name", RANDOM)
def test_a_random_sampler_asks_for_a_generator(name):
    x, levels = np.ones((3, 2)), karras_sigmas(5)

    def run(seed):
        return SAMPLERS[name](MIXTURE.denoiser, x, levels, rng=np.random.default_rng(seed))

    np.testing.assert_array_equal(run(0), run(0))
    assert np.all(run(0) != run(1))
    with pytest.raises(ValueError, match=f"{name} draws noise: give it a generator"):
        SAMPLERS[name](MIXTURE.denoiser, x, levels)
    with pytest.raises(ValueError, match="ddim draws noise: give it a generator"):
        ddim(MIXTURE.denoiser, x, levels, eta=0.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_to_zero_is_the_denoiser(name):
    x = np.random.default_rng(7).standard_normal((3, 2))
    options = {"churn": 0} if name == "edm_stochastic" else {}
    y = SAMPLERS[name](MIXTURE.denoiser, x, [2.0, 0.0], rng=np.random.default_rng(8), **options)
    np.testing.assert_allclose(y, MIXTURE.denoiser(x, 2.0), rtol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "levels",
    [[], [1], [1, 2], [2, 2], [1, -1], [2, 0, 0], [math.nan, 0], [math.inf, 1]],
)
def test_levels_that_do_not_fall_are_refused(name, levels):
    with pytest.raises(ValueError, match="levels"):
        SAMPLERS[name](MIXTURE.denoiser, np.zeros((1, 2)), levels, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("method", "error"), [("heun", 2e-3), ("euler", 0.3)])
def test_inversion_goes_back_the_way_that_sampling_came(method, error):
    """Up by the closed form's flow, with the method's error, and down again by the same steps."""
    x = np.random.default_rng(20).standard_normal((20, 2))
    rising = karras_sigmas(101, 0.1, 20.0)[-2::-1]
    noise = invert(GAUSSIAN.denoiser, x, rising, method=method)
    exact = gaussian_flow(x, 0.1, 20.0)
    assert np.linalg.norm(noise - exact) < error * np.linalg.norm(exact)
    back = SAMPLERS[method](GAUSSIAN.denoiser, noise, rising[::-1])
    off = np.linalg.norm(back - x) / np.linalg.norm(x)
    assert off < error and (method == "heun") == (off < 5e-3)


def test_what_inversion_refuses():
    x = np.zeros((1, 2))
    with pytest.raises(ValueError, match="unknown method 'ddpm': use one of heun, euler"):
        invert(MIXTURE.denoiser, x, [0.1, 1.0], method="ddpm")
    with pytest.raises(ValueError, match="levels"):
        invert(MIXTURE.denoiser, x, [1.0, 0.1])
    with pytest.raises(ValueError, match="start above it"):
        invert(MIXTURE.denoiser, x, [0.0, 0.1])
