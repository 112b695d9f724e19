"""Preconditioning, loss, score and guidance on Gaussian data, where the answers are formulas."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.diffusion import (
    Denoiser,
    GaussianMixture,
    denoising_loss,
    edm_sigmas,
    score,
)
from ldm_numpy.diffusion.denoiser import (
    per_sample,
    preconditioning,
    stratified_normals,
)
from ldm_numpy.diffusion.objectives import loss_weight
from ldm_numpy.gradcheck import check_gradients
from ldm_numpy.tensor import Tensor

LEVELS = np.array([0.002, 0.1, 0.5, 2.0, 80.0])


def zero(x, timestep, cond):
    return x * 0.0


def test_preconditioning_at_known_points():
    """At sigma = sigma_data data and noise are equal: everything is a half, or its root."""
    c_skip, c_out, c_in, c_noise = preconditioning(np.array([0.5]), 0.5)
    np.testing.assert_allclose(
        [c_skip[0], c_out[0], c_in[0], c_noise[0]],
        [1 / 2, math.sqrt(1 / 8), math.sqrt(2), 250 * math.log(0.5)],
    )
    np.testing.assert_allclose(preconditioning(np.array([1.0]), 0.5)[3], 0)


def test_input_and_target_of_the_network_have_variance_one():
    rng, n, sigma_data = np.random.default_rng(0), 40_000, 0.7
    x0, noise = sigma_data * rng.standard_normal((2, n)) * [[1], [1 / sigma_data]]
    c_skip, c_out, c_in, _ = preconditioning(LEVELS[:, None], sigma_data)
    x = x0 + LEVELS[:, None] * noise  # (levels, n)
    # The variance of n normal numbers has the standard error sqrt(2 / n); 5 of them.
    tolerance = 5 * math.sqrt(2 / n)
    np.testing.assert_allclose((c_in * x).var(axis=1), 1, atol=tolerance)
    np.testing.assert_allclose(((x0 - c_skip * x) / c_out).var(axis=1), 1, atol=tolerance)


def test_the_network_sees_what_the_definition_says():
    seen = {}

    def network(x, timestep, cond):
        seen.update(x=x, timestep=timestep, cond=cond)
        return x * 0.0 + 1.0

    cond, x = object(), np.random.default_rng(1).standard_normal((5, 4, 3, 2)).astype(np.float32)
    y = Denoiser(network, 0.5)(x, LEVELS, cond)
    column = LEVELS.reshape(5, 1, 1, 1)
    c_skip, c_out, c_in, c_noise = preconditioning(column, 0.5)
    assert seen["cond"] is cond and isinstance(seen["x"], Tensor)
    assert seen["timestep"].shape == (5,) and seen["timestep"].dtype == np.float32
    np.testing.assert_allclose(seen["timestep"], c_noise.ravel(), rtol=1e-5)
    np.testing.assert_allclose(seen["x"].data, c_in * x, rtol=1e-5)
    np.testing.assert_allclose(y, c_skip * x + c_out, rtol=1e-4, atol=1e-6)
    assert isinstance(y, np.ndarray) and y.dtype == np.float32
    one_level = Denoiser(network, 0.5)(x, 2.0, cond)
    np.testing.assert_array_equal(one_level[3], y[3])


def test_arrays_leave_no_graph_and_tensors_carry_one():
    w = Tensor(np.eye(3), requires_grad=True)
    outputs = []

    def network(x, timestep, cond):
        outputs.append(x @ w)
        return outputs[-1]

    D, x = Denoiser(network, 1.0), np.random.default_rng(2).standard_normal((4, 3))
    assert isinstance(D(x, 1.0), np.ndarray) and not outputs[-1].requires_grad
    y = D(Tensor(x), 1.0)
    assert isinstance(y, Tensor) and y.requires_grad
    np.testing.assert_array_equal(y.data, D(x, 1.0))


@pytest.mark.parametrize("sigma", [0.3, np.array([0.1, 1.0, 10.0])])
def test_gradients_reach_input_network_and_condition(sigma):
    rng = np.random.default_rng(3)
    x, w, cond = rng.standard_normal((3, 4)), rng.standard_normal((4, 4)), rng.standard_normal(4)

    def network_with(w):
        return lambda x, timestep, cond: ops.tanh(x @ w) * cond

    def denoise(x, w, cond):
        return Denoiser(network_with(w), 0.8)(x, sigma, cond)

    check_gradients(denoise, [x, w, cond])

    def score_of(x, w, cond):
        return score(Denoiser(network_with(w), 0.8), x, sigma, cond)

    check_gradients(score_of, [x, w, cond])
    x0, noise = rng.standard_normal((2, 3, 4))
    level = np.broadcast_to(sigma, 3)

    def loss(w, cond):
        return denoising_loss(Denoiser(network_with(w), 0.8), x0, level, noise, cond)

    check_gradients(loss, [w, cond])


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("spread", [0.2, 0.6, 2.0])
def test_loss_on_gaussian_data_is_what_theory_says(sigma, spread):
    """Data of standard deviation `spread`, preconditioned for 0.6: known loss of F = 0, and of the
    ideal F, whose D = c x with c = spread^2 / (spread^2 + sigma^2) has error spread^2 sigma^2 /
    (spread^2 + sigma^2). Where spread = 0.6 both are 1."""
    rng, n, sigma_data = np.random.default_rng(4), 20_000, 0.6
    x0, noise = rng.standard_normal((2, n, 1))
    x0 *= spread
    c = spread**2 / (spread**2 + sigma**2)
    c_skip, c_out, c_in, _ = preconditioning(np.array(sigma), sigma_data)
    weight = loss_weight(sigma, sigma_data)

    def ideal(x, timestep, cond):
        return x * float((c - c_skip) / (c_out * c_in))

    expected = {
        ideal: weight * spread**2 * sigma**2 / (spread**2 + sigma**2),
        zero: weight * ((1 - c_skip) ** 2 * spread**2 + c_skip**2 * sigma**2),
    }
    for network, theory in expected.items():
        loss = denoising_loss(Denoiser(network, sigma_data), x0, np.full(n, sigma), noise)
        assert loss.shape == ()
        # A mean of n squared normal numbers has the relative standard error sqrt(2 / n).
        assert loss.item() == pytest.approx(float(theory), rel=5 * math.sqrt(2 / n))
        if spread == sigma_data:
            assert float(theory) == pytest.approx(1)


def test_a_network_of_zeros_loses_one_over_all_levels_and_any_data_of_that_spread():
    rng, n = np.random.default_rng(5), 20_000
    x0 = rng.choice([-1.0, 1.0], size=(n, 2)).astype(np.float32)  # sigma_data = 1, far from normal
    noise = rng.standard_normal((n, 2)).astype(np.float32)
    sigma = edm_sigmas(rng.standard_normal(n).astype(np.float32))
    # Squares of a sum of a normal number and a sign have variance at most 2: as above.
    loss = denoising_loss(Denoiser(zero, 1.0), x0, sigma, noise)
    assert loss.dtype == np.float32
    assert loss.item() == pytest.approx(1, abs=5 * math.sqrt(2 / (2 * n)))


def test_the_loss_is_lowest_for_the_true_denoiser():
    """Of a mixture's denoiser and versions of it that are a little off, the exact one wins; and as
    the data has structure, it does better than the zero network's 1."""
    mixture = GaussianMixture([1, 1], [[-1.0], [1.0]], np.full((2, 1, 1), 0.01))
    rng, n = np.random.default_rng(6), 20_000
    x0, noise, sigma = mixture.sample(n, rng), rng.standard_normal((n, 1)), np.full(n, 0.8)

    class Scaled:
        sigma_data, objective = 1.0, "edm"

        def __init__(self, scale):
            self.scale = scale

        def __call__(self, x, sigma, cond):
            return mixture.denoiser(x, sigma) * self.scale

    exact, less, more = (denoising_loss(Scaled(s), x0, sigma, noise).item() for s in (1, 0.8, 1.2))
    assert exact < min(less, more) < 0.9


