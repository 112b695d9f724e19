"""From noise to a sample: one function a sampler, each on any D(x, sigma, cond).

The noised densities p(x; sigma) of all levels are joined by one differential equation, the
probability-flow ODE (Song et al. 2021, eq. 13; Karras et al. 2022, eq. 1 with sigma(t) = t):

    dx / dsigma = -sigma grad_x log p(x; sigma) = (x - D(x; sigma)) / sigma

Start with x ~ p(.; sigma_max), practically sigma_max times white noise, and follow it down to
sigma = 0: x is then a sample of the data. The same densities are joined by stochastic differential
equations too, which remove more noise than the ODE and add fresh noise. In order of reading:

    euler                the ODE, first order
    heun                 second order, two evaluations of D a step
    dpmpp_2m             second order, one evaluation: it remembers the one before
    probability_flow     to a tolerance, by scipy's solver, in as many steps as that takes
    ddim                 from the ODE (eta = 0) to DDPM (eta = 1)
    ddpm                 every step a draw from the posterior of the step before
    dpmpp_2m_sde         dpmpp_2m, for the SDE
    edm_stochastic       Heun's, after a little noise has been added
    euler_maruyama       the reverse SDE of any process, as it stands
    predictor_corrector  steps of the reverse SDE, and Langevin's in between

All have the same signature, so that they can be swapped:

    sampler(D, x, sigmas, cond=None, *, rng=None, callback=None, ...) -> array of x's shape

        x         array (N, ...), a sample of p(.; sigmas[0]); never written to
        sigmas    noise levels, falling, as from `schedules`; the last may be 0, where x = D
        cond      passed through to D
        rng       numpy Generator of the random samplers' noise; the others have no use for it
        callback  called as callback(step, sigma, x) after each step, with step = 0, 1, ... and the
                  noise level that x has then

Levels are Python floats: on a GPU no step waits for a value to reach the host, and float32 stays
float32. ValueError is raised for levels that do not fall, or a random sampler without rng.
"""

import math
from itertools import pairwise
from numbers import Real

from ..backend import array_module, to_host
from ..checks import known, number, positive, shown, whole
from .denoiser import score
from .ode import checked_tolerances, solve
from .process import VE, Process, checked_process, checked_time


def euler(D, x, sigmas, cond=None, *, rng=None, callback=None):
    """Follow the tangent: x + (sigma_next - sigma) dx/dsigma. First order.

    A step to sigma = 0 lands on D. With the levels of a DDPM this is DDIM (Song et al. 2020,
    "Denoising Diffusion Implicit Models").
    Karras et al. 2022, Algorithm 1 without its correction (`sample_euler` in k-diffusion).
    """
    for step, sigma, sigma_next in _steps(x, sigmas):
        x = _euler_step(D, x, sigma, sigma_next, cond)
        _report(callback, step, sigma_next, x)
    return x


def heun(D, x, sigmas, cond=None, *, rng=None, callback=None):
    """An Euler step, then the same step with the mean of the slopes at both ends. Second order.

    A step to sigma = 0, where there is no slope, is Euler's: 2n - 1 evaluations for n steps.
    Karras et al. 2022, Algorithm 1 (`sample_heun` in k-diffusion).
    """
    for step, sigma, sigma_next in _steps(x, sigmas):
        x = _heun_step(D, x, sigma, sigma_next, cond)
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
    for step, sigma, sigma_next in _steps(x, sigmas):
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


