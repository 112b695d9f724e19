"""Precision of whole networks, and trainings that never end.

The gradients of float32 against those of float64; networks on extreme inputs; 20,000 steps of each
optimizer with its average, against what can be said about them in closed form.
"""

import math

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.models.autoencoder import AutoencoderKL
from ldm_numpy.models.classifier import Classifier
from ldm_numpy.models.clip import CLIPTextModel
from ldm_numpy.models.unet import UNet
from ldm_numpy.nn import LayerNorm, Linear, Module, Parameter
from ldm_numpy.optim import EMA, AdamW, Muon
from ldm_numpy.tensor import Tensor, gradients

from . import tiny
from .test_model_gradients import flat

IDS = np.array([[7, 3, 599, 599], [7, 5, 8, 599], [7, 599, 599, 599]])


def autoencode(network, images, latents):
    return flat(*network.encode(images), network.decode(latents))


# A network and a call of it: (network, arrays, batch -> shapes of its arrays).
NETWORKS = {
    "UNet": (
        lambda: UNet(tiny.UNET),
        lambda network, x, states: network(x, np.linspace(0.1, 3, len(x)).astype(x.dtype), states),
        lambda n: [(n, 8, 8, tiny.UNET.in_channels), (n, 3, 16)],
    ),
    "AutoencoderKL": (
        lambda: AutoencoderKL(tiny.AUTOENCODER),
        autoencode,
        lambda n: [(n, 8, 8, 1), (n, 2, 2, tiny.AUTOENCODER.latent_channels)],
    ),
    "CLIPTextModel": (
        lambda: CLIPTextModel(tiny.TEXT),
        lambda network, shift: network(IDS[: len(shift)]) + shift,
        lambda n: [(n, 1, 1)],
    ),
    "Classifier": (
        lambda: Classifier(tiny.CLASSIFIER),
        lambda network, images: network(images),
        lambda n: [(n, 28, 28, 1)],
    ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def both_precisions(name: str, batch: int, fill):
    """The output and the gradients of every parameter and input, in float32 and in float64."""
    make, call, shapes = NETWORKS[name]
    rng = np.random.default_rng(3)
    arrays = [fill(rng.standard_normal(shape)) for shape in shapes(batch)]
    results, gy = [], None
    for dtype in (np.float32, np.float64):
        network = tiny.randomise(make()).astype(np.float32).astype(dtype)
        inputs = [Tensor(a.astype(np.float32).astype(dtype), requires_grad=True) for a in arrays]
        y = call(network, *inputs)
        gy = rng.standard_normal(y.shape).astype(np.float32) if gy is None else gy
        found = gradients(y, [*network.parameters(), *inputs], gy.astype(dtype))
        assert y.dtype == dtype and {g.dtype for g in found} == {np.dtype(dtype)}
        results.append([y.data, *found])
    return results


def norm(arrays) -> float:
    return math.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays))


@every_network
def test_gradients_in_single_precision(name):
    """Within 1e-5 by norm all together, within 1e-4 each that is not much smaller than that."""
    single, double = both_precisions(name, 3, lambda a: a)
    assert norm([single[0] - double[0]]) <= 1e-5 * norm([double[0]])
    total = norm(double[1:])
    assert norm([s - d for s, d in zip(single[1:], double[1:])]) <= 1e-5 * total
    for s, d in zip(single[1:], double[1:]):
        assert norm([s - d]) <= 1e-4 * (norm([d]) + 1e-3 * total)


EXTREMES = {
    "1e4": lambda a: 1e4 * a,
    "1e-30": lambda a: 1e-30 * a,
    "equal": lambda a: np.full_like(a, 0.3),
    "zero": lambda a: np.zeros_like(a),
}


@every_network
@pytest.mark.parametrize("fill", EXTREMES)
def test_a_network_of_extreme_inputs(name, fill):
    single, double = both_precisions(name, 1, EXTREMES[fill])
    for s, d in zip(single, double):
        assert np.isfinite(s).all() and np.isfinite(d).all()
    assert norm([single[0] - double[0]]) <= 1e-5 * norm([double[0]])
    assert norm([s - d for s, d in zip(single[1:], double[1:])]) <= 1e-3 * norm(double[1:])


