"""D(x, sigma, cond): the estimate of the clean sample, and what follows from it.

Add white noise n to data x0: x = x0 + sigma n. The denoiser with the least squared error is the
posterior mean, D(x; sigma) = E[x0 | x], and it knows the score of the noised density
(Robbins 1956, "An empirical Bayes approach to statistics"; Miyasawa 1961; "Tweedie's formula"):

    grad_x log p(x; sigma) = (D(x; sigma) - x) / sigma^2

So learning to denoise is learning the score, and a sampler needs nothing but D. Here:
    EDMDenoiser       a network with the scaling around it that makes it a D
    edm_loss          what it is trained on, at levels from edm_sigmas and stratified_normals
    score, guide      what one does with a D
In all of them x is an array or a Tensor of any shape (N, ...), sigma a number or an array (N,),
and `cond` an opaque value that only the network interprets. A Tensor in gives a Tensor out, which
can be differentiated; an array in gives an array out, and no graph.
"""

import math
from numbers import Real

import numpy as np
from scipy.special import ndtri

from .. import ops
from ..backend import array_module
from ..function import raw
from ..tensor import Tensor, concatenate, no_grad


def per_sample(sigma, x):
    """`sigma` as an array (N, 1, ..., 1) of x's dtype and device, to multiply x (N, ...) with.

    Raises ValueError for a sigma that is neither a number nor of shape (N,), or not positive.
    Values already on a GPU are taken as they are: looking at them would make the host wait.
    """
    x = raw(x)
    xp, n = array_module(x), x.shape[0]
    shape = getattr(sigma, "shape", ())
    if shape not in ((), (n,)):
        raise ValueError(f"sigma has shape {shape}: give a number, or one level a sample, ({n},)")
    if array_module(sigma) is np and not (np.all(np.isfinite(sigma)) and np.all(sigma > 0)):
        raise ValueError(f"noise levels must be positive and finite, got sigma = {sigma}")
    sigma = xp.asarray(sigma, dtype=x.dtype)
    return xp.broadcast_to(sigma, (n,)).reshape(n, *(1,) * (x.ndim - 1))  # (N, 1, ..., 1)


def edm_preconditioning(sigma, sigma_data: float):
    """(c_skip, c_out, c_in, c_noise) of Karras et al. 2022, "Elucidating the Design Space of
    Diffusion-Based Generative Models", Table 1, column "Ours", for an array of noise levels:

        D(x; sigma, cond) = c_skip x + c_out F(c_in x; c_noise, cond)

        c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)
        c_out  = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
        c_in   = 1 / sqrt(sigma^2 + sigma_data^2)
        c_noise = 250 ln(sigma)

    c_in gives the network F input of variance 1. c_skip and c_out give its target
    (x0 - c_skip x) / c_out variance 1 too, with c_out, by which F's errors are multiplied, as small
    as it can be (their Appendix B.6). With little noise D is nearly x itself, with much noise it is
    nearly sigma_data F.

    The paper has c_noise = ln(sigma) / 4. Ours is the timestep of a sinusoidal embedding, whose
    angles are the timestep times 1 ... 1/10000, made for timesteps 0 ... 1000. Over the levels that
    matter, 0.002 ... 80, ln(sigma) / 4 moves by less than 3, and all but the fastest of those
    sinusoids would stand still; a thousand times that moves by 2650, and uses nearly all of them.
    Negative values are as good as positive ones: sines tell them apart.
    """
    xp = array_module(sigma)
    variance = sigma**2 + sigma_data**2
    c_skip = sigma_data**2 / variance
    c_out = sigma * sigma_data / xp.sqrt(variance)
    c_in = 1 / xp.sqrt(variance)
    c_noise = 250 * xp.log(sigma)
    return c_skip, c_out, c_in, c_noise


class EDMDenoiser:
    """D(x; sigma, cond) made of a network F(x, timestep, cond), by `edm_preconditioning`.

    Args:
        network: called as network(c_in x, timestep, cond) with a Tensor of x's shape, an array (N,)
            and cond as it came; returns a Tensor of x's shape
        sigma_data: standard deviation of the data, one number for all dimensions
    """

    def __init__(self, network, sigma_data: float):
        if not (math.isfinite(sigma_data) and sigma_data > 0):
            raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}")
        self.network = network
        self.sigma_data = float(sigma_data)

    def __call__(self, x, sigma, cond=None):
        """x (N, ...), sigma a number or (N,) -> estimate of the clean sample (N, ...)."""
        if not isinstance(x, Tensor):
            with no_grad():
                return self(Tensor(x), sigma, cond).data
        c_skip, c_out, c_in, c_noise = edm_preconditioning(per_sample(sigma, x), self.sigma_data)
        timestep = c_noise.reshape(-1)  # (N, 1, ..., 1) -> (N,)
        return x * c_skip + self.network(x * c_in, timestep, cond) * c_out


def edm_sigmas(normals, P_mean: float = -1.2, P_std: float = 1.2):
    """Noise levels to train at: ln(sigma) = P_mean + P_std * normals, for standard normals (N,).

    Most of them lie where there is something to learn: with hardly any noise the answer is x, with
    nothing but noise it is the mean (Karras et al. 2022, Table 1 and Figure 5a).
    """
    if not P_std > 0:
        raise ValueError(f"P_std must be positive, got {P_std}")
    return array_module(normals).exp(P_mean + P_std * normals)