def test_training_levels_are_log_normal():
    normals = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_allclose(np.log(edm_sigmas(normals)), [-2.4, -1.2, 1.2])
    np.testing.assert_allclose(np.log(edm_sigmas(normals, 0.5, 2.0)), [-1.5, 0.5, 4.5])


def two_hills():
    """Two classes in two dimensions; a condition is a row of component weights."""
    return GaussianMixture([0.7, 0.3], [[-1.0, 0], [1.0, 0.5]], np.stack([np.eye(2) * 0.3] * 2))


def test_stratified_levels_are_normal_and_one_in_every_stratum():
    rng = np.random.default_rng(5)
    batches = np.stack([stratified_normals(8, rng) for _ in range(4000)])  # (4000, 8)
    assert batches.dtype == np.float32
    places = [NormalDist().cdf(float(z)) * 8 for z in batches[0]]
    assert [int(place) for place in places] == list(range(8))
    assert np.ptp([place % 1 for place in places]) < 1e-3  # all moved by one number
    assert abs(batches.mean()) < 0.01 and abs(batches.std() - 1) < 0.01
    assert batches.mean(1).std() < 0.2  # of independent numbers, 1 / sqrt(8) = 0.35


@pytest.mark.parametrize("n", [1, 2, 64, 128])
@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_no_level_is_infinite(n, u):
    class Extreme:
        def random(self):
            return u

    z = stratified_normals(n, Extreme())
    most = 7.0345  # all but 1e-12 of a normal distribution is below
    assert np.isfinite(z).all()
    assert z[0 if u == 0 else -1] == pytest.approx(-most if u == 0 else most, abs=1e-4)


def test_score_takes_a_level_a_sample():
    m, x = two_hills(), np.random.default_rng(10).standard_normal((3, 2))
    levels = np.array([0.1, 1.0, 10.0])
    np.testing.assert_allclose(score(m.denoiser, x, levels), m.score(x, levels), atol=1e-10)


ARRAY = pytest.param(np.array([1.0, 0.0]), marks=pytest.mark.host)  # a GPU is not waited for


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf, ARRAY])
def test_impossible_levels_are_refused(sigma):
    with pytest.raises(ValueError, match="positive and finite"):
        Denoiser(zero, 0.5)(np.zeros((2, 3)), sigma)


def test_other_bad_input_is_refused():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        per_sample(np.ones(3), x)
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        per_sample(np.ones((2, 1)), x)
    for sigma_data in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma_data"):
            Denoiser(zero, sigma_data)
    with pytest.raises(ValueError, match="P_mean"):
        edm_sigmas(np.zeros(2), P_mean=np.nan)
    for n in (0, 1.5):
        with pytest.raises(ValueError, match="n must be a whole number"):
            stratified_normals(n, np.random.default_rng(0))
    with pytest.raises(ValueError, match="P_std"):
        edm_sigmas(np.zeros(2), P_std=0)
    with pytest.raises(ValueError, match="noise has shape"):
        denoising_loss(Denoiser(zero, 1.0), x, np.ones(2), x[:1])
