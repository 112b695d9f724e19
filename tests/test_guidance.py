"""Guidance on mixtures, where what it leads to is known."""

import math
from itertools import pairwise

import numpy as np
import pytest

from ldm_numpy.diffusion import (
    GaussianMixture,
    classifier_guide,
    dpmpp_2m,
    euler,
    guide,
    karras_sigmas,
    score,
)
from ldm_numpy.diffusion.guidance import EVERYWHERE, checked_interval, deviation
from ldm_numpy.gradcheck import check_gradients
from ldm_numpy.tensor import Tensor

LEFT, RIGHT = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def two_hills():
    """Two classes in two dimensions; a condition is a row of component weights."""
    return GaussianMixture([0.7, 0.3], [[-1.0, 0], [1.0, 0.5]], np.stack([np.eye(2) * 0.3] * 2))


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5, -1.0])
def test_guidance_combines_scores(scale):
    """grad log p_u + scale (grad log p_c - grad log p_u), with scores straight from the density.

    Exchanged roles, a lost sign or a lost scale each fail for some scale here.
    """
    m, x, sigma = two_hills(), np.random.default_rng(7).standard_normal((6, 2)), 0.8
    guided = guide(m.denoiser, scale, uncond=m.weights)
    expected = (1 - scale) * m.score(x, sigma) + scale * m.score(x, sigma, RIGHT)
    np.testing.assert_allclose(score(guided, x, sigma, RIGHT), expected, atol=1e-10)


def test_guidance_calls_once_at_scale_one_and_twice_otherwise():
    calls = []

    def D(x, sigma, cond):
        calls.append(cond)
        return x

    guide(D, 1.0, "nothing")(np.zeros((1, 1)), 1.0, "seven")
    assert calls == ["seven"]
    guide(D, 3.0, "nothing")(np.zeros((1, 1)), 1.0, "seven")
    assert sorted(calls[1:]) == ["nothing", "seven"]


def counting_denoiser():
    """A D that depends on the rows of x, sigma and cond, each in its own way; and the list of how
    many rows it was asked for."""
    calls = []

    def D(x, sigma, cond):
        calls.append(len(x))
        return x * np.reshape(sigma, (-1, 1)) + cond

    return D, calls


@pytest.mark.parametrize("sigma", [0.8, np.linspace(0.5, 2, 6)], ids=["number", "each"])
def test_joined_guidance_is_one_call_and_the_same(sigma):
    D, calls = counting_denoiser()
    rng = np.random.default_rng(3)
    x, cond, uncond = rng.standard_normal((3, 6, 2))
    joined = guide(D, 3.0, uncond, join=lambda *conds: np.concatenate(conds))(x, sigma, cond)
    assert calls == [12]
    np.testing.assert_allclose(joined, guide(D, 3.0, uncond)(x, sigma, cond))


@pytest.mark.parametrize("join", [None, lambda *conds: np.concatenate(conds)], ids=["two", "one"])
def test_guidance_in_an_interval(join):
    """Its lower end is outside, its upper end inside; outside, D is asked once and nothing more."""
    D, calls = counting_denoiser()
    rng = np.random.default_rng(4)
    x, cond, uncond = rng.standard_normal((3, 6, 2))
    limited, plain = guide(D, 3.0, uncond, join, (0.5, 2.0)), guide(D, 3.0, uncond, join)
    for sigma in (0.5, 0.51, 2.0, 2.01):
        calls.clear()
        inside = 0.5 < sigma <= 2
        expected = uncond + x * sigma + 3 * (cond - uncond) if inside else cond + x * sigma
        np.testing.assert_allclose(limited(x, sigma, cond), expected)
        assert sum(calls) == (12 if inside else 6)
    each = np.array([0.1, 0.5, 0.51, 2.0, 2.01, 9.0])
    expected = np.where((each > 0.5)[:, None], plain(x, each, cond), D(x, each, cond))
    expected[4:] = D(x, each, cond)[4:]
    np.testing.assert_allclose(limited(x, each, cond), expected)
    single = (a.astype(np.float32) for a in (x, each, cond, uncond))
    x, each, cond, uncond = single
    assert guide(D, 3.0, uncond, join, (0.5, 2.0))(x, each, cond).dtype == np.float32


