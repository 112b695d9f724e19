"""What a network is asked for, and what its errors weigh.

A network sees data with noise and is asked for the data, for the noise, or for a mixture of both:

    T = alpha x0 + beta n,     x = x0 + sigma n

Whichever it is, its answer and x together give x0 = (sigma T - beta x) / (alpha sigma - beta). So
each is a choice of c_skip and c_out in D = c_skip x + c_out F, where T = (x0 - c_skip x) / c_out is
what F learns:

    objective   T                               c_skip                   c_out
    edm         of variance 1 at every level    d^2 / (sigma^2 + d^2)    sigma d c_in(d)
    epsilon     n                               1                        -sigma
    x0          x0                              0                        1
    v           (n - sigma x0) c_in(1)          1 / (1 + sigma^2)        -sigma c_in(1)
    flow        n - x0                          1 / (1 + sigma)          -sigma / (1 + sigma)

with d the standard deviation of the data, and c_in(d) = 1 / sqrt(sigma^2 + d^2): Karras et al.
2022, Table 1; Ho et al. 2020, eq. 14; Salimans and Ho 2022, "Progressive distillation", appendix D;
Lipman et al. 2022. For d = 1, v is edm but for its sign.

If all squared errors of F count the same, those of D count 1 / c_out^2: the weighting "target". Two
others do not depend on the objective:

    likelihood  1 / sigma^2: with levels even in ln(sigma), the loss bounds -log p(x0) but for a
                constant (Song et al. 2021, "Maximum likelihood training of score-based diffusion
                models", Theorem 1)
    min_snr     min(1 / sigma^2, 5): little noise does not outweigh all else (Hang et al. 2023,
                "Efficient diffusion training via min-SNR weighting strategy")
"""

from collections.abc import Callable
from typing import NamedTuple

from ..backend import array_module
from ..checks import known
from .process import Process, along, checked_process, checked_time


class Objective(NamedTuple):
    """Functions of sigma and sigma_data: c_skip, c_out, and 1 / c_out^2."""

    skip: Callable
    out: Callable
    weight: Callable


def _root(x):
    return array_module(x).sqrt(x)


OBJECTIVES = {
    "edm": Objective(
        lambda sigma, d: d**2 / (sigma**2 + d**2),
        lambda sigma, d: sigma * d / _root(sigma**2 + d**2),
        lambda sigma, d: (sigma**2 + d**2) / (sigma * d) ** 2,
    ),
    "epsilon": Objective(
        lambda sigma, d: sigma * 0 + 1, lambda sigma, d: -sigma, lambda sigma, d: 1 / sigma**2
    ),
    "x0": Objective(
        lambda sigma, d: sigma * 0, lambda sigma, d: sigma * 0 + 1, lambda sigma, d: sigma * 0 + 1
    ),
    "v": Objective(
        lambda sigma, d: 1 / (1 + sigma**2),
        lambda sigma, d: -sigma / _root(1 + sigma**2),
        lambda sigma, d: (1 + sigma**2) / sigma**2,
    ),
    "flow": Objective(
        lambda sigma, d: 1 / (1 + sigma),
        lambda sigma, d: -sigma / (1 + sigma),
        lambda sigma, d: ((1 + sigma) / sigma) ** 2,
    ),
}
WEIGHTINGS = ("target", "likelihood", "min_snr")
MIN_SNR_GAMMA = 5.0


def loss_weight(sigma, sigma_data: float, objective: str = "edm", weighting: str = "target"):
    """What the squared error of D counts at noise levels `sigma`, an array."""
    known("weighting", weighting, WEIGHTINGS)
    known("objective", objective, OBJECTIVES)
    if weighting == "target":
        return OBJECTIVES[objective].weight(sigma, sigma_data)
    weight = 1 / sigma**2
    return weight if weighting == "likelihood" else weight.clip(None, MIN_SNR_GAMMA)


# Networks of other processes ---------------------------------------------------------------

PREDICTIONS = ("epsilon", "x0", "v", "flow", "score")


def target(prediction: str, process: Process, t):
    """(alpha, beta) of what a network is asked for at time t of a process, x_t = s (x0 + sigma n):

        epsilon   n                          v      s n - s sigma x0
        x0        x0                         flow   dx_t/dt = s' x0 + (s sigma)' n
        score     -n / (s sigma), the mean of which is grad log p_t(x_t)
    """
    known("prediction", prediction, PREDICTIONS)
    s, deviation = checked_process(process).kernel(t)
    zero = 0.0 * s
    if prediction == "flow":
        rate = process.f(t)
        return rate * s, rate * deviation + process.g_squared(t) / (2 * deviation)
    return {
        "epsilon": (zero, zero + 1),
        "x0": (zero + 1, zero),
        "v": (-deviation, s),
        "score": (zero, -1 / deviation),
    }[prediction]


def as_denoiser(network, process: Process, prediction: str):
    """The D of a network that was trained under a process: network(x_t, t, cond) -> T.

    It can then be sampled under any other. Raises ValueError for an unknown prediction and for what
    is no process, and D does for levels that the process does not reach.
    """
    known("prediction", prediction, PREDICTIONS)
    checked_process(process)

    def D(x, sigma, cond=None):
        t = checked_time(process, sigma)
        alpha, beta = target(prediction, process, t)
        answer = network(x * along(process.s(t), x), t, cond)
        return (answer * along(sigma, x) - x * along(beta, x)) / along(alpha * sigma - beta, x)

    return D


def as_prediction(D, process: Process, prediction: str):
    """The reverse: what a network trained under a process would answer, network(x_t, t, cond) -> T,
    as D has it."""
    known("prediction", prediction, PREDICTIONS)
    checked_process(process)

    def network(x_t, t, cond=None):
        alpha, beta = target(prediction, process, t)
        sigma = process.sigma(t)
        x = x_t / along(process.s(t), x_t)
        x0 = D(x, sigma, cond)
        return x0 * along(alpha, x) + (x - x0) * along(beta / sigma, x)

    return network
