"""Exercises of lesson 08: diffusion with a known score."""

import math
from functools import partial

import numpy as np

from ldm_numpy.diffusion import VE, VP, GaussianMixture, SubVP, euler_maruyama

from ..check import Exercise


class Given:
    """A generator that hands out the slices of an array instead of drawing numbers."""

    def __init__(self, noise):
        self.slices = iter(noise)

    def standard_normal(self, shape):
        return next(self.slices)


def mixture_inputs(rng):
    return {
        "x": rng.standard_normal((6, 2)),
        "weights": np.array([0.5, 0.3, 0.2]),
        "means": rng.standard_normal((3, 2)),
        "variances": np.array([0.3, 0.1, 0.6]),
        "sigma": 0.7,
    }


def kernel_inputs(rng):
    return {"t": rng.uniform(0.05, 0.95, 5), "sigma": 25.0, "beta_min": 0.1, "beta_max": 20.0}


def forward_inputs(rng):
    x, noise = rng.standard_normal((4, 2)) + 2, rng.standard_normal((8, 4, 2))
    return {"x": x, "noise": noise, "start": 0.1, "end": 0.6, "beta_min": 0.1, "beta_max": 20.0}


def gaussian_score(x, t, sigma=25.0):
    """Of data N(1, 0.25 I) under dx = sigma^t dw."""
    return (1 - x) / (0.25 + (sigma ** (2 * t) - 1) / (2 * math.log(sigma)))


def reverse_inputs(rng):
    x, noise = 10 * rng.standard_normal((4, 2)), rng.standard_normal((8, 4, 2))
    return {"x": x, "score": gaussian_score, "noise": noise, "sigma": 25.0, "end": 0.01}


def mixture_score(x, weights, means, variances, sigma):
    covariances = variances[:, None, None] * np.eye(x.shape[1])
    return GaussianMixture(weights, means, covariances).score(x, sigma)


def exploding(sigma):
    """dx = sigma^t dw as a VE process: its level a sigma^t has the rate sigma^(2t)."""
    a = 1 / math.sqrt(2 * math.log(sigma))
    return VE(a, a * sigma)


def kernels(t, sigma, beta_min, beta_max):
    scale, deviation = VP(beta_min, beta_max).kernel(t)
    return (
        exploding(sigma).kernel(t, 0 * t)[1],
        scale,
        deviation,
        SubVP(beta_min, beta_max).kernel(t)[1],
    )


def forward(x, noise, start, end, beta_min, beta_max):
    return VP(beta_min, beta_max).simulate(x, start, end, len(noise), Given(noise))


def reverse(x, score, noise, sigma, end):
    process = exploding(sigma)
    levels = [process.sigma(float(t)) for t in np.linspace(1, end, len(noise) + 1)]

    def D(x, level, cond=None):
        return x + level**2 * score(x, process.time(level))

    return euler_maruyama(D, x, levels, rng=Given(noise), process=process)


# Wrong answers ------------------------------------------------------------------------------


def shares(weights, density):
    return density / density.sum(1, keepdims=True)


def careless_score(
    x, weights, means, variances, sigma, sign=-1, power=2, r=shares, size=True, by_u=True
):
    apart = x[:, None] - means  # (N, K, d)
    u = variances + (sigma**power if power else 0)
    density = weights * np.exp(-(apart**2).sum(2) / (2 * u))
    if size:
        density = density / (2 * np.pi * u) ** (x.shape[1] / 2)
    share = r(weights, density)
    return sign * (share[:, :, None] * apart / (u[:, None] if by_u else 1)).sum(1)


def careless_kernels(t, sigma, beta_min, beta_max, ve=None, integral=None, sub=None, root=None):
    B = beta_min * t + (beta_max - beta_min) * t**2 / 2
    B = integral(t, beta_min, beta_max) if integral else B
    rate = math.log(sigma)
    return (
        ve(t, sigma, rate) if ve else np.sqrt((sigma ** (2 * t) - 1) / (2 * rate)),
        np.exp(-B / 2),
        1 - np.exp(-B) if root else np.sqrt(1 - np.exp(-B)),
        sub(B) if sub else 1 - np.exp(-B),
    )


def careless_forward(
    x, noise, start, end, beta_min, beta_max, size=0.5, g=0.5, late=0, sign=-1, given=1, long=None
):
    dt = (long(start, end) if long else end - start) / len(noise)
    for i, z in enumerate(noise):
        beta = beta_min + (given * start + (i + late) * dt) * (beta_max - beta_min)
        x = x + sign * beta / 2 * x * dt + beta**g * dt**size * z
    return x


def root_of_size(dt):
    return abs(dt) ** 0.5