@every_network
def test_a_network_of_an_empty_batch(name):
    """Nothing comes out, and nothing is learned from it; or it is refused."""
    try:
        y, *found = both_precisions(name, 0, lambda a: a)[0]
    except ValueError as error:
        assert "has no element" in str(error)
    else:
        assert y.size == 0 and all(not g.any() for g in found)


# Optimizers ----------------------------------------------------------------------------------

KINDS = AdamW, Muon
every_kind = pytest.mark.parametrize("kind", KINDS)


class Net(Module):
    """A matrix, a norm, a matrix and a vector: what each optimizer treats in its own way."""

    def __init__(self, seed: int = 0):
        self.first, self.norm, self.last = Linear(3, 8), LayerNorm(8), Linear(8, 1)
        self.initialise(seed)

    def forward(self, x):
        return self.last(ops.gelu(self.norm(self.first(x))))


def train(kind, steps: int, lr: float = 2e-3):
    """A regression with noise of variance 0.01, at a constant rate.

    Returns the losses (steps,), the optimizer, the average, and the average by its definition in
    float64.
    """
    rng = np.random.default_rng(1)
    x = rng.standard_normal((steps, 16, 3)).astype(np.float32)
    noise = 0.1 * rng.standard_normal((steps, 16, 1)).astype(np.float32)
    target = np.sin(x[..., :1]) + x[..., 1:2] * x[..., 2:] / 4 + noise
    net = Net()
    optimizer = kind(net.parameters(), weight_decay=0.01)
    average = EMA(optimizer, 0.999)
    expected, losses = optimizer.weights.astype(np.float64), []
    for i in range(steps):
        optimizer.zero_grad()
        loss = ops.mse_loss(net(x[i]), target[i])
        loss.backward()
        optimizer.clip_gradient(1.0)
        optimizer.step(lr)
        average.update()
        d = min(0.999, (2 + i) / (11 + i))
        expected = d * expected + (1 - d) * optimizer.weights
        losses.append(loss.item())
    return np.array(losses), optimizer, average, expected


@pytest.mark.slow
@every_kind
def test_twenty_thousand_steps(kind):
    losses, optimizer, average, expected = train(kind, 20_000)
    quarters = losses.reshape(4, -1).mean(1)
    assert quarters[1] < 0.02  # of which the noise is 0.01
    assert quarters[3] <= 1.02 * quarters[1]  # no drift upwards
    assert losses[-5000:].max() < 10 * quarters[3]  # and no outbreaks
    for array in (optimizer.weights, optimizer.m, optimizer.v, average.average):
        assert array.dtype == np.float32 and np.isfinite(array).all()
    assert (optimizer.v >= 0).all() and np.abs(optimizer.weights).max() < 10
    # Rounded once a step, with a memory of 1000 steps.
    np.testing.assert_allclose(average.average, expected, atol=1000 * 6e-8)
    wobble = np.abs(optimizer.weights - average.average).max()
    assert 1e-4 < wobble < 0.1  # it is an average of something that moves, and close to it


@every_kind
def test_a_thousand_steps(kind):
    """The same, as far as a thousand steps come."""
    losses, optimizer, average, expected = train(kind, 1000)
    assert losses[-200:].mean() < losses[:200].mean() / 2
    assert all(np.isfinite(a).all() for a in (optimizer.weights, optimizer.m, optimizer.v))
    np.testing.assert_allclose(average.average, expected, atol=1e-5)


def started(kind, dtype=np.float32, **options):
    """An optimizer of a matrix and a vector, 12 and 5 ones."""
    parameters = Parameter((4, 3)), Parameter((5,))
    for p in parameters:
        p.data = np.ones(p.shape, dtype)
    return kind(parameters, **options)


