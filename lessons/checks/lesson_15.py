"""Exercises of lesson 15: editing."""

import math
from functools import partial
from itertools import pairwise

import numpy as np

from ldm_numpy import editing
from ldm_numpy.diffusion import GaussianMixture, karras_sigmas, samplers

from ..check import Exercise
from ..solutions import lesson_15 as solutions

MIXTURE = GaussianMixture(
    [0.6, 0.4], [[-1.0, -1.0], [1.0, 1.0]], [[[0.1, 0.05], [0.05, 0.2]], [[0.3, 0.0], [0.0, 0.1]]]
)


def two_noises(rng):
    a, b = rng.standard_normal((2, 3, 3, 2))
    return {"a": a, "b": 1.1 * b + 0.3 * a, "t": 0.3}


def latents(rng):
    latent, noise = rng.standard_normal((2, 2, 3, 3, 2))
    # Of 9 steps 1.53, 3.51, 6.57: rounding shows in each, n = 10 in the first two.
    strength = float(rng.choice([0.17, 0.39, 0.73]))
    return {"latent": latent, "noise": noise, "sigmas": karras_sigmas(9, 0.02, 40.0),
            "strength": strength}  # fmt: skip


def halves(rng):
    x, clean, noise, more = rng.standard_normal((4, 5, 2))
    known = np.tile([True, False], (5, 1))
    return {"D": MIXTURE.denoiser, "x": 2 * x, "clean": clean, "known": known, "sigma": 2.0,
            "low": 0.9, "noise": noise, "more": more}  # fmt: skip


def clean(rng):
    x = MIXTURE.sample(4, rng)
    return {"D": MIXTURE.denoiser, "x": x, "sigmas": karras_sigmas(6, 0.3, 10.0)}


def slerp(a, b, t):
    return editing.slerp(a, b, t)


def invert(D, x, sigmas):
    return samplers.invert(D, x, sigmas[-2::-1], method="euler")


# Wrong answers ------------------------------------------------------------------------------


def arc(a, b, t, divided=True, lengths=True, axis=None):
    many = {"axis": axis, "keepdims": axis is not None}
    size = np.sqrt((a**2).sum(**many) * (b**2).sum(**many)) if lengths else a.size
    theta = np.arccos((a * b).sum(**many) / size)
    x = np.sin((1 - t) * theta) * a + np.sin(t * theta) * b
    return x / np.sin(theta) if divided else x


def started(latent, noise, sigmas, strength, index, level=lambda sigmas, i: sigmas[i]):
    first = index(len(sigmas) - 1, strength)
    return first, latent + level(sigmas, first) * noise


def first_step(steps, strength):
    return steps - math.floor(steps * strength)


def scaled(latent, noise, sigmas, strength):
    first, x = solutions.start(latent, noise, sigmas, strength)
    return first, x / math.sqrt(1 + sigmas[first] ** 2)


def scaled_latent(latent, noise, sigmas, strength):
    first, x = solutions.start(latent, noise, sigmas, strength)
    return first, x - latent + latent / math.sqrt(1 + sigmas[first] ** 2)


def turned(D, x, clean, known, sigma, low, noise, more, level="sigma", up="root", at="sigma"):
    put = {"sigma": sigma, "low": low, "none": 0.0}[level]
    x = np.where(known, clean + put * noise, x)
    height = sigma if at == "sigma" else low
    lower = x + (low - sigma) * (x - D(x, height)) / height
    added = {"root": math.sqrt(sigma**2 - low**2), "line": sigma - low, "all": sigma}[up]
    return lower, lower + added * more


def inverted_mask(D, x, clean, known, **rest):
    return solutions.turn(D, x, clean, ~known, **rest)


def upwards(D, x, levels, at):
    for sigma, high in pairwise(levels):
        x = x + (high - sigma) * (x - D(x, at(sigma, high))) / at(sigma, high)
    return x


EXERCISES = [
    Exercise(
        "15_1_slerp",
        "slerp",
        solution=slerp,
        inputs=two_noises,
        results=("x",),
        wrong={
            "this is the straight line, inside the shell: the weights are sines":
                lambda a, b, t: (1 - t) * a + t * b,
            "a starts with all the weight: (1 - t) goes with a, t with b":
                lambda a, b, t: arc(b, a, t),
            "the weights are divided by sin theta":
                partial(arc, divided=False),
            "cos theta is a . b divided by both lengths, not by the number of dimensions":
                partial(arc, lengths=False),
            "theta is one angle, of all the numbers of a and b, not of the last axis alone":
                partial(arc, axis=-1),
        },
    ),
    Exercise(
        "15_2_start",
        "start",
        solution=solutions.start,
        inputs=latents,
        results=("first", "x"),
        wrong={
            "strength counts the steps taken, not those left out":
                partial(started, index=lambda n, s: math.floor(n * s)),
            "floor(n s) steps are taken: round down, not up":
                partial(started, index=lambda n, s: n - math.ceil(n * s)),
            "the noise has the level that the first step taken begins at, not the one it ends at":
                partial(started, index=first_step, level=lambda sigmas, i: sigmas[i + 1]),
            "the level is sigmas[first], not the strength":
                lambda latent, noise, sigmas, strength: (
                    first_step(len(sigmas) - 1, strength), latent + strength * noise),
            "this process adds noise and does not scale: latent + sigma noise": scaled,
            "the latent stays as it is: sigma scales the noise alone": scaled_latent,
            "n steps have n + 1 levels: n = len(sigmas) - 1":
                partial(started, index=lambda n, s: n + 1 - math.floor((n + 1) * s)),
        },
    ),
    Exercise(
        "15_3_inpaint",
        "turn",
        solution=solutions.turn,
        inputs=halves,
        results=("lower", "up"),
        wrong={
            "the mask is inverted: clean goes where known is True": inverted_mask,
            "the known part has to have the noise that the rest of x has":
                partial(turned, level="none"),
            "x is at sigma before the step: noise the known part to sigma, not to low":
                partial(turned, level="low"),
            "variances add, not deviations: up again by sqrt(sigma^2 - low^2)":
                partial(turned, up="line"),
            "x' holds noise of level low already: up again by sqrt(sigma^2 - low^2)":
                partial(turned, up="all"),
            "the slope is that of sigma, where x is: (x - D(x, sigma)) / sigma, not of low":
                partial(turned, at="low"),
        },
    ),
    Exercise(
        "15_4_invert",
        "invert",
        solution=invert,
        inputs=clean,
        results=("x",),
        wrong={
            "the slope is that of sigma, where x is, not of the level it goes to":
                lambda D, x, sigmas: upwards(D, x, sigmas[-2::-1], lambda low, high: high),
            "the levels have to rise: this goes down":
                lambda D, x, sigmas: upwards(D, x, sigmas[:-1], lambda low, high: low),
            "the way leads up to sigmas[0]: one step is missing":
                lambda D, x, sigmas: upwards(D, x, sigmas[-2:0:-1], lambda low, high: low),
        },
    ),
]  # fmt: skip
