"""Noising processes against their own definitions, the closed forms of mixtures, and each other."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

from ldm_numpy.diffusion import (
    PROCESSES,
    VE,
    VP,
    CosineVP,
    GaussianMixture,
    RectifiedFlow,
    SubVP,
    heun,
    karras_sigmas,
)

MIXTURE = GaussianMixture(
    [0.6, 0.4], [[2.0, 0.0], [-1.0, 1.0]], [[[0.4, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.5]]]
)
ALL = pytest.mark.parametrize("process", [kind() for kind in PROCESSES.values()], ids=PROCESSES)


def times(process, n=9):
    """From one end to the other, and well inside."""
    return [float(t) for t in np.linspace(process.t_min, process.t_max, n)]


def derivative(function, t, h=1e-4):
    """By differences of fourth order."""
    near, far = (function(t + k * h) - function(t - k * h) for k in (1, 2))
    return (8 * near - far) / (12 * h)


@ALL
def test_f_and_g_are_what_s_and_sigma_make_them(process):
    """f = s' / s and g^2 = s^2 (sigma^2)', by differences."""
    for t in times(process)[1:-1]:
        assert process.f(t) == pytest.approx(derivative(process.s, t) / process.s(t), rel=1e-6)
        grown = process.s(t) ** 2 * derivative(lambda t: process.sigma(t) ** 2, t)
        assert process.g_squared(t) == pytest.approx(grown, rel=1e-6)
        assert process.diffusion(t) == pytest.approx(math.sqrt(grown), rel=1e-6)
        assert process.drift(np.array([[3.0]]), t) == pytest.approx(3 * process.f(t))


@ALL
def test_time_is_the_inverse_of_sigma(process):
    for sigma in (0.002, 0.1, 1.0, 7.0, 60.0):
        assert process.sigma(process.time(sigma)) == pytest.approx(sigma, rel=1e-9)
    levels = [process.sigma(t) for t in times(process)]
    assert levels == sorted(levels) and levels[0] == pytest.approx(0.002)
    assert levels[-1] >= 79


def test_the_names_mean_what_the_papers_say():
    t = 0.3
    B = 0.1 * t + 0.5 * 19.9 * t * t
    assert VP().kernel(t) == pytest.approx((math.exp(-B / 2), math.sqrt(1 - math.exp(-B))))
    assert SubVP().kernel(t) == pytest.approx((math.exp(-B / 2), 1 - math.exp(-B)))
    assert VE(0.01, 50.0).kernel(t) == pytest.approx((1, 0.01 * 5000**t))
    assert RectifiedFlow().kernel(t) == pytest.approx((0.7, 0.3))
    alpha_bar = math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    alpha_bar /= math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    expected = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    assert CosineVP().kernel(t) == pytest.approx(expected)
    # DDPM: beta_i from 1e-4 to 0.02 in 1,000 steps, alpha_bar their product.
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for i in (100, 500, 900):
        found = 2 * math.log(VP().s(i / 1000))
        assert found == pytest.approx(math.log(alpha_bars[i - 1]), rel=0.02)


@pytest.mark.parametrize("kind", [VP, CosineVP])
def test_variance_is_preserved(kind):
    for t in times(kind()):
        scale, deviation = kind().kernel(t)
        assert scale**2 + deviation**2 == pytest.approx(1, rel=1e-12)


@ALL
def test_kernels_join(process):
    """From the data to one time and on to the next is from the data to the next."""
    for first, second in zip(times(process)[1:], times(process)[2:]):
        scale, deviation = process.kernel(first)
        further, added = process.kernel(second, first)
        whole = process.kernel(second)
        assert (scale * further, math.hypot(deviation * further, added)) == pytest.approx(whole)


@ALL
def test_a_simulation_has_the_density_of_the_kernel(process):
    """20,000 paths from one point, 1,000 steps, by Kolmogorov and Smirnov's distance: by chance it
    is above 0.0153 once in 5,000. A deviation off by a tenth of itself, or a mean off by a tenth of
    the deviation, would show."""
    start, end = (process.time(sigma) for sigma in (0.5, 1.2))
    x = process.simulate(np.full((20_000, 1), 2.0), start, end, 1000, np.random.default_rng(0))
    scale, deviation = process.kernel(end, start)

    def distance(mean, deviation):
        return stats.kstest(x[:, 0], "norm", (mean, deviation)).statistic

    assert distance(2 * scale, deviation) < 0.0153
    for wrong in (0.9 * deviation, 1.1 * deviation):
        assert distance(2 * scale, wrong) > 0.0153
    for wrong in (-0.1 * deviation, 0.1 * deviation):
        assert distance(2 * scale + wrong, deviation) > 0.0153


@ALL
def test_data_noised_at_once_are_data_noised_step_by_step(process):
    """`perturb`: the mixture at level sigma, scaled; its moments within 4.5 standard errors."""
    rng, n, t = np.random.default_rng(1), 40_000, process.time(0.7)
    x0 = MIXTURE.sample(n, rng)
    x = process.perturb(x0, t, rng.standard_normal(x0.shape))
    mean = MIXTURE.weights @ MIXTURE.means
    spread = MIXTURE.means - mean
    covariance = np.einsum("k,kij->ij", MIXTURE.weights, MIXTURE.covariances)
    covariance += np.einsum("k,ki,kj->ij", MIXTURE.weights, spread, spread)
    covariance = process.s(t) ** 2 * (covariance + 0.7**2 * np.eye(2))
    deviations = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x.mean(0) - process.s(t) * mean) < 4.5 * deviations / math.sqrt(n))
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=4.5 * 2 * covariance.max() / n**0.5)


@ALL
def test_score_is_the_gradient_of_the_scaled_density(process):
    """log p_t(x) = log p(x / s; sigma) - d ln s; its gradient by differences."""
    x = np.random.default_rng(2).standard_normal((6, 2))
    for t in times(process)[2:-1]:
        s, sigma = process.s(t), process.sigma(t)
        found = process.score(MIXTURE.denoiser, s * x, t)
        for i in range(2):
            step = 1e-5 * s * np.eye(2)[i]
            up, down = (MIXTURE.log_density((s * x + d) / s, sigma) for d in (step, -step))
            expected = (up - down) / (2e-5 * s)
            np.testing.assert_allclose(found[:, i], expected, rtol=1e-5, atol=1e-5 / s)


@ALL
def test_the_ode_of_every_process_is_the_same_flow(process):
    """A D sampled under any of them: x / s follows the same curve from level 20 to level 0.1 as
    Heun's 4,000 steps in sigma."""
    x = 20 * np.random.default_rng(3).standard_normal((5, 2))
    levels = karras_sigmas(4001, 0.1, 20.0)[:-1]
    expected = heun(MIXTURE.denoiser, x, levels)

    def velocity(t, flat):
        return process.velocity(MIXTURE.denoiser, flat.reshape(5, 2), t).ravel()

    span = process.time(20.0), process.time(0.1)
    start = process.s(span[0]) * x
    solved = solve_ivp(velocity, span, start.ravel(), rtol=1e-8, atol=1e-10).y[:, -1]
    np.testing.assert_allclose(solved.reshape(5, 2) / process.s(span[1]), expected, atol=2e-5)


