"""The mathematics of diffusion, independent of any network.

Everything meets at one function, `D(x, sigma, cond)`: given x = x0 + sigma n with white noise n,
the estimate of the clean x0. Read `denoiser` (how a network becomes a D, and what follows from
having one), then `process` (the ways in which data become noise), `samplers` (how a D turns noise
into a sample), and `oracle` (a D known in closed form, by which all are tested).
"""

from .denoiser import EDMDenoiser, edm_loss, edm_sigmas, guide, score
from .oracle import GaussianMixture
from .process import PROCESSES, VE, VP, CosineVP, Process, RectifiedFlow, SubVP
from .samplers import SAMPLERS, dpmpp_2m, euler, heun
from .schedules import SCHEDULES, karras_sigmas

__all__ = [
    "PROCESSES",
    "SAMPLERS",
    "SCHEDULES",
    "VE",
    "VP",
    "CosineVP",
    "EDMDenoiser",
    "GaussianMixture",
    "Process",
    "RectifiedFlow",
    "SubVP",
    "dpmpp_2m",
    "edm_loss",
    "edm_sigmas",
    "euler",
    "guide",
    "heun",
    "karras_sigmas",
    "score",
]
