"""log p(x) of a model, by the probability-flow ODE.

Along the ODE a sample's density changes as the flow around it spreads (the instantaneous change of
variables, Chen et al. 2018, "Neural ordinary differential equations", Theorem 1). In u = ln(sigma),
where dx/du = x - D(x; sigma), and with d dimensions:

    log p(x; sigma_min) = log p(x(u_max); sigma_max) + integral of (d - tr J) du,   J = dD/dx

and at sigma_max the density is that of a Gaussian, for of the data no more than their size is left.
Song et al. 2021, section 4.3 and appendix D.2.

The trace of J costs d backward passes, one a dimension; or one, as the mean of v^T J v over random
signs v (Skilling 1989; Hutchinson 1990), which is right on the average and varies about it.
"""

import math

import numpy as np

from ..backend import array_module, to_device, to_host
from ..checks import positive, whole
from ..tensor import Tensor, gradients
from .ode import checked_tolerances, solve
from .process import checked_levels


def product(D, x, sigma: float, cond, v):
    """(D(x), J^T v) for arrays of x's shape, by one backward pass."""
    x = Tensor(x, requires_grad=True)
    y = D(x, sigma, cond)
    value = y.data
    return value, gradients(y, [x], v)[0]


def exact_trace(D, x, sigma: float, cond=None):
    """(D(x), tr J (N,)), by as many backward passes as a sample has dimensions."""
    xp, trace = array_module(x), 0
    for i in range(math.prod(x.shape[1:])):
        v = xp.zeros_like(x)
        v.reshape(len(x), -1)[:, i] = 1
        value, g = product(D, x, sigma, cond, v)
        trace = trace + g.reshape(len(x), -1)[:, i]
    return value, trace


def estimated_trace(D, x, sigma: float, cond, v):
    """(D(x), v^T J v (N,)), whose mean over v of independent signs is the trace."""
    value, g = product(D, x, sigma, cond, v)
    return value, (g * v).reshape(len(x), -1).sum(axis=1)


def log_likelihood(
    D,
    x,
    cond=None,
    *,
    rng: np.random.Generator | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> np.ndarray:
    """log p(x; sigma_min, cond) in nats, of samples x (N, ...); (N,) float64, on the host.

    Args:
        rng: draws the random signs, one for each number of x and the same along the whole curve;
            without it the trace is exact
        sigma_max: the prior is N(0, (sigma_max^2 + sigma_data^2) I); a mean m of the data that it
            leaves out moves the result by about |m| / sigma_max
        rtol, atol: of the solver, `scipy.integrate.solve_ivp` with "RK45"

    Raises ValueError for levels that do not rise, tolerances or a sigma_data that make no sense,
    where D is not finite, and where the solver gives up.
    """
    checked_levels(sigma_min, sigma_max)
    checked_tolerances(rtol, atol)
    positive("sigma_data", sigma_data)
    n, d, xp = len(x), math.prod(x.shape[1:]), array_module(x)
    device = "cpu" if xp is np else "gpu"
    signs = None
    if rng is not None:
        signs = to_device((2 * rng.integers(0, 2, x.shape) - 1).astype(x.dtype), device)

    def rate(u, state):
        at = xp.asarray(state[: n * d].reshape(x.shape), dtype=x.dtype)
        if signs is None:
            value, trace = exact_trace(D, at, math.exp(u), cond)
        else:
            value, trace = estimated_trace(D, at, math.exp(u), cond, signs)
        return np.concatenate([to_host(at - value).ravel(), d - to_host(trace)])

    start = np.concatenate([to_host(x).ravel().astype(np.float64), np.zeros(n)])
    state = solve(rate, [math.log(sigma_min), math.log(sigma_max)], start, rtol, atol)[:, -1]
    end, gained = state[: n * d].reshape(n, d), state[n * d :]
    variance = sigma_max**2 + sigma_data**2
    prior = -0.5 * ((end**2).sum(axis=1) / variance + d * math.log(2 * math.pi * variance))
    return prior + gained


def dequantise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole numbers 0 ... 255 as numbers in [-1, 1), float32, spread evenly over their bins:

        (k + u) / 128 - 1,     u uniform on [0, 1)

    (Theis et al. 2016, "A note on the evaluation of generative models")
    """
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 255):
        raise ValueError(f"pixels must be in 0 ... 255, not {pixels.min()} ... {pixels.max()}")
    u = rng.random(pixels.shape)
    return np.minimum((pixels + u) / 128 - 1, np.float32(1 - 2**-24)).astype(np.float32)


def bits_per_dimension(log_p: np.ndarray, dimensions: int) -> np.ndarray:
    """Bits for each of the whole numbers behind `dequantise`d samples, from their log p in nats:

        -log2 p / d + 7

    A bin is 1/128 wide, so its probability is the mean of p over it, over 128; by Jensen's
    inequality the mean of the result over u is an upper bound.
    """
    return 7 - log_p / (whole("dimensions", dimensions, at_least=1) * math.log(2))