@ALL
def test_the_reverse_drift_leads_twice_as_far_from_the_score(process):
    """f x - g^2 score; with the score's half it would be the ODE's."""
    x, t = np.ones((3, 2)), process.time(0.5)
    drift, score = process.drift(x, t), process.score(MIXTURE.denoiser, x, t)
    full = process.reverse_drift(MIXTURE.denoiser, x, t)
    np.testing.assert_allclose(full, drift - process.g_squared(t) * score)
    np.testing.assert_allclose(
        process.velocity(MIXTURE.denoiser, x, t), (drift + full) / 2, rtol=1e-12
    )


@ALL
def test_prior(process):
    rng, shape = np.random.default_rng(4), (3, 2, 5)
    x = process.prior(shape, rng)
    deviation = process.s(process.t_max) * process.sigma(process.t_max)
    expected = stats.norm(0, deviation).logpdf(x).sum(axis=(1, 2))
    np.testing.assert_allclose(process.prior_log_density(x), expected, rtol=1e-10)
    many = process.prior((40_000,), rng)
    assert many.std() == pytest.approx(deviation, rel=4.5 / math.sqrt(80_000))


@ALL
def test_a_time_for_each_row(process):
    """Arrays (N,) give what numbers give row by row; float32 stays, whatever the times are."""
    t = np.array(times(process, 6)[1:-1])
    x = np.random.default_rng(5).standard_normal((4, 2)).astype(np.float32)
    D = MIXTURE.denoiser
    for call in (
        process.drift,
        lambda x, t: process.score(D, x, t),
        lambda x, t: process.reverse_drift(D, x, t),
        lambda x, t: process.velocity(D, x, t),
        lambda x, t: process.perturb(x, t, x),
    ):
        together = call(x, t)
        one_by_one = np.concatenate([call(x[i : i + 1], float(t[i])) for i in range(4)])
        assert together.dtype == one_by_one.dtype == np.float32
        np.testing.assert_allclose(together, one_by_one, rtol=2e-4)
        assert call(x, t[1]).dtype == np.float32  # a NumPy number
    for name in ("s", "sigma", "f", "g_squared", "diffusion"):
        method = getattr(process, name)
        np.testing.assert_allclose(method(t), [method(float(i)) for i in t], rtol=1e-12)
        assert isinstance(method(0.3), float)
    span = process.t_min, process.t_max
    assert process.simulate(x, *span, 3, np.random.default_rng(0)).dtype == np.float32