def probability_flow(
    D, x, sigmas, cond=None, *, rng=None, callback=None, rtol: float = 1e-5, atol: float = 1e-5
):
    """The ODE to a tolerance: Runge and Kutta's pair of orders 5 and 4 chooses the steps.

    In u = ln(sigma), where dx/du = x - D. Of `sigmas` the ends count, and where the callback looks
    in; a last level of 0 is reached from the one before by an Euler step.
    Song et al. 2021, section 4.3 and appendix D.2 (`scipy.integrate.solve_ivp`, "RK45"; it works on
    the host, in float64).

    Raises ValueError unless 1e-12 <= rtol <= 1 and atol > 0, where D is not finite, and where the
    solver gives up.
    """
    checked_tolerances(rtol, atol)
    steps = _steps(x, sigmas)
    xp, shape, dtype = array_module(x), x.shape, x.dtype
    levels = [high for _, high, _ in steps] + [low for *_, low in steps[-1:] if low > 0]

    def on_device(flat):
        return xp.asarray(flat.reshape(shape), dtype=dtype)

    def slope(u, flat):
        x = on_device(flat)
        return to_host(x - D(x, math.exp(u), cond)).ravel()

    if len(levels) > 1:
        times = [math.log(sigma) for sigma in levels]
        start = to_host(x).astype("float64").ravel()
        states = solve(slope, times, start, rtol, atol)
        for step, sigma in enumerate(levels[1:]):
            x = on_device(states[:, step + 1])
            _report(callback, step, sigma, x)
    if steps[-1][2] == 0:
        x = D(x, levels[-1], cond)
        _report(callback, len(steps) - 1, 0.0, x)
    return x


def ddim(D, x, sigmas, cond=None, *, rng=None, callback=None, eta: float = 0.0):
    """An Euler step to sigma_down, below sigma_next, then fresh noise of size sigma_up on top.

        sigma_up = eta sigma_next sqrt(1 - (sigma_next / sigma)^2)
        sigma_down^2 = sigma_next^2 - sigma_up^2

    Independent noises add in variance, so x arrives at the level sigma_next. With eta = 0 this is
    `euler`, with eta = 1 `ddpm`. Song et al. 2020, "Denoising Diffusion Implicit Models", eq. 12
    and 16, for x / sqrt(alpha_bar). Raises ValueError unless 0 <= eta <= 1.
    """
    number("eta", eta, 0, 1)
    noise = _noise("ddim", x, rng) if eta > 0 else None
    for step, sigma, sigma_next in _steps(x, sigmas):
        sigma_up = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        sigma_down = math.sqrt(sigma_next**2 - sigma_up**2)
        x = x + (sigma_down - sigma) * _slope(D, x, sigma, cond)
        if sigma_up > 0:
            x = x + sigma_up * noise()
        _report(callback, step, sigma_next, x)
    return x


def ddpm(D, x, sigmas, cond=None, *, rng=None, callback=None):
    """A draw from q(x_next | x, x0), the posterior of the noising, with D for x0:

        x_next ~ N(D + (sigma_next / sigma)^2 (x - D), sigma_next^2 (1 - (sigma_next / sigma)^2))

    New noise forgets old errors, and makes the result depend on rng; it does not settle as steps
    are added. Ho et al. 2020, "Denoising diffusion probabilistic models", eq. 6 and 7, for
    x / sqrt(alpha_bar) (`sample_euler_ancestral` in k-diffusion).
    """
    return ddim(D, x, sigmas, cond, rng=_given("ddpm", rng), callback=callback, eta=1.0)


def dpmpp_2m_sde(D, x, sigmas, cond=None, *, rng=None, callback=None):
    """`dpmpp_2m` for the SDE, dx = 2 (D - x) dt + noise: exact but for the changes of D.

        x_next = e^-2h x + (1 - e^-2h) D + sigma_next sqrt(1 - e^-2h) z

    Lu et al. 2022, "DPM-Solver++", section 5 (`sample_dpmpp_2m_sde` in k-diffusion, "midpoint").
    """
    noise = _noise("dpmpp_2m_sde", x, rng)
    last, h_last = None, None
    for step, sigma, sigma_next in _steps(x, sigmas):
        denoised = middle = D(x, sigma, cond)
        if sigma_next > 0:
            h = math.log(sigma / sigma_next)
            if last is not None:
                middle = denoised + (denoised - last) * (h / (2 * h_last))
            last, h_last = denoised, h
        keep = (sigma_next / sigma) ** 2
        x = keep * x + (1 - keep) * middle
        if sigma_next > 0:
            x = x + sigma_next * math.sqrt(1 - keep) * noise()
        _report(callback, step, sigma_next, x)
    return x


