"""The mathematics of diffusion, independent of any network.

Everything meets at one function, `D(x, sigma, cond)`: given x = x0 + sigma n with white noise n,
the estimate of the clean x0. Read `denoiser` (how a network becomes a D, and what follows from
having one), then `process` (the ways in which data become noise), `objectives` (what else networks
are asked for), `samplers` (how a D turns noise into a sample), `guidance` (a D made of others),
`likelihood` (what a D says of a sample's density), and `oracle` (a D known in closed form, by which
all are tested).
"""

from .denoiser import Denoiser, denoising_loss, edm_sigmas, score
from .guidance import classifier_guide, guide
from .likelihood import bits_per_dimension, dequantise, log_likelihood
from .objectives import OBJECTIVES, WEIGHTINGS, as_denoiser, as_prediction
from .oracle import GaussianMixture
from .process import PROCESSES, VE, VP, CosineVP, Process, RectifiedFlow, SubVP
from .samplers import SAMPLERS, dpmpp_2m, euler, euler_maruyama, heun
from .schedules import SCHEDULES, karras_sigmas

__all__ = [
    "OBJECTIVES",
    "PROCESSES",
    "SAMPLERS",
    "SCHEDULES",
    "VE",
    "VP",
    "WEIGHTINGS",
    "CosineVP",
    "Denoiser",
    "GaussianMixture",
    "Process",
    "RectifiedFlow",
    "SubVP",
    "as_denoiser",
    "as_prediction",
    "bits_per_dimension",
    "classifier_guide",
    "denoising_loss",
    "dequantise",
    "dpmpp_2m",
    "edm_sigmas",
    "euler",
    "euler_maruyama",
    "guide",
    "heun",
    "karras_sigmas",
    "log_likelihood",
    "score",
]
