"""Noise levels for a sampler: n of them, falling from sigma_max to sigma_min, and then 0.

All have the same signature, so that they can be swapped:

    schedule(n, sigma_min=0.002, sigma_max=80.0) -> n + 1 Python floats, the ends of n steps

For n = 1 the levels are sigma_max and 0. The last step, from sigma_min to 0, lands on D. Each
raises ValueError unless n >= 1 and 0 < sigma_min < sigma_max.
"""

import numpy as np

from ..checks import number, whole
from .process import CosineVP, checked_levels


def karras_sigmas(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> list[float]:
    """Equal steps of sigma^(1/rho):

        sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Steps shrink with sigma: where structure appears, errors are visible. Larger rho means shorter
    steps at low noise. Karras et al. 2022, eq. 5 (`get_sigmas_karras` in k-diffusion). Raises
    ValueError unless 0.1 <= rho <= 1000.
    """
    number("rho", rho, 0.1, 1000)
    checked_levels(sigma_min, sigma_max)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _levels(n, sigma_min, sigma_max, lambda part: (high + part * (low - high)) ** rho)


def linear_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> list[float]:
    """Equal steps of sigma: nearly all of them at high noise. For comparison."""
    return karras_sigmas(n, sigma_min, sigma_max, rho=1)


def log_uniform_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> list[float]:
    """Equal steps of ln(sigma), as many from 80 to 8 as from 0.08 to 0.008.

    The levels of SMLD (Song and Ermon 2019), and Karras's for infinite rho.
    """
    checked_levels(sigma_min, sigma_max)
    ratio = sigma_min / sigma_max
    return _levels(n, sigma_min, sigma_max, lambda part: sigma_max * ratio**part)


def cosine_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> list[float]:
    """Equal steps of the time in which data fade as a cosine (`CosineVP`)."""
    process = CosineVP(sigma_min, sigma_max)
    first, last = process.t_max, process.t_min
    return _levels(
        n, sigma_min, sigma_max, lambda part: process.sigma(first + part * (last - first))
    )


DDPM_BETAS = (0.00085, 0.012)  # of step 1 and step 1,000, on a line in their roots


def ddpm_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> list[float]:
    """Levels of Stable Diffusion's 1,000 training steps, every so many of them.

        sigma_i^2 = (1 - alpha_bar_i) / alpha_bar_i     alpha_bar_i = (1 - beta_1) ... (1 - beta_i)
        sqrt(beta_i) from sqrt(0.00085) to sqrt(0.012), evenly

    n of those between sigma_min and sigma_max, with the first and the last of them, evenly by their
    number (0.029 ... 14.6 where nothing is left out). Ho et al. 2020 have beta_i itself on a line,
    from 1e-4 to 0.02; Rombach et al. 2022 its root ("scaled_linear" in diffusers). Raises
    ValueError, too, where fewer than n lie between.
    """
    checked_levels(sigma_min, sigma_max)
    first, last = np.sqrt(DDPM_BETAS)
    alpha_bars = np.cumprod(1 - np.linspace(first, last, 1000) ** 2)
    sigmas = np.sqrt((1 - alpha_bars) / alpha_bars)
    sigmas = sigmas[(sigmas >= sigma_min) & (sigmas <= sigma_max)][::-1]
    if whole("the number of steps", n, at_least=1) > len(sigmas):
        raise ValueError(f"DDPM has {len(sigmas)} levels between {sigma_min:g} and {sigma_max:g}, "
                         f"not {n}")  # fmt: skip
    chosen = np.linspace(0, len(sigmas) - 1, n).round().astype(int)
    return [*(float(sigma) for sigma in sigmas[chosen]), 0.0]


SCHEDULES = {
    "karras": karras_sigmas,
    "linear": linear_sigmas,
    "cosine": cosine_sigmas,
    "log_uniform": log_uniform_sigmas,
    "ddpm": ddpm_sigmas,
}


def _levels(n: int, sigma_min: float, sigma_max: float, level) -> list[float]:
    """level(0) ... level(1) at even parts of the way, and 0."""
    whole("the number of steps", n, at_least=1)
    checked_levels(sigma_min, sigma_max)
    return [float(level(i / max(n - 1, 1))) for i in range(n)] + [0.0]
