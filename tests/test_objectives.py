"""What networks are asked for: conversions between all of it, and losses that agree."""

import math

import numpy as np
import pytest

from ldm_numpy.diffusion import (
    OBJECTIVES,
    PROCESSES,
    VP,
    WEIGHTINGS,
    Denoiser,
    GaussianMixture,
    RectifiedFlow,
    as_denoiser,
    as_prediction,
    denoising_loss,
    euler_maruyama,
    heun,
    karras_sigmas,
)
from ldm_numpy.diffusion.denoiser import preconditioning, score_matching_loss
from ldm_numpy.diffusion.objectives import PREDICTIONS, loss_weight, target
from ldm_numpy.tensor import Tensor, gradients

LEVELS = np.array([0.002, 0.1, 0.5, 2.0, 60.0])
MIXTURE = GaussianMixture(
    [0.6, 0.4], [[2.0, 0.0], [-1.0, 1.0]], [[[0.4, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.5]]]
)
KINDS = pytest.mark.parametrize("kind", PREDICTIONS)
ALL = pytest.mark.parametrize("process", [kind() for kind in PROCESSES.values()], ids=PROCESSES)


def noised(level, n=6, seed=0):
    rng = np.random.default_rng(seed)
    x0, noise = MIXTURE.sample(n, rng), rng.standard_normal((n, 2))
    return x0, noise, x0 + level * noise


# In training -------------------------------------------------------------------------------

TARGETS = {
    "epsilon": lambda x0, n, sigma: n,
    "x0": lambda x0, n, sigma: x0,
    "v": lambda x0, n, sigma: (n - sigma * x0) / math.sqrt(1 + sigma**2),
    "flow": lambda x0, n, sigma: n - x0,
}