def edm_stochastic(
    D,
    x,
    sigmas,
    cond=None,
    *,
    rng=None,
    callback=None,
    churn: float = 40.0,
    low: float = 0.05,
    high: float = 50.0,
    noise_scale: float = 1.003,
):
    """Each step first goes up, to (1 + gamma) sigma, by adding noise, then down as `heun` does.

        gamma = min(churn / steps, sqrt(2) - 1) where low <= sigma <= high, elsewhere 0

    Churn corrects what earlier steps did wrong, and D's own errors, at the cost of new ones; noise
    a little too large makes up for a D that removes too much. Karras et al. 2022, Algorithm 2
    (S_churn, S_tmin, S_tmax, S_noise; defaults as for ImageNet, in its Table 5). Raises ValueError
    for a setting that is negative or not finite (`high` may be infinite).
    """
    for name, value in {"churn": churn, "low": low, "noise_scale": noise_scale}.items():
        number(name, value, least=0)
    if not isinstance(high, Real) or not low <= high:
        raise ValueError(f"low must be at most high, got {low} and {high}")
    noise, steps = _noise("edm_stochastic", x, rng), _steps(x, sigmas)
    gamma = min(churn / len(steps), math.sqrt(2) - 1)
    for step, sigma, sigma_next in steps:
        if low <= sigma <= high and gamma > 0:
            raised = sigma * (1 + gamma)
            x = x + noise_scale * math.sqrt(raised**2 - sigma**2) * noise()
            sigma = raised
        x = _heun_step(D, x, sigma, sigma_next, cond)
        _report(callback, step, sigma_next, x)
    return x


def euler_maruyama(
    D, x, sigmas, cond=None, *, rng=None, callback=None, process: Process | None = None
):
    """The reverse SDE of a process, by the simplest method there is, in its own time and scale:

        x_t <- x_t + (t_next - t) (f x_t - g^2 score) + g sqrt(t - t_next) z,      x_t = s(t) x

    A last level of 0 lands on D. Song et al. 2021, eq. 6; order 1 in distribution. `process`: by
    default VE, whose scale is 1. Raises ValueError for levels that the process does not reach.
    """
    noise, steps = _noise("euler_maruyama", x, rng), _steps(x, sigmas)
    if process is None:
        least = min(low or high for _, high, low in steps)
        process = VE(sigma_min=min(0.002, least), sigma_max=max(80.0, steps[0][1]))
    checked_process(process)
    for step, sigma, sigma_next in steps:
        if sigma_next == 0:
            x = D(x, sigma, cond)
        else:
            t, t_next = checked_time(process, sigma), checked_time(process, sigma_next)
            scaled = process.s(t) * x
            scaled = scaled + (t_next - t) * process.reverse_drift(D, scaled, t, cond)
            scaled = scaled + process.diffusion(t) * math.sqrt(t - t_next) * noise()
            x = scaled / process.s(t_next)
        _report(callback, step, sigma_next, x)
    return x


def predictor_corrector(
    D, x, sigmas, cond=None, *, rng=None, callback=None, snr: float = 0.16, corrections: int = 1
):
    """A step of the reverse SDE, then, at the new level, steps of Langevin dynamics:

        predictor   x <- x + (sigma^2 - sigma_next^2) score + sqrt(sigma^2 - sigma_next^2) z
        corrector   x <- x + e score + sqrt(2 e) z,      e = 2 (snr |z| / |score|)^2

    Norms are means over the batch. Langevin's steps lead to the density of the level from wherever
    x is, but only as e goes to 0: with snr = 0.16 the variance comes out a few percent too large.
    Song et al. 2021, Algorithms 1, 2 and 4 (VE), with a last step to 0 that lands on D.
    Raises ValueError unless snr > 0 and corrections >= 0.
    """
    positive("snr", snr)
    whole("corrections", corrections, at_least=0)
    noise = _noise("predictor_corrector", x, rng)
    for step, sigma, sigma_next in _steps(x, sigmas):
        if sigma_next == 0:
            x = D(x, sigma, cond)
        else:
            removed = sigma**2 - sigma_next**2
            x = x + removed * score(D, x, sigma, cond) + math.sqrt(removed) * noise()
            for _ in range(corrections):
                slope, z = score(D, x, sigma_next, cond), noise()
                e = 2 * (snr * _mean_norm(z) / _mean_norm(slope)) ** 2
                x = x + e * slope + (2 * e) ** 0.5 * z
        _report(callback, step, sigma_next, x)
    return x


