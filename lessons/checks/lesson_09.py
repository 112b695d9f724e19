"""Exercises of lesson 09: learning the score."""

import math
from functools import partial

import numpy as np

from ldm_numpy import diffusion, ops
from ldm_numpy.diffusion.denoiser import preconditioning
from ldm_numpy.tensor import Tensor

from ..check import Exercise


def pairs(rng, n=5, k=3):
    x0, noise = rng.standard_normal((2, n, k))
    return x0 * 0.6, np.exp(rng.uniform(-2, 2, n)), noise


def shrink(x, sigma):
    """A denoiser: the best for data N(0, 1), and a little more."""
    return x / (1 + sigma[:, None] ** 2) + 0.1 * np.sin(x)


def network(inputs, c_noise):
    return np.tanh(inputs + c_noise[:, None] / 1000)


def loss_inputs(rng):
    x0, sigma, noise = pairs(rng)
    return {"D": shrink, "x0": x0, "sigma": sigma, "noise": noise, "d": 0.6}


def denoise_inputs(rng):
    x0, sigma, noise = pairs(rng)
    return {"F": network, "x": x0 + sigma[:, None] * noise, "sigma": sigma, "d": 0.6}


def convert_inputs(rng):
    x0, sigma, noise = pairs(rng)
    guess = noise + 0.2 * rng.standard_normal(noise.shape)
    return {"epsilon": guess, "x": x0 + sigma[:, None] * noise, "sigma": sigma}


def fourier_inputs(rng):
    exponents = (-1, 0, 2)
    gy = rng.standard_normal((4, 1 + 2 * len(exponents)))
    return {"gy": gy, "x": rng.uniform(-1, 1, (4, 1)), "exponents": exponents}


def denoising_loss(D, x0, sigma, noise, d):
    denoiser = diffusion.Denoiser(None, d)
    denoiser.network = lambda inputs, c_noise, cond: answer(denoiser, D, inputs, sigma)
    return diffusion.denoising_loss(denoiser, x0, sigma, noise)


def answer(denoiser, D, inputs, sigma):
    """What a network would say for the denoiser to be D."""
    c_skip, c_out, c_in, _ = preconditioning(sigma[:, None], denoiser.sigma_data)
    x = inputs.data / c_in
    return Tensor((D(x, sigma) - c_skip * x) / c_out)


def denoise(F, x, sigma, d):
    denoiser = diffusion.Denoiser(lambda x, c_noise, cond: Tensor(F(x.data, c_noise)), d)
    return *preconditioning(sigma[:, None], d)[:3], denoiser(x, sigma)


def convert(epsilon, x, sigma):
    sigma = sigma[:, None]
    x0 = x - sigma * epsilon

    def target(name):
        o = diffusion.OBJECTIVES[name]
        return (x0 - o.skip(sigma, 1) * x) / o.out(sigma, 1)

    return (x0 - x) / sigma**2, target("x0"), target("v"), target("flow")


def fourier_features(x, exponents):
    return ops.fourier_features(Tensor(x), exponents).data


def fourier_gradient(gy, x, exponents):
    t = Tensor(x, requires_grad=True)
    ops.fourier_features(t, exponents).backward(gy)
    return t.grad


# Wrong answers ------------------------------------------------------------------------------


def careless_loss(D, x0, sigma, noise, d, level=None, weight=None, target=None, mean=np.mean):
    column = sigma[:, None]
    x = x0 + (level(column) if level else column) * noise
    weight = weight(column, d) if weight else (column**2 + d**2) / (column * d) ** 2
    return mean(weight * (D(x, sigma) - (noise if target else x0)) ** 2)


def careless_denoise(
    F, x, sigma, d, swap=False, out_root=np.sqrt, in_root=np.sqrt, noise=None, inputs=True
):
    column = sigma[:, None]
    total = column**2 + d**2
    c_skip = (column**2 if swap else d**2) / total
    c_out, c_in = column * d / out_root(total), 1 / in_root(total)
    c_noise = noise(sigma) if noise else 250 * np.log(sigma)
    return c_skip, c_out, c_in, c_skip * x + c_out * F(c_in * x if inputs else x, c_noise)


def careless_convert(epsilon, x, sigma, sign=-1, power=1, v=None, flow=1, level=True):
    sigma = sigma[:, None]
    x0 = x - (sigma if level else 1) * epsilon
    velocity = epsilon - sigma * x0
    velocity = v(epsilon, x0, sigma) if v else velocity / np.sqrt(1 + sigma**2)
    return sign * epsilon / sigma**power, x0, velocity, flow * (epsilon - x0)


def x0_first(epsilon, x, sigma):
    score, x0, v, flow = convert(epsilon, x, sigma)
    return x0, score, v, flow


def halves(waves):
    return np.split(waves, 2, axis=1)