@pytest.mark.parametrize("objective", TARGETS)
@pytest.mark.parametrize("sigma", LEVELS)
def test_a_network_that_answers_what_it_is_asked_for_makes_d_the_data(objective, sigma):
    x0, noise, x = noised(sigma)
    answer = TARGETS[objective](x0, noise, sigma)
    D = Denoiser(lambda x, timestep, cond: Tensor(answer), 0.5, objective)
    np.testing.assert_allclose(D(x, sigma), x0, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_weighting_target_is_the_mean_squared_error_of_the_answer(objective):
    sigma = LEVELS[1:]
    x0, noise = np.random.default_rng(1).standard_normal((2, 4, 3))
    answer = np.random.default_rng(2).standard_normal((4, 3))
    D = Denoiser(lambda x, timestep, cond: Tensor(answer), 0.7, objective)
    column = sigma[:, None]
    if objective == "edm":
        c_skip, c_out, _, _ = preconditioning(column, 0.7)
        asked = (x0 - c_skip * (x0 + column * noise)) / c_out
    else:
        asked = np.stack([TARGETS[objective](x0[i], noise[i], s) for i, s in enumerate(sigma)])
    expected = ((answer - asked) ** 2).mean()
    assert denoising_loss(D, x0, sigma, noise).item() == pytest.approx(expected, rel=1e-8)


def test_v_is_edm_but_for_its_sign():
    """For data of standard deviation 1."""
    edm, v = (preconditioning(LEVELS, 1.0, name)[:2] for name in ("edm", "v"))
    np.testing.assert_allclose(edm[0], v[0])
    np.testing.assert_allclose(edm[1], -v[1])
    np.testing.assert_allclose(loss_weight(LEVELS, 1.0, "edm"), loss_weight(LEVELS, 1.0, "v"))


def test_weightings():
    sigma = np.array([0.1, 0.4, 0.5, 10.0])
    np.testing.assert_allclose(loss_weight(sigma, 0.7, "x0", "likelihood"), 1 / sigma**2)
    np.testing.assert_allclose(loss_weight(sigma, 0.7, "edm", "min_snr"), [5, 5, 4, 0.01])
    assert set(WEIGHTINGS) == {"target", "likelihood", "min_snr"}


def network_with(w):
    return lambda x, timestep, cond: x @ w + 0.1


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_explicit_and_denoising_score_matching_have_the_same_gradient(weighting):
    """Vincent 2011. The gradient of the denoising loss, averaged over 400,000 draws, is the
    explicit one's within 4.5 standard errors, which are a few percent; and it is not zero."""
    rng, n, parts = np.random.default_rng(3), 10_000, 40
    sigma = np.exp(rng.uniform(math.log(0.3), math.log(3), n))
    start = rng.standard_normal((2, 2))
    found = {"denoising": [], "explicit": []}
    for _ in range(parts):
        x0, noise = MIXTURE.sample(n, rng), rng.standard_normal((n, 2))
        x = x0 + sigma[:, None] * noise
        w = Tensor(start, requires_grad=True)
        D = Denoiser(network_with(w), 1.0)
        loss = denoising_loss(D, x0, sigma, noise, weighting=weighting)
        found["denoising"].append(gradients(loss, [w])[0])
        scores = MIXTURE.score(x, sigma)
        loss = score_matching_loss(D, x, sigma, scores, weighting=weighting)
        found["explicit"].append(gradients(loss, [w])[0])
    mean = {name: np.mean(parts, axis=0) for name, parts in found.items()}
    error = np.std(np.subtract(*found.values()), axis=0) / math.sqrt(parts)
    assert np.all(np.abs(mean["denoising"] - mean["explicit"]) < 4.5 * error)
    assert np.abs(mean["explicit"]).max() > 50 * error.max()
    # The explicit loss of the true D is zero; the denoising loss of it is not.
    assert score_matching_loss(Oracle(), x, sigma, scores).item() < 1e-20
    assert denoising_loss(Oracle(), x0, sigma, noise).item() > 0.05


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_explicit_score_matching_weighs_as_the_objective_does(objective):
    sigma = np.array([0.3, 0.3, 3.0, 3.0])
    x, scores = np.ones((4, 2)), np.zeros((4, 2))
    D = Oracle()
    D.objective = objective
    weight = loss_weight(sigma[:, None], 1.0, objective)
    wanted = (weight * (D(x, sigma) - x) ** 2).mean()
    assert score_matching_loss(D, x, sigma, scores).item() == pytest.approx(wanted)
    with pytest.raises(ValueError, match=r"scores have shape \(.*\), x \(.*\): they must agree"):
        score_matching_loss(D, x, sigma, scores[:1])


EACH = pytest.param(np.array([0.1, 40.0]), marks=pytest.mark.host)  # a GPU is not waited for


@pytest.mark.parametrize("sigma", [40.0, EACH])
def test_levels_that_a_process_does_not_reach(sigma):
    short = VP(0.1, 1.0)
    most = float(short.sigma(short.t_max))
    D = as_denoiser(lambda x, t, cond: x, short, "epsilon")
    least = float(short.sigma(short.t_min))
    for level in (most, most * (1 + 0.9e-6), least, least * (1 - 0.9e-6)):  # but for rounding
        D(np.ones((2, 2)), level)
    for level in (most * (1 + 1.1e-6), least * (1 - 1.1e-6)):
        with pytest.raises(ValueError, match="has noise levels"):
            D(np.ones((2, 2)), level)
    words = r"VP has noise levels 0\.002 \.\.\. 0\.8\d*: it has no time for "
    for level in (sigma, sigma / 1e6, -sigma, sigma * math.nan):
        with pytest.raises(ValueError, match=words):
            D(np.ones((2, 2)), level)
    with pytest.raises(ValueError, match=words + "40"):
        euler_maruyama(MIXTURE.denoiser, np.ones((2, 2)), [40.0, 0.1, 0.0],
                       rng=np.random.default_rng(0), process=short)  # fmt: skip


class Oracle:
    """The mixture's D, with the attributes of a Denoiser."""

    sigma_data, objective = 1.0, "edm"

    def __call__(self, x, sigma, cond=None):
        return MIXTURE.denoiser(x, sigma)


# Of other processes ------------------------------------------------------------------------


@KINDS
@ALL
def test_target_is_what_its_name_says(process, kind):
    """Made of x0 and n; the flow is the velocity along the path, by differences."""
    for sigma in LEVELS[1:]:
        t, (x0, noise, _) = process.time(sigma), noised(sigma)
        s, h = process.s(t), 1e-5 * process.time(sigma)
        alpha, beta = target(kind, process, t)

        def path(t, x0=x0, noise=noise):
            return process.perturb(x0, t, noise)

        expected = {
            "epsilon": noise,
            "x0": x0,
            "v": s * noise - s * sigma * x0,
            "flow": (path(t + h) - path(t - h)) / (2 * h),
            "score": -noise / (s * sigma),
        }[kind]
        np.testing.assert_allclose(alpha * x0 + beta * noise, expected, rtol=1e-6, atol=1e-6)


@KINDS
@ALL
def test_there_and_back(process, kind):
    """D to a prediction under a process, and that to a D again: exact to 1e-6, for a level and for
    one a row."""
    network = as_prediction(MIXTURE.denoiser, process, kind)
    D = as_denoiser(network, process, kind)
    for sigma in (*LEVELS[1:], LEVELS[1:]):
        x = noised(np.reshape(sigma, (-1, 1)), 4)[2]
        np.testing.assert_allclose(D(x, sigma), MIXTURE.denoiser(x, sigma), rtol=1e-6, atol=1e-6)


@ALL
def test_predictions_are_what_the_process_knows_itself(process):
    """The score's is its score, and the flow's the probability-flow ODE's velocity."""
    for sigma in LEVELS[1:]:
        t = process.time(sigma)
        x = process.s(t) * noised(sigma)[2]
        for kind, known in (("score", process.score), ("flow", process.velocity)):
            found = as_prediction(MIXTURE.denoiser, process, kind)(x, t)
            np.testing.assert_allclose(found, known(MIXTURE.denoiser, x, t), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("objective", "process"),
    [("epsilon", VP()), ("x0", VP()), ("v", VP()), ("flow", RectifiedFlow())],
)
def test_what_training_asks_for_is_what_the_process_predicts(objective, process):
    """c_skip and c_out against alpha and beta: a network trained here could be used as one of that
    process elsewhere."""
    for sigma in LEVELS:
        alpha, beta = target(objective, process, process.time(sigma))
        c_skip, c_out, _, _ = preconditioning(np.array([sigma]), 1.0, objective)
        assert c_skip[0] == pytest.approx(-beta / (alpha * sigma - beta), abs=1e-6)
        assert c_out[0] == pytest.approx(sigma / (alpha * sigma - beta), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "process"), [("v", VP()), ("epsilon", VP()), ("flow", RectifiedFlow())]
)
def test_trained_under_one_process_sampled_under_another(kind, process):
    """A perfect network of VP or rectified flow, sampled by Heun's method and by the reverse SDE of
    another process: as the mixture's own D."""
    network = as_prediction(MIXTURE.denoiser, process, kind)
    D, levels = as_denoiser(network, process, kind), karras_sigmas(12)
    x = 80 * np.random.default_rng(4).standard_normal((20, 2))
    np.testing.assert_allclose(
        heun(D, x, levels), heun(MIXTURE.denoiser, x, levels), rtol=1e-5, atol=1e-5
    )
    other = PROCESSES["subvp"]()
    drawn = [
        euler_maruyama(d, x, levels, rng=np.random.default_rng(5), process=other)
        for d in (D, MIXTURE.denoiser)
    ]
    np.testing.assert_allclose(*drawn, rtol=1e-4, atol=1e-4)