def test_guidance_and_negative_prompts_move_samples_the_right_way():
    """Along the line between two classes: asking for right goes right, the more so with a larger
    scale, and further still when left is what to avoid."""
    m = two_hills()
    x = 80 * np.random.default_rng(8).standard_normal((400, 2))

    def mean(D, cond):
        return euler(D, x, karras_sigmas(20), cond)[:, 0].mean()

    plain = mean(m.denoiser, RIGHT)
    stronger = mean(guide(m.denoiser, 2.0, uncond=None), RIGHT)
    against = mean(guide(m.denoiser, 2.0, uncond=LEFT), RIGHT)
    assert plain == pytest.approx(1, abs=0.15)
    assert plain + 0.05 < stronger < against


def test_guidance_is_differentiable():
    m = two_hills()
    guided = guide(m.denoiser, 3.0, uncond=None)
    x = np.random.default_rng(9).standard_normal((3, 2))
    check_gradients(lambda x: guided(x, 0.5, RIGHT), [x])
    assert isinstance(guided(x, 0.5, RIGHT), np.ndarray)


# What samples are drawn --------------------------------------------------------------------

LOW, HIGH = 0.5, 2.0


def flow(x, mean, sigma, sigma_next):
    """The ODE of one Gaussian of variance 0.3, from a level to another."""
    ratio = math.sqrt((0.3 + sigma_next**2) / (0.3 + sigma**2))
    return mean + (x - mean) * ratio


@pytest.mark.parametrize("interval", [EVERYWHERE, (LOW, HIGH)], ids=["everywhere", "interval"])
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 3.0])
def test_guidance_between_two_gaussians_is_a_third(scale, interval):
    """Classes of the same covariance: (1 - w) log p_u + w log p_c is the log density of a Gaussian
    of that covariance with the mean (1 - w) m_u + w m_c, at every level. So each sample's way is
    known, in the interval to the guided mean, outside to the class's own; a sign, a swap of the
    two, or an interval turned inside out leads elsewhere."""
    m, n = two_hills(), 500
    x = 20 * np.random.default_rng(11).standard_normal((n, 2))
    D = guide(m.denoiser, scale, uncond=LEFT, interval=interval)
    right, third = m.means[1], (1 - scale) * m.means[0] + scale * m.means[1]
    ends = [20.0, HIGH, LOW, 0.01]
    expected = x
    for sigma, sigma_next in pairwise(ends):
        inside = interval == EVERYWHERE or sigma == HIGH
        expected = flow(expected, third if inside else right, sigma, sigma_next)
    found = x  # in three parts: no step crosses an end
    for sigma, sigma_next in pairwise(ends):
        between = karras_sigmas(201, sigma_next, sigma)[1:-2]
        found = dpmpp_2m(D, found, [sigma, *between, sigma_next], RIGHT)
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=0.01)
    if interval == EVERYWHERE:
        np.testing.assert_allclose(found.mean(0), third, atol=4.5 * math.sqrt(0.3 / n))
        error = 0.3 * math.sqrt(2 / n)
        np.testing.assert_allclose(np.cov(found.T), 0.3 * np.eye(2), atol=4.5 * error)


def posterior(m):
    """log p(component | x; sigma) of a mixture, as a classifier has it."""

    def log_probability(x, sigma, cond):
        k = int(np.argmax(cond))
        *_, log_joint = m._components(x, sigma, None)
        top = log_joint.data.max(axis=0)
        return log_joint[k] - (top + (log_joint - top).exp().sum(axis=0).log())

    return log_probability


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("sigma", [0.3, np.array([0.1, 0.5, 1.0, 2.0, 9.0])])
def test_a_perfect_classifier_guides_as_a_perfect_condition_does(scale, sigma):
    """Bayes' rule: with scale 1 the unconditional D becomes the conditional one, and with any scale
    it is classifier-free guidance of that scale."""
    m, x = two_hills(), np.random.default_rng(12).standard_normal((5, 2))

    def unconditional(x, sigma, cond=None):
        return m.denoiser(x, sigma)

    found = classifier_guide(unconditional, posterior(m), scale)(x, sigma, RIGHT)
    expected = guide(m.denoiser, scale, uncond=m.weights)(x, sigma, RIGHT)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    if scale == 1:
        np.testing.assert_allclose(found, m.denoiser(x, sigma, RIGHT), atol=1e-9)