def careless_gradient(gy, x, exponents, pi=math.pi, rate=True, sign=-1, plain=1, cut=halves):
    rates = pi * 2.0 ** np.array(exponents)
    s, c = cut(gy[:, 1:])
    g = s * np.cos(rates * x) + sign * c * np.sin(rates * x)
    return plain * gy[:, :1] + (g * (rates if rate else 1)).sum(1, keepdims=True)


EXERCISES = [
    Exercise(
        "09_1_denoising_loss",
        "denoising_loss",
        solution=denoising_loss,
        inputs=loss_inputs,
        results=("loss",),
        wrong={
            "the noise has the size sigma: x = x0 + sigma n":
                partial(careless_loss, level=np.ones_like),
            "the deviation of the noise is sigma, not sigma^2":
                partial(careless_loss, level=np.square),
            "D sees x = x0 + sigma n, not x0 itself": partial(careless_loss, level=np.zeros_like),
            "the weight 1 / c_out^2 is missing":
                partial(careless_loss, weight=lambda s, d: np.ones_like(s)),
            "divide by c_out^2, not by c_out":
                partial(careless_loss, weight=lambda s, d: np.sqrt(s**2 + d**2) / (s * d)),
            "divide by c_out^2, do not multiply with it":
                partial(careless_loss, weight=lambda s, d: (s * d) ** 2 / (s**2 + d**2)),
            "D guesses the clean x0, not the noise": partial(careless_loss, target=True),
            "the mean over samples and dimensions, not the sum":
                partial(careless_loss, mean=np.sum),
            "the loss is (D - x0)^2 / c_out^2, without a factor 1/2":
                partial(careless_loss, mean=lambda squares: squares.mean() / 2),
        },
    ),
    Exercise(
        "09_2_preconditioning",
        "denoise",
        solution=denoise,
        inputs=denoise_inputs,
        results=("c_skip", "c_out", "c_in", "D"),
        wrong={
            "little noise: D is nearly x, so c_skip goes to 1 there":
                partial(careless_denoise, swap=True),
            "the size of x is the root of sigma^2 + d^2":
                partial(careless_denoise, out_root=np.asarray, in_root=np.asarray),
            "c_out has a root: sigma d / sqrt(sigma^2 + d^2)":
                partial(careless_denoise, out_root=np.asarray),
            "c_in has a root: 1 / sqrt(sigma^2 + d^2)":
                partial(careless_denoise, in_root=np.asarray),
            "F is told 250 ln(sigma), not sigma": partial(careless_denoise, noise=np.asarray),
            "c_noise = 250 ln(sigma): its factor 250 is missing":
                partial(careless_denoise, noise=np.log),
            "F sees c_in x, not x": partial(careless_denoise, inputs=False),
        },
    ),
    Exercise(
        "09_3_conversions",
        "convert",
        solution=convert,
        inputs=convert_inputs,
        results=("score", "x0", "v", "flow"),
        wrong={
            "the score points back, against the noise: -epsilon / sigma":
                partial(careless_convert, sign=1),
            "the score is -epsilon / sigma: x0 - x has one sigma of the two":
                partial(careless_convert, power=2),
            "(x0 - x) / sigma^2 = -epsilon / sigma: the score is not -epsilon alone":
                partial(careless_convert, power=0),
            "first the score, then x0: the two are swapped": x0_first,
            "the noise in x has the size sigma: x0 = x - sigma epsilon":
                partial(careless_convert, level=False),
            "v is divided by the root of 1 + sigma^2":
                partial(careless_convert, v=lambda n, x0, s: n - s * x0),
            "v = (n - sigma x0) / sqrt(1 + sigma^2): the root is missing":
                partial(careless_convert, v=lambda n, x0, s: (n - s * x0) / (1 + s**2)),
            "v = (n - sigma x0) / ...: n and x0 have changed places":
                partial(careless_convert, v=lambda n, x0, s: (x0 - s * n) / np.sqrt(1 + s**2)),
            "flow leads from the data to the noise: n - x0": partial(careless_convert, flow=-1),
        },
    ),
    Exercise(
        "09_4_fourier_features",
        "fourier_gradient",
        solution=fourier_gradient,
        inputs=fourier_inputs,
        results=("gx",),
        wrong={
            "the rates have a factor pi": partial(careless_gradient, pi=1),
            "r_k = pi 2^(n_k), not 2 pi 2^(n_k)": partial(careless_gradient, pi=2 * math.pi),
            "the chain rule: sin(r x) has the slope r cos(r x)":
                partial(careless_gradient, rate=False),
            "the slope of cos is -sin": partial(careless_gradient, sign=1),
            "x itself is among the features: g_0 is missing": partial(careless_gradient, plain=0),
            "sines come first, then cosines":
                partial(careless_gradient, cut=lambda waves: halves(waves)[::-1]),
            "s_1, ..., s_K, then c_1, ..., c_K: they do not take turns":
                partial(careless_gradient, cut=lambda waves: (waves[:, ::2], waves[:, 1::2])),
        },
        forward=fourier_features,
        wanted=("x",),
    ),
]  # fmt: skip