@pytest.mark.parametrize("kind", [VE, CosineVP, RectifiedFlow])
@pytest.mark.parametrize("levels", [(0, 1), (-1, 1), (1, 1), (2, 1), (0.1, math.inf)])
def test_impossible_levels(kind, levels):
    with pytest.raises(ValueError, match=r"0 < sigma_min < sigma_max|sigma_max must be a finite"):
        kind(*levels)


def test_times_may_be_off_by_a_rounding_error():
    process = CosineVP()
    span = process.t_max - process.t_min
    for end, sign in ((process.t_min, -1), (process.t_max, 1)):
        process.kernel(end + sign * 0.9e-6 * span)
        with pytest.raises(ValueError, match="CosineVP has times"):
            process.kernel(end + sign * 1.1e-6 * span)


EACH = pytest.param(np.array([0.0, 1.1]), marks=pytest.mark.host)  # a GPU is not waited for


@pytest.mark.parametrize("kind", PROCESSES.values())
@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan, EACH])
def test_times_outside_a_process_are_refused(kind, t):
    process, x = kind(), np.zeros((2, 3))
    wanted = f"{kind.__name__} has times .* got"
    for use in (
        lambda: process.kernel(t),
        lambda: process.kernel(process.t_max, t),
        lambda: process.perturb(x, t, x),
        lambda: process.score(lambda x, sigma, cond: x, x, t),
        lambda: process.velocity(lambda x, sigma, cond: x, x, t),
        lambda: process.reverse_drift(lambda x, sigma, cond: x, x, t),
        lambda: process.drift(x, t),
        lambda: process.diffusion(t),
    ):
        with pytest.raises(ValueError, match=wanted):
            use()


@pytest.mark.parametrize("kind", [VP, SubVP])
def test_a_least_level_above_the_last_is_refused(kind):
    most = kind().sigma(1.0)
    kind(sigma_min=0.999 * most)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        kind(sigma_min=1.001 * most)


def test_errors():
    for kind in (VP, SubVP):
        for betas in ((-0.1, 1), (2, 1), (0, 0), (0.1, math.inf), (math.nan, 1)):
            with pytest.raises(ValueError, match=r"beta_min <= beta_max|beta_m.. must be"):
                kind(*betas)
        for betas in ((0, 1e6), ("a", 1), (None, 1), (0.1, "b")):
            with pytest.raises(ValueError, match=r"beta_\w+ must be a finite number"):
                kind(*betas)
    process, x, rng = VP(), np.zeros((3, 2)), np.random.default_rng(0)
    for span in ((0.5, 0.5), (0.5, 0.2), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="times must rise within"):
            process.simulate(x, *span, 10, rng)
    with pytest.raises(ValueError, match="start must be a finite number, not 'a'"):
        process.simulate(x, "a", 0.5, 5, rng)
    for steps in (0, 1.5, True, math.nan):
        with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
            process.simulate(x, 0.2, 0.5, steps, rng)
    for h in (-1, math.nan, 2):
        with pytest.raises(ValueError, match=r"h must be a finite number in 0 \.\.\. 1"):
            CosineVP(h=h)
    with pytest.raises(ValueError, match=r"a kernel leads forwards, not from 0\.5 to 0\.2"):
        process.kernel(0.2, 0.5)
    with pytest.raises(ValueError, match=r"times have shape \(2,\): give a number, or \(3,\)"):
        process.drift(x, np.array([0.1, 0.2]))
