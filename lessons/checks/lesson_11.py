"""Exercises of lesson 11: compressing images."""

import numpy as np

from ldm_numpy import ops
from ldm_numpy.tensor import Tensor

from ..check import Exercise
from ..solutions import lesson_11 as solutions

SHAPE = (3, 2, 2, 4)


def gaussians(rng):
    gy, mean, logvar, noise = rng.standard_normal((4, *SHAPE))
    return {"gy": gy, "mean": mean + 1, "logvar": logvar - 1, "noise": noise}


def kl_inputs(rng):
    given = gaussians(rng)
    return {"gy": 1.7, "mean": given["mean"], "logvar": given["logvar"]}


def moments(rng):
    mean, std = rng.standard_normal((2, 5, *SHAPE[1:]))
    return {"mean": 3 * mean + [2, -1, 0, 1], "std": np.exp(std)}


def maps(rng):
    shapes = (2, 6, 6, 3), (2, 3, 3, 5)
    original = [size * rng.standard_normal(s) + 1 for size, s in zip((1, 4), shapes)]
    decoded = [m + rng.standard_normal(m.shape) for m in original]
    return {"decoded": decoded, "original": original}


def reparametrise(gy, mean, logvar, noise):
    m, v = (Tensor(a, requires_grad=True) for a in (mean, logvar))
    z = m + (v * 0.5).exp() * noise
    z.backward(gy)
    return m.grad, v.grad, z.data


def gaussian_kl(gy, mean, logvar):
    m, v = (Tensor(a, requires_grad=True) for a in (mean, logvar))
    kl = ops.gaussian_kl(m, v)
    kl.backward(np.array(gy))
    return m.grad, v.grad, kl.data


# Wrong answers ------------------------------------------------------------------------------


def drawn(half=0.5, slope=0.5, with_noise=True, upstream=True):
    def draw(gy, mean, logvar, noise):
        std = np.exp(half * logvar)
        gy = gy if upstream else np.ones_like(gy)
        return gy, slope * std * (noise if with_noise else 1) * gy, mean + std * noise

    return draw


def paid(mean_slope=1, one=1, count=len, of_gradients=None, half=0.5, upstream=True):
    def kl(gy, mean, logvar):
        n, gy = (of_gradients or count)(mean), gy if upstream else 1.0
        inside = mean**2 + np.exp(logvar) - 1 - logvar
        gl = half * gy * (np.exp(logvar) - one) / n
        return mean_slope * gy * mean / n, gl, half * inside.sum() / count(mean)

    return kl


def scaled(std_too=True, centred=True, root=np.sqrt, inverse=True, axes=None):
    def scale(mean, std):
        squares = (mean**2).mean(axes) + std_too * (std**2).mean(axes)
        variance = squares - centred * mean.mean(axes) ** 2
        return 1 / root(variance) if inverse else root(variance)

    return scale


def compared(of=lambda a, b: (b**2).mean(), total=sum, power=2):
    def distance(decoded, original):
        pairs = zip(decoded, original)
        return total([(np.abs(a - b) ** power).mean() / of(a, b) for a, b in pairs])

    return distance


def ratios(decoded, original):
    return sum(((a - b) ** 2 / b**2).mean() for a, b in zip(decoded, original))


EXERCISES = [
    Exercise(
        "11_1_reparametrise",
        "reparametrise",
        solution=reparametrise,
        inputs=gaussians,
        results=("gmean", "glogvar", "z"),
        wrong={
            "l is the logarithm of the variance: the standard deviation is e^(l/2)":
                drawn(half=1, slope=1),
            "d e^(l/2) / dl = 1/2 e^(l/2): the half is missing": drawn(slope=1),
            "e^(l/2) is multiplied by n, so n is part of its gradient": drawn(with_noise=False),
            "both gradients are multiplied by gy, the gradient of z": drawn(upstream=False),
        },
        forward=lambda mean, logvar, noise: mean + np.exp(logvar / 2) * noise,
        wanted=("mean", "logvar"),
    ),
    Exercise(
        "11_2_gaussian_kl",
        "gaussian_kl",
        solution=gaussian_kl,
        inputs=kl_inputs,
        results=("gmean", "glogvar", "L"),
        wrong={
            "d(m^2 / 2) / dm = m": paid(mean_slope=2),
            "the half is missing, of the whole sum": paid(mean_slope=2, half=1),
            "l stands in L twice: d(e^l - l) / dl = e^l - 1": paid(one=0),
            "a mean over the samples only, a sum over places and channels": paid(count=np.size),
            "L is a mean over N samples: its gradients are divided by N, too":
                paid(of_gradients=lambda mean: 1),
            "a mean over the samples: L is divided by N, and so are the gradients":
                paid(count=lambda mean: 1),
            "every gradient is multiplied by gy, the gradient of what follows":
                paid(upstream=False),
        },
        forward=lambda mean, logvar: ops.gaussian_kl(mean, logvar),
        wanted=("mean", "logvar"),
    ),
    Exercise(
        "11_3_latent_scale",
        "latent_scale",
        solution=solutions.latent_scale,
        inputs=moments,
        results=("scale",),
        wrong={
            "the latents' own noise, std^2, is part of their variance": scaled(std_too=False),
            "the square of the mean is missing": scaled(centred=False),
            "one over the standard deviation, not the standard deviation": scaled(inverse=False),
            "one over the root of the variance": scaled(root=np.asarray),
            "one scale for all: means over samples, places and channels, not over samples alone":
                scaled(axes=0),
            "one scale for all: means over channels, too, not a scale for each channel":
                scaled(axes=(0, 1, 2)),
        },
    ),
    Exercise(
        "11_4_perceptual_distance",
        "perceptual_distance",
        solution=solutions.perceptual_distance,
        inputs=maps,
        results=("P",),
        wrong={
            "each map is divided by its own mean square": compared(of=lambda a, b: 1.0),
            "divided by the mean square of the original, not of the decoded":
                compared(of=lambda a, b: (a**2).mean()),
            "by its mean square, not by its variance": compared(of=lambda a, b: b.var()),
            "first the means over the whole map, then their ratio, not a ratio for each number":
                ratios,
            "squares, not absolute values": compared(power=1),
            "a sum over the maps, not their mean": compared(total=np.mean),
        },
    ),
]  # fmt: skip
