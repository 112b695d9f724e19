"""From noise to a sample: one function a sampler, each on any D(x, sigma, cond).

The noised densities p(x; sigma) of all levels are joined by one differential equation, the
probability-flow ODE (Song et al. 2021, eq. 13; Karras et al. 2022, eq. 1 with sigma(t) = t):

    dx / dsigma = -sigma grad_x log p(x; sigma) = (x - D(x; sigma)) / sigma

Start with x ~ p(.; sigma_max), practically sigma_max times white noise, and follow it down to
sigma = 0: x is then a sample of the data. Samplers differ in how they take their steps:

    euler             first order, 1 evaluation of D a step
    heun              second order, 2 evaluations
    dpmpp_2m          second order, 1 evaluation: it remembers the one before
    euler_ancestral   first order, and random: removes more noise than asked, then adds fresh noise

All have the same signature, so that they can be swapped:

    sampler(D, x, sigmas, cond=None, *, rng=None, callback=None) -> array of x's shape

        x         array (N, ...), a sample of p(.; sigmas[0]); never written to
        sigmas    noise levels, falling, as from `karras_sigmas`; the last may be 0
        cond      passed through to D
        rng       numpy Generator of the random samplers' noise; the others have no use for it
        callback  called as callback(step, sigma, x) after each step, with step = 0, 1, ... and the
                  noise level that x has then

Levels are Python floats: on a GPU no step waits for a value to reach the host, and float32 stays
float32. ValueError is raised for levels that do not fall, or a random sampler without rng.
"""

import math
from itertools import pairwise

from ..backend import array_module


def karras_sigmas(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> list[float]:
    """n + 1 noise levels from sigma_max down to sigma_min, then 0: the ends of n steps.

        sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Steps shrink with sigma: where structure appears, errors are visible. Larger rho means shorter
    steps at low noise. Karras et al. 2022, eq. 5 (`get_sigmas_karras` in k-diffusion). For n = 1
    the levels are sigma_max and 0.

    Raises ValueError unless n >= 1, 0 < sigma_min < sigma_max and rho > 0.
    """
    if n < 1:
        raise ValueError(f"the number of steps must be at least 1, got {n}")
    if not (0 < sigma_min < sigma_max < math.inf):
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be positive, got {rho}")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(high + i / max(n - 1, 1) * (low - high)) ** rho for i in range(n)] + [0.0]


def euler(D, x, sigmas, cond=None, *, rng=None, callback=None):
    """Follow the tangent: x + (sigma_next - sigma) dx/dsigma. First order.

    A step to sigma = 0 lands on D. With the levels of a DDPM this is DDIM (Song et al. 2020,
    "Denoising Diffusion Implicit Models").
    Karras et al. 2022, Algorithm 1 without its correction (`sample_euler` in k-diffusion).
    """
    for step, sigma, sigma_next in _steps(sigmas):
        x = x + (sigma_next - sigma) * _slope(D, x, sigma, cond)
        _report(callback, step, sigma_next, x)
    return x


def heun(D, x, sigmas, cond=None, *, rng=None, callback=None):
    """An Euler step, then the same step with the mean of the slopes at both ends. Second order.

    A step to sigma = 0, where there is no slope, is Euler's: 2n - 1 evaluations for n steps.
    Karras et al. 2022, Algorithm 1 (`sample_heun` in k-diffusion).
    """
    for step, sigma, sigma_next in _steps(sigmas):
        slope = _slope(D, x, sigma, cond)
        trial = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope = (slope + _slope(D, trial, sigma_next, cond)) / 2
            trial = x + (sigma_next - sigma) * slope
        x = trial
        _report(callback, step, sigma_next, x)
    return x


def dpmpp_2m(D, x, sigmas, cond=None, *, rng=None, callback=None):
    """Exact for constant D, with D extrapolated to the middle of the step from two evaluations.

    In t = -ln(sigma) the ODE reads dx/dt = D - x, linear but for D. A constant D over a step of
    length h = ln(sigma / sigma_next) leads to exactly

        x_next = e^-h x + (1 - e^-h) D,      e^-h = sigma_next / sigma

    and the line through D at this step and at the last (h_last earlier), read at the middle,

        D + (D - D_last) h / (2 h_last)

    in place of D makes it second order. The first step, with nothing to look back on, and the last,
    whose h is infinite, take D itself.
    Lu et al. 2022, "DPM-Solver++", Algorithm 2 (`sample_dpmpp_2m` in k-diffusion).
    """
    last, h_last = None, None
    for step, sigma, sigma_next in _steps(sigmas):
        denoised = middle = D(x, sigma, cond)
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if last is not None:
                middle = denoised + (denoised - last) * (h / (2 * h_last))
            last, h_last = denoised, h
        keep = sigma_next / sigma
        x = keep * x + (1 - keep) * middle
        _report(callback, step, sigma_next, x)
    return x


def euler_ancestral(D, x, sigmas, cond=None, *, rng=None, callback=None):
    """An Euler step to sigma_down, below sigma_next, then fresh noise of size sigma_up on top.

        sigma_down = sigma_next^2 / sigma,     sigma_up = sqrt(sigma_next^2 - sigma_down^2)

    Independent noises add in variance, so x arrives at the level sigma_next; and sigma_up^2 =
    sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2 is the variance of the posterior
    q(x_next | x, x0) of DDPM (Ho et al. 2020, eq. 7). New noise forgets old errors, and makes the
    result depend on rng; it does not settle as steps are added.
    `sample_euler_ancestral` in k-diffusion.
    """
    if rng is None:
        raise ValueError("euler_ancestral draws noise: give it a generator, rng=...")
    xp = array_module(x)
    for step, sigma, sigma_next in _steps(sigmas):
        sigma_down = sigma_next**2 / sigma
        sigma_up = math.sqrt(sigma_next**2 - sigma_down**2)
        x = x + (sigma_down - sigma) * _slope(D, x, sigma, cond)
        if sigma_up > 0:
            x = x + sigma_up * xp.asarray(rng.standard_normal(x.shape), dtype=x.dtype)
        _report(callback, step, sigma_next, x)
    return x


SAMPLERS = {f.__name__: f for f in (euler, heun, dpmpp_2m, euler_ancestral)}


def _slope(D, x, sigma: float, cond):
    """dx/dsigma of the probability-flow ODE."""
    return (x - D(x, sigma, cond)) / sigma


def _steps(sigmas) -> list[tuple[int, float, float]]:
    """(step, sigma, sigma_next) for each step, once the levels have been checked."""
    levels = [float(sigma) for sigma in sigmas]
    pairs = list(pairwise(levels))
    if not pairs:
        raise ValueError(f"sampling needs at least two noise levels, got {levels}")
    if not all(0 <= low < high < math.inf for high, low in pairs):
        raise ValueError(f"noise levels must fall, from finite to no less than 0; got {levels}")
    return [(step, high, low) for step, (high, low) in enumerate(pairs)]


def _report(callback, step: int, sigma: float, x) -> None:
    if callback is not None:
        callback(step, sigma, x)