def test_a_condition_is_passed_on():
    """Here: which component."""
    process, x = VP(), noised(0.5)[2]
    for kind in PREDICTIONS:
        D = as_denoiser(as_prediction(MIXTURE.denoiser, process, kind), process, kind)
        np.testing.assert_allclose(
            D(x, 0.5, np.array([0.0, 1.0])), MIXTURE.denoiser(x, 0.5, np.array([0, 1])), rtol=1e-6
        )


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown objective 'noise': use one of edm, epsilon, x0"):
        Denoiser(None, 1.0, "noise")
    with pytest.raises(ValueError, match="unknown weighting 'snr': use one of target, likelihood"):
        loss_weight(LEVELS, 1.0, "edm", "snr")
    for call in (lambda: as_denoiser(None, VP(), "edm"), lambda: as_prediction(None, VP(), [])):
        with pytest.raises(ValueError, match=r"unknown prediction .*: use one of epsilon, x0, v"):
            call()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_a_network_is_asked_for_is_of_the_times_kind(prediction):
    t = np.array([0.2, 0.5, 0.9])
    alpha, beta = target(prediction, VP(), t)
    assert alpha.shape == beta.shape == (3,)
    for i, one in enumerate(t):
        found = target(prediction, VP(), float(one))
        assert all(isinstance(number, float) for number in found)
        assert found == pytest.approx((alpha[i], beta[i]))