def stratified_normals(n: int, rng: np.random.Generator) -> np.ndarray:
    """n numbers (n,) float32, rising, together standard normal: one from every n-th of it.

        z_i = Phi^-1((i + u) / n),  u uniform on (0, 1)

    Noise levels drawn so cover their range evenly in every batch, and the batch's loss and gradient
    vary less. (Kingma et al. 2021, "Variational diffusion models": their low-discrepancy sampler)
    """
    quantiles = (np.arange(n) + rng.random()) / n
    return ndtri(quantiles.clip(1e-12, 1 - 1e-12)).astype(np.float32)  # 0 and 1 are at infinity


def edm_loss_weight(sigma, sigma_data: float):
    """lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2.

    Every level then weighs the same (Karras et al. 2022, Table 1).
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def edm_loss(D: EDMDenoiser, x0, sigma, noise, cond=None) -> Tensor:
    """L = mean over samples and dimensions of lambda(sigma) (D(x; sigma, cond) - x0)^2, where
    x = x0 + sigma noise (Karras et al. 2022, eq. 2 and 8).

    Put D's definition in: L = mean (F - target)^2, target = (x0 - c_skip x) / c_out. The target has
    variance 1 at every level if the data has sigma_data's, so a network that answers zero has
    L = 1: that is the number to compare with. White Gaussian data leaves no better answer than
    zero; what L falls below 1 is structure found in the data (and L never reaches 0: noise hides
    part of x0 for good).

    Args:
        x0: clean data, array (N, ...)
        sigma: noise levels, (N,)
        noise: standard normal numbers, array of x0's shape
        cond: passed through to the network

    Returns a scalar Tensor.
    Raises ValueError if noise is not shaped as x0: broadcast, samples would share their noise.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {noise.shape}, the data {x0.shape}: they must agree")
    level = per_sample(sigma, x0)
    prediction = D(Tensor(x0 + level * noise), sigma, cond)
    return ops.mse_loss(prediction, x0, weight=edm_loss_weight(level, D.sigma_data))


def score(D, x, sigma, cond=None):
    """grad_x log p(x; sigma, cond) = (D(x; sigma, cond) - x) / sigma^2.

    Karras et al. 2022, eq. 3.
    """
    return (D(x, sigma, cond) - x) / per_sample(sigma, x) ** 2


EVERYWHERE = (0.0, 1e9)  # an interval of noise levels that holds them all


def guide(D, guidance_scale: float, uncond=None, join=None, interval=EVERYWHERE):
    """Classifier-free guidance: D_u + guidance_scale (D_c - D_u), itself a D.

    D_c is D given the condition, D_u is D given `uncond`: the value that stands for "no condition",
    of the same kind as `cond`. Scale 1 is D_c alone (D is returned unchanged, and evaluated once);
    larger scales go past it, away from what `uncond` describes. A negative prompt is therefore
    nothing but another `uncond`.
    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, where guidance_scale = 1 + w.

    Guidance acts at levels low < sigma <= high of `interval`; at all others the result is D_c. In
    much noise it would send all samples to the same few places, and in little it changes nothing:
    limited to the middle it costs less variety, and where sigma is a number, fewer evaluations.
    Kynkäänniemi et al. 2024, "Applying guidance in a limited interval improves sample and
    distribution quality in diffusion models".

    `join(uncond, cond)` makes one condition for twice the rows; with it both are one evaluation of
    D, which is faster where an evaluation costs something however few its rows.

    Raises ValueError for a scale that is not finite, and for what is no interval.
    """
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, got {guidance_scale}")
    low, high = checked_interval(interval)
    if guidance_scale == 1:
        return D

    def guided(x, sigma, cond=None):
        one_each = getattr(sigma, "shape", ()) != ()
        if not one_each and not low < sigma <= high:
            return D(x, sigma, cond)
        scale = guidance_scale
        if one_each:
            levels = per_sample(sigma, x)
            inside = (levels > low) & (levels <= high)
            scale = 1 + inside * levels.dtype.type(guidance_scale - 1)
        if join is None:
            without, given = D(x, sigma, uncond), D(x, sigma, cond)
        else:
            sigmas = concatenate([sigma, sigma]) if one_each else sigma
            both = D(concatenate([x, x]), sigmas, join(uncond, cond))
            without, given = both[: len(x)], both[len(x) :]
        return without + (given - without) * scale

    return guided


def checked_interval(interval) -> tuple[float, float]:
    """(low, high) of an interval of noise levels; ValueError unless 0 <= low < high.

    The end is at most EVERYWHERE's: JSON has no infinity."""
    pair = isinstance(interval, tuple | list) and len(interval) == 2
    if not pair or not all(isinstance(end, Real) for end in interval):
        raise ValueError(f"guidance_interval must be two numbers (low, high), not {interval!r}")
    low, high = (float(end) for end in interval)
    if not 0 <= low < high:
        raise ValueError(f"guidance_interval: 0 <= low < high is needed, not {low:g} and {high:g}")
    return low, min(high, EVERYWHERE[1])
