"""The mathematics of diffusion, independent of any network.

Everything meets at one function, `D(x, sigma, cond)`: given x = x0 + sigma n with white noise n,
the estimate of the clean x0. Read `denoiser` (how a network becomes a D, and what follows from
having one), then `samplers` (how a D turns noise into a sample), then `oracle` (a D known in closed
form, by which both are tested).
"""

from .denoiser import EDMDenoiser, edm_loss, edm_sigmas, guide, score
from .oracle import GaussianMixture
from .samplers import SAMPLERS, dpmpp_2m, euler, euler_ancestral, heun, karras_sigmas

__all__ = [
    "SAMPLERS",
    "EDMDenoiser",
    "GaussianMixture",
    "dpmpp_2m",
    "edm_loss",
    "edm_sigmas",
    "euler",
    "euler_ancestral",
    "guide",
    "heun",
    "karras_sigmas",
    "score",
]
