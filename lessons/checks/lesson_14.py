"""Exercises of lesson 14: samplers and likelihood."""

import math
from functools import partial
from itertools import pairwise

import numpy as np

from ldm_numpy.diffusion import SAMPLERS, GaussianMixture, bits_per_dimension, karras_sigmas
from ldm_numpy.diffusion.likelihood import estimated_trace
from ldm_numpy.tensor import Tensor, gradients

from ..check import Exercise

MIXTURE = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[1.5, 0.0], [-1.0, 1.0], [-0.5, -1.5]],
    [[[0.1, 0.0], [0.0, 0.1]], [[0.2, 0.1], [0.1, 0.1]], [[0.1, 0.0], [0.0, 0.3]]],
)


def noisy(rng):
    # Not quite Karras's levels: neighbouring steps of ln(sigma) differ by more.
    sigmas = [s * (1.3 if i % 2 else 1.0) for i, s in enumerate(karras_sigmas(8, 0.05, 10.0))]
    x = sigmas[0] * rng.standard_normal((4, 2))
    return {"D": MIXTURE.denoiser, "x": x, "sigmas": sigmas}


def probed(rng):
    probes = rng.choice([-1.0, 1.0], (3, 4, 2))
    x = 2 * rng.standard_normal((4, 2))
    return {"D": MIXTURE.denoiser, "x": x, "sigma": 0.8, "probes": probes}


def log_densities(rng):
    return {"log_p": 2000 + 300 * rng.standard_normal(5), "d": 784}


def heun(D, x, sigmas):
    return SAMPLERS["heun"](D, x, sigmas)


def dpmpp_2m(D, x, sigmas):
    return SAMPLERS["dpmpp_2m"](D, x, sigmas)


def trace(D, x, sigma, probes):
    return np.mean([estimated_trace(D, x, sigma, None, v)[1] for v in probes], axis=0)


def bits(log_p, d):
    return bits_per_dimension(log_p, d)


# Wrong answers ------------------------------------------------------------------------------


def euler(D, x, sigmas):
    return SAMPLERS["euler"](D, x, sigmas)


def two_slopes(D, x, sigmas, mix, at="trial", level="next", asked="trial", divided="next"):
    for sigma, low in pairwise(sigmas):
        slope = (x - D(x, sigma)) / sigma
        trial = x + (low - sigma) * slope
        if low > 0:
            place, height = (trial if at == "trial" else x), (low if level == "next" else sigma)
            denoised = D(place if asked == "trial" else x, height)
            over = height if divided == "next" else sigma
            trial = x + (low - sigma) * mix(slope, (place - denoised) / over)
        x = trial
    return x


def mean(a, b):
    return (a + b) / 2


def half(h, h_last):
    return h / (2 * h_last)


def multistep(D, x, sigmas, weight=half, keep=lambda last, denoised, middle: denoised, care=True):
    last, h_last = None, None
    for sigma, low in pairwise(sigmas):
        middle = denoised = D(x, sigma)
        if low > 0 or not care:
            h = math.log(sigma / low) if low > 0 else math.inf
            if last is not None:
                middle = denoised + (denoised - last) * weight(h, h_last)
            last, h_last = keep(last, denoised, middle), h
        x = x * (low / sigma) + (1 - low / sigma) * middle
    return x


def by_probe(D, x, sigma, probes, value):
    total = 0
    for v in probes:
        t = Tensor(x, requires_grad=True)
        y = D(t, sigma)
        total = total + value(y, gradients(y, [t], v)[0], v)
    return total / len(probes)


EXERCISES = [
    Exercise(
        "14_1_heun",
        "heun",
        solution=heun,
        inputs=noisy,
        results=("x",),
        wrong={
            "this is Euler's method: the slope at the end of the trial step is missing": euler,
            "the step takes the mean of the two slopes, not their sum":
                partial(two_slopes, mix=lambda a, b: a + b),
            "the step takes the mean of both slopes, not the second alone":
                partial(two_slopes, mix=lambda a, b: b),
            "the second slope is that of the trial point, not of x":
                partial(two_slopes, mix=mean, at="x"),
            "the second slope is that of the next level, not of sigma":
                partial(two_slopes, mix=mean, level="old"),
            "the second slope is divided by sigma', the next level, not by sigma":
                partial(two_slopes, mix=mean, divided="old"),
            "the second slope is (trial - D(trial, sigma')) / sigma': D of the trial point too":
                partial(two_slopes, mix=mean, asked="x"),
        },
    ),
    Exercise(
        "14_2_dpmpp_2m",
        "dpmpp_2m",
        solution=dpmpp_2m,
        inputs=noisy,
        results=("x",),
        wrong={
            "this is Euler's method: the last answer of D is not used": euler,
            "the line is read at half the step: h / (2 h_last), not h / h_last":
                partial(multistep, weight=lambda h, h_last: h / h_last),
            "steps differ in length: h / (2 h_last), not 1/2":
                partial(multistep, weight=lambda h, h_last: 0.5),
            "the slope of D is per h_last, the step before: h / (2 h_last), not h_last / (2 h)":
                partial(multistep, weight=lambda h, h_last: h_last / (2 * h)),
            "the line goes on from D_last through D: D - D_last, not D_last - D":
                partial(multistep, weight=lambda h, h_last: -h / (2 * h_last)),
            "the step to 0 takes M = D: there h is infinite": partial(multistep, care=False),
            "D_last is the last answer of D, not the last M":
                partial(multistep, keep=lambda last, denoised, middle: middle),
            "D_last is that of the step before, not of the first step: keep D at every step":
                partial(multistep, keep=lambda last, denoised, middle:
                        denoised if last is None else last),
        },
    ),
    Exercise(
        "14_3_trace",
        "trace",
        solution=trace,
        inputs=probed,
        results=("trace",),
        wrong={
            "the estimate is the mean over the probes, not their sum":
                lambda D, x, sigma, probes: len(probes) * trace(D, x, sigma, probes),
            "J^T v is multiplied by v once more before it is summed":
                partial(by_probe, value=lambda y, g, v: g.sum(axis=1)),
            "v^T J v wants the gradient J^T v, not D itself":
                partial(by_probe, value=lambda y, g, v: (y.data * v).sum(axis=1)),
            "v^T J v is a sum over dimensions, not a mean":
                partial(by_probe, value=lambda y, g, v: (g * v).mean(axis=1)),
            "samples stay apart: sum over the dimensions only":
                partial(by_probe, value=lambda y, g, v: (g * v).sum()),
        },
    ),
    Exercise(
        "14_4_bits",
        "bits_per_dimension",
        solution=bits,
        inputs=log_densities,
        results=("bits",),
        wrong={
            "nats are not bits: divide by ln 2": lambda log_p, d: 7 - log_p / d,
            "this is nats for each pixel: -log2 p is -ln p / ln 2, with the bin's volume in p":
                lambda log_p, d: math.log(128) - log_p / d,
            "a nat is 1 / ln 2 bits: divide by ln 2, not multiply":
                lambda log_p, d: 7 - log_p * math.log(2) / d,
            "a bin is 1/128 wide, not 1/256: seven bits, not eight":
                lambda log_p, d: 8 - log_p / (d * math.log(2)),
            "the volume of the bin is missing: it is 128^-d":
                lambda log_p, d: -log_p / (d * math.log(2)),
            "every pixel has a bin: its seven bits are not shared by d pixels":
                lambda log_p, d: (7 - log_p / math.log(2)) / d,
            "the bin makes the probability smaller, and the code longer: plus seven bits":
                lambda log_p, d: -7 - log_p / (d * math.log(2)),
        },
    ),
]  # fmt: skip