def test_classifier_guidance_in_an_interval():
    m, x = two_hills(), np.random.default_rng(13).standard_normal((4, 2)).astype(np.float32)
    asked = []

    def classifier(x, sigma, cond):
        asked.append(sigma)
        return posterior(m)(x, sigma, cond)

    def D(x, sigma, cond=None):
        return m.denoiser(x, sigma)

    limited = classifier_guide(D, classifier, 2.0, (LOW, HIGH))
    plain = classifier_guide(D, posterior(m), 2.0)
    for sigma in (LOW, 2.01):
        np.testing.assert_array_equal(limited(x, sigma, RIGHT), D(x, sigma))
    assert not asked
    np.testing.assert_array_equal(limited(x, HIGH, RIGHT), plain(x, HIGH, RIGHT))
    each = np.array([0.1, 0.5, 1.0, 9.0], np.float32)
    found = limited(x, each, RIGHT)
    np.testing.assert_array_equal(found[[0, 1, 3]], D(x, each)[[0, 1, 3]])
    np.testing.assert_allclose(found[2], plain(x, each, RIGHT)[2], rtol=1e-6)
    assert found.dtype == np.float32


def test_samples_by_a_classifier_are_of_the_class():
    """All of one hill, though D knows no classes: mean and spread within 4.5 standard errors."""
    m, n = two_hills(), 4000
    x = 80 * np.random.default_rng(14).standard_normal((n, 2))

    def D(x, sigma, cond=None):
        return m.denoiser(x, sigma)

    y = dpmpp_2m(classifier_guide(D, posterior(m), 1.0), x, karras_sigmas(80), RIGHT)
    np.testing.assert_allclose(y.mean(0), m.means[1], atol=4.5 * math.sqrt(0.3 / n))
    np.testing.assert_allclose(np.cov(y.T), 0.3 * np.eye(2), atol=4.5 * 0.3 * math.sqrt(2 / n))


@pytest.mark.parametrize("kind", [np.asarray, Tensor])
def test_rescaling_gives_estimates_the_deviation_they_had(kind):
    """1: that of D_c; 0: as without; between, in proportion. Their direction stays."""
    rng = np.random.default_rng(15)
    x, cond, uncond = rng.standard_normal((3, 4, 3, 5))

    def D(x, sigma, cond):
        return x * 0.5 + cond

    given = D(x, 1.0, cond)
    plain = guide(D, 4.0, uncond)(x, 1.0, cond)

    def rescaled(rescale):
        y = guide(D, 4.0, uncond, guidance_rescale=rescale)(kind(x), 1.0, cond)
        return y.data if kind is Tensor else y

    np.testing.assert_array_equal(rescaled(0.0), plain)
    full = rescaled(1.0)
    np.testing.assert_allclose(deviation(full), deviation(given))
    np.testing.assert_allclose(deviation(full).ravel(), full.reshape(4, -1).std(axis=1))
    np.testing.assert_allclose(rescaled(0.25), 0.25 * full + 0.75 * plain)
    np.testing.assert_allclose(full / plain, deviation(given) / deviation(plain) + 0 * plain)


def test_bad_input_is_refused():
    zero = np.zeros_like
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match="guidance_scale"):
            guide(zero, scale)
    wrong = [(2, 1), (1, 1), (-1, 2), (math.nan, 1), (0, math.nan), (1,), 3, "12", None, {1: 2}]
    for interval in wrong:
        for scale in (1.0, 2.0):
            with pytest.raises(ValueError, match="guidance_interval"):
                guide(zero, scale, interval=interval)
    assert checked_interval([0.5, math.inf]) == (0.5, EVERYWHERE[1])  # JSON has no infinity
    for interval in ((2e9, math.inf), (2e9, 3e9)):
        with pytest.raises(ValueError, match="guidance_interval"):
            checked_interval(interval)
    with pytest.raises(ValueError, match="a sample of one number has no deviation"):
        guide(lambda x, sigma, cond: x, 2.0, guidance_rescale=0.5)(np.ones((3, 1)), 1.0)
    for rescale in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"guidance_rescale must be .* in 0 \.\.\. 1"):
            guide(zero, 2.0, guidance_rescale=rescale)
    for scale in (math.nan, math.inf):
        with pytest.raises(ValueError, match="guidance_scale"):
            classifier_guide(zero, zero, scale)
    with pytest.raises(ValueError, match="guidance_interval"):
        classifier_guide(zero, zero, 1.0, (2, 1))