SAMPLERS = {
    f.__name__: f
    for f in (
        euler, heun, dpmpp_2m, probability_flow, ddim, ddpm, dpmpp_2m_sde, edm_stochastic,
        euler_maruyama, predictor_corrector,
    )
}  # fmt: skip


def _given(name: str, rng):
    if not hasattr(rng, "standard_normal"):
        raise ValueError(f"{name} draws noise: give it a generator, rng=..., not {shown(rng)}")
    return rng


def _noise(name: str, x, rng):
    """A function that draws white noise like x."""
    rng, xp = _given(name, rng), array_module(x)
    return lambda: xp.asarray(rng.standard_normal(x.shape), dtype=x.dtype)


def _mean_norm(x):
    xp = array_module(x)
    return xp.sqrt((x * x).reshape(len(x), -1).sum(axis=1)).mean()


def invert(D, x, sigmas, cond=None, method: str = "heun"):
    """The ODE followed upwards: from samples x at the least of the levels to the noise that leads
    to them, at the greatest. `sigmas` rise, from above 0.

    By the steps of "heun", or of "euler" (DDIM's inversion, Song et al. 2020, section 4.3).
    Raises ValueError for other methods, and for levels that do not rise.
    """
    steps = {"heun": _heun_step, "euler": _euler_step}
    known("method", method, steps)
    falling = _steps(x, list(sigmas)[::-1])
    if falling[-1][2] == 0:
        raise ValueError("at level 0 there is no slope to follow: start above it")
    for _, sigma_next, sigma in reversed(falling):
        x = steps[method](D, x, sigma, sigma_next, cond)
    return x


def _euler_step(D, x, sigma: float, sigma_next: float, cond):
    return x + (sigma_next - sigma) * _slope(D, x, sigma, cond)


def _heun_step(D, x, sigma: float, sigma_next: float, cond):
    slope = _slope(D, x, sigma, cond)
    trial = x + (sigma_next - sigma) * slope
    if sigma_next == 0:
        return trial
    return x + (sigma_next - sigma) * (slope + _slope(D, trial, sigma_next, cond)) / 2


def _slope(D, x, sigma: float, cond):
    """dx/dsigma of the probability-flow ODE."""
    return (x - D(x, sigma, cond)) / sigma


def checked_sigmas(sigmas) -> list[float]:
    """Noise levels as floats; ValueError unless they fall, two of them at least, none below 0."""
    try:
        levels = [float(sigma) for sigma in sigmas]
    except (TypeError, ValueError):
        raise ValueError(f"noise levels must be numbers, not {shown(sigmas)}") from None
    if len(levels) < 2:
        raise ValueError(f"sampling needs at least two noise levels, got {levels}")
    if not all(0 <= low < high < math.inf for high, low in pairwise(levels)):
        raise ValueError(
            f"noise levels must fall, from finite to no less than 0; got {shown(levels)}"
        )
    return levels


def _steps(x, sigmas) -> list[tuple[int, float, float]]:
    """(step, sigma, sigma_next) for each step, once the levels and x's type have been checked."""
    if x.dtype.kind != "f":
        raise ValueError(f"x must be of a floating-point type, not {x.dtype}: noise is no integer")
    return [(step, *pair) for step, pair in enumerate(pairwise(checked_sigmas(sigmas)))]


def _report(callback, step: int, sigma: float, x) -> None:
    if callback is not None:
        callback(step, sigma, x)