def careless_reverse(
    x, score, noise, sigma, end, pull=1.0, g=2, kick=root_of_size, late=0, up=False
):
    times = np.linspace(1, end, len(noise) + 1)
    times = times[::-1] if up else times
    for t, z in zip(times[late:], noise):
        dt = (end - 1) / len(noise)
        x = x - pull * sigma ** (g * t) * score(x, t) * dt + sigma**t * kick(dt) * z
    return x


EXERCISES = [
    Exercise(
        "08_1_mixture_score",
        "mixture_score",
        solution=mixture_score,
        inputs=mixture_inputs,
        results=("score",),
        wrong={
            "the score points uphill, to the means: -(x - m) / u": partial(careless_score, sign=1),
            "noise widens each component: u_k = v_k + sigma^2":
                partial(careless_score, power=0),
            "u_k = v_k + sigma^2: sigma is a deviation, v_k a variance":
                partial(careless_score, power=1),
            "r_k depends on x: w_k N_k(x), divided by their sum":
                partial(careless_score, r=lambda weights, density: weights + 0 * density),
            "the r_k sum to 1: w_k N_k(x), divided by their sum over k":
                partial(careless_score, r=lambda weights, density: density),
            "r_k has the weight w_k in it, above and below":
                partial(careless_score, r=lambda w, density: shares(w, density / w)),
            "each term is divided by its variance: r_k (x - m_k) / u_k":
                partial(careless_score, by_u=False),
            "N_k has the factor u_k^(-d/2): a wide component is lower":
                partial(careless_score, size=False),
        },
    ),
    Exercise(
        "08_2_kernels",
        "kernels",
        solution=kernels,
        inputs=kernel_inputs,
        results=("deviation", "scale of VP", "deviation of VP", "deviation of sub-VP"),
        wrong={
            "the deviation is the root of the integral of sigma^(2t)":
                partial(careless_kernels, ve=lambda t, s, r: (s ** (2 * t) - 1) / (2 * r)),
            "integrate from 0 to t: at t = 0 there is no noise":
                partial(careless_kernels, ve=lambda t, s, r: np.sqrt(s ** (2 * t) / (2 * r))),
            "variances add, not deviations: integrate sigma^(2t), then take the root":
                partial(careless_kernels, ve=lambda t, s, r: (s**t - 1) / r),
            "B is the integral of beta, beta_min t + (beta_max - beta_min) t^2 / 2":
                partial(careless_kernels, integral=lambda t, a, b: (a + t * (b - a)) * t),
            "the deviation of VP is the root of 1 - e^(-B)": partial(careless_kernels, root=1),
            "sub-VP has no root: its variance is (1 - e^(-B))^2":
                partial(careless_kernels, sub=lambda B: np.sqrt(1 - np.exp(-B))),
        },
    ),
    Exercise(
        "08_3_forward",
        "forward",
        solution=forward,
        inputs=forward_inputs,
        results=("x",),
        wrong={
            "noise adds in variance: sqrt(dt) z, not dt z": partial(careless_forward, size=1),
            "sqrt(dt) is missing: the noise of a step shrinks with the step":
                partial(careless_forward, size=0),
            "g is the root of beta": partial(careless_forward, g=1),
            "the drift pulls to zero: -beta/2 x": partial(careless_forward, sign=1),
            "beta is taken where the step begins": partial(careless_forward, late=1),
            "step i begins at t = start + i dt: times do not count from 0":
                partial(careless_forward, given=0),
            "steps go from start to end: dt = (end - start) / steps, not end / steps":
                partial(careless_forward, long=lambda start, end: end),
            "steps go from start to end: dt = (end - start) / steps, not 1 / steps":
                partial(careless_forward, long=lambda start, end: 1),
        },
    ),
    Exercise(
        "08_4_reverse",
        "reverse",
        solution=reverse,
        inputs=reverse_inputs,
        results=("x",),
        wrong={
            "with dt < 0, -g^2 score dt moves along the score, uphill":
                partial(careless_reverse, pull=-1),
            "half the score belongs to the ODE; with noise it takes all of it":
                partial(careless_reverse, pull=0.5),
            "the score is multiplied by g^2": partial(careless_reverse, g=1),
            "noise adds in variance: sqrt(|dt|) z, not |dt| z": partial(careless_reverse, kick=abs),
            "noise adds in variance: sqrt(|dt|) z, not dt z":
                partial(careless_reverse, kick=lambda dt: dt),
            "sqrt(|dt|) is missing: the noise of a step shrinks with the step":
                partial(careless_reverse, kick=lambda dt: 1),
            "dt is negative and its root is NaN: sqrt(|dt|) z":
                partial(careless_reverse, kick=lambda dt: np.nan),
            "dt is negative and its root imaginary: sqrt(|dt|) z":
                partial(careless_reverse, kick=lambda dt: complex(dt) ** 0.5),
            "g and the score are taken where the step begins": partial(careless_reverse, late=1),
            "time runs from 1 down to end": partial(careless_reverse, up=True),
        },
    ),
]  # fmt: skip