@every_kind
def test_without_gradients_weights_decay_and_nothing_else(kind):
    """w (1 - lr decay)^n for matrices, within the roundings of n products; vectors stay."""
    optimizer, n = started(kind, weight_decay=0.1), 20_000
    for _ in range(n):
        optimizer.step(1e-3)
    expected = (1 - 1e-4) ** n
    np.testing.assert_allclose(optimizer.weights[:12], expected, rtol=n * 6e-8)
    assert (optimizer.weights[12:] == 1).all()
    assert not optimizer.m.any() and not optimizer.v.any()


def test_a_constant_gradient_moves_adamw_by_its_rate():
    """m / c1 = g and sqrt(v / c2) = |g|, from the first step to the last: w - n lr sign g."""
    optimizer, n = started(AdamW), 20_000
    optimizer.gradient[...] = np.logspace(-4, 4, 17) * (-1) ** np.arange(17)
    for _ in range(n):
        optimizer.step(2**-13)
    expected = 1 - n * 2**-13 * np.sign(optimizer.gradient)
    np.testing.assert_allclose(optimizer.weights, expected, rtol=1e-3)


@every_kind
def test_when_gradients_cease_weights_come_to_rest(kind, rng):
    """Moments fade until they are the smallest numbers there are, without a 0 / 0."""
    optimizer = started(kind)
    optimizer.gradient[...] = rng.standard_normal(17)
    for _ in range(50):
        optimizer.step(1e-3)
    optimizer.zero_grad()
    for _ in range(12_000):
        optimizer.step(1e-3)
    rest = optimizer.weights.copy()
    optimizer.step(1e-3)
    np.testing.assert_array_equal(optimizer.weights, rest)
    assert np.isfinite(rest).all() and np.abs(optimizer.m).max() < 1e-40
    assert optimizer.v.max() < 1e-38


def test_an_average_of_what_stands_still_is_that():
    """The distance shrinks as the product of the decays, to a rounding of what 1 - d passes on."""
    optimizer, n = started(AdamW), 20_000
    average = EMA(optimizer, 0.999)
    average.average.fill(3)
    for t in range(1, n + 1):
        optimizer.step_count = t
        average.update()
        if t == 3000:
            left = math.prod(min(0.999, (1 + i) / (10 + i)) for i in range(1, t + 1))
            np.testing.assert_allclose(average.average, 1 + 2 * left, rtol=1000 * 6e-8)
    np.testing.assert_allclose(average.average, 1, rtol=1000 * 6e-8)


# Gradients of any size -----------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    "size", [1e-30, 1e-12, 1.0, 1e12, pytest.param(1e30, marks=pytest.mark.host)]
)
def test_a_clipped_gradient_of_any_size(kind, size, rng):
    """The norm is right, or 0 where squares are below the range; the step is that of float64."""
    g = size * rng.standard_normal(17)
    results = []
    for dtype in (np.float32, np.float64):
        optimizer = started(kind, dtype)
        optimizer.gradient[...] = g
        length = optimizer.clip_gradient(1.0)
        optimizer.step(0.1)
        results.append((optimizer.weights.copy(), optimizer.gradient.copy()))
    assert length == pytest.approx(np.linalg.norm(g), rel=1e-6)
    (single, clipped), (double, expected) = results
    np.testing.assert_allclose(clipped, expected, rtol=1e-5)
    np.testing.assert_allclose(single, double, rtol=1e-4)


@pytest.mark.host
@every_kind
@pytest.mark.parametrize("matrix", [False, True])
def test_a_step_refuses_a_gradient_whose_square_is_beyond_the_type(kind, matrix):
    optimizer = started(kind)
    optimizer.gradient[0 if matrix else -1] = 1e30
    with pytest.raises(ValueError, match="beyond float32: clip_gradient before the step"):
        optimizer.step(0.1)


@every_kind
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_gradient_that_is_no_number_shows_in_the_weights(kind, value):
    """There a training looks for it."""
    optimizer = started(kind)
    optimizer.gradient[-1] = value
    optimizer.clip_gradient(1.0)
    optimizer.step(0.1)
    assert not np.isfinite(optimizer.weights).all()


@every_kind
def test_no_gradient_is_no_step(kind):
    optimizer = started(kind)
    assert optimizer.clip_gradient(1.0) == 0
    optimizer.step(0.1)
    assert (optimizer.weights == 1).all()
