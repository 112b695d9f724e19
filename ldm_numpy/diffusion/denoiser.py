"""D(x, sigma, cond): the estimate of the clean sample, and what follows from it.

Add white noise n to data x0: x = x0 + sigma n. The denoiser with the least squared error is the
posterior mean, D(x; sigma) = E[x0 | x], and it knows the score of the noised density
(Robbins 1956, "An empirical Bayes approach to statistics"; Miyasawa 1961; "Tweedie's formula"):

    grad_x log p(x; sigma) = (D(x; sigma) - x) / sigma^2

So learning to denoise is learning the score, and a sampler needs nothing but D. Here:
    Denoiser          a network with the scaling around it that makes it a D
    denoising_loss    what it is trained on, at levels from edm_sigmas and stratified_normals
    score             what a D knows of the density
In all of them x is an array or a Tensor of any shape (N, ...), sigma a number or an array (N,),
and `cond` an opaque value that only the network interprets. A Tensor in gives a Tensor out, which
can be differentiated; an array in gives an array out, and no graph.
"""

import numpy as np
from scipy.special import ndtri

from .. import ops
from ..backend import array_module
from ..checks import known, number, positive, shown, whole
from ..function import raw
from ..tensor import Tensor, no_grad
from .objectives import OBJECTIVES, loss_weight


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
        raise ValueError(f"noise levels must be positive and finite, got sigma = {shown(sigma)}")
    sigma = xp.asarray(sigma, dtype=x.dtype)
    return xp.broadcast_to(sigma, (n,)).reshape(n, *(1,) * (x.ndim - 1))  # (N, 1, ..., 1)


def preconditioning(sigma, sigma_data: float, objective: str = "edm"):
    """(c_skip, c_out, c_in, c_noise) for an array of noise levels:

        D(x; sigma, cond) = c_skip x + c_out F(c_in x; c_noise, cond)

        c_in = 1 / sqrt(sigma^2 + sigma_data^2)
        c_noise = 250 ln(sigma)

    c_in gives the network F input of variance 1. What F is asked for decides on c_skip and c_out
    (`objectives`). Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative
    Models", Table 1, column "Ours", chooses them ("edm") so that F's target (x0 - c_skip x) / c_out
    has variance 1 too, with c_out, by which F's errors are multiplied, as small as it can be (their
    Appendix B.6): with little noise D is nearly x itself, with much noise nearly sigma_data F.

    The paper has c_noise = ln(sigma) / 4. Ours is the timestep of a sinusoidal embedding, whose
    angles are the timestep times 1 ... 1/10000, made for timesteps 0 ... 1000. Over the levels that
    matter, 0.002 ... 80, ln(sigma) / 4 moves by less than 3, and all but the fastest of those
    sinusoids would stand still; a thousand times that moves by 2650, and uses nearly all of them.
    Negative values are as good as positive ones: sines tell them apart.
    """
    xp, formulas = array_module(sigma), OBJECTIVES[known("objective", objective, OBJECTIVES)]
    c_skip, c_out = formulas.skip(sigma, sigma_data), formulas.out(sigma, sigma_data)
    return c_skip, c_out, 1 / xp.sqrt(sigma**2 + sigma_data**2), 250 * xp.log(sigma)


class Denoiser:
    """D(x; sigma, cond) made of a network F(x, timestep, cond), by `preconditioning`.

    Args:
        network: called as network(c_in x, timestep, cond) with a Tensor of x's shape, an array (N,)
            and cond as it came; returns a Tensor of x's shape
        sigma_data: standard deviation of the data, one number for all dimensions
        objective: what the network is asked for, one of OBJECTIVES
    """

    def __init__(self, network, sigma_data: float, objective: str = "edm"):
        self.objective = known("objective", objective, OBJECTIVES)
        self.network = network
        self.sigma_data = positive("sigma_data", sigma_data)

    def __call__(self, x, sigma, cond=None):
        """x (N, ...), sigma a number or (N,) -> estimate of the clean sample (N, ...)."""
        if not isinstance(x, Tensor):
            with no_grad():
                return self(Tensor(x), sigma, cond).data
        level = per_sample(sigma, x)
        c_skip, c_out, c_in, c_noise = preconditioning(level, self.sigma_data, self.objective)
        timestep = c_noise.reshape(-1)  # (N, 1, ..., 1) -> (N,)
        return x * c_skip + self.network(x * c_in, timestep, cond) * c_out


def edm_sigmas(normals, P_mean: float = -1.2, P_std: float = 1.2):
    """Noise levels to train at: ln(sigma) = P_mean + P_std * normals, for standard normals (N,).

    Most of them lie where there is something to learn: with hardly any noise the answer is x, with
    nothing but noise it is the mean (Karras et al. 2022, Table 1 and Figure 5a).
    """
    number("P_mean", P_mean)
    positive("P_std", P_std)
    return array_module(normals).exp(P_mean + P_std * normals)


def stratified_normals(n: int, rng: np.random.Generator) -> np.ndarray:
    """n numbers (n,) float32, rising, together standard normal: one from every n-th of it.

        z_i = Phi^-1((i + u) / n),  u uniform on (0, 1)

    Noise levels drawn so cover their range evenly in every batch, and the batch's loss and gradient
    vary less. (Kingma et al. 2021, "Variational diffusion models": their low-discrepancy sampler)
    """
    whole("n", n, at_least=1)
    quantiles = (np.arange(n) + rng.random()) / n
    return ndtri(quantiles.clip(1e-12, 1 - 1e-12)).astype(np.float32)  # 0 and 1 are at infinity


def denoising_loss(D: Denoiser, x0, sigma, noise, cond=None, weighting: str = "target") -> Tensor:
    """L = mean over samples and dimensions of weight(sigma) (D(x; sigma, cond) - x0)^2, where
    x = x0 + sigma noise (Karras et al. 2022, eq. 2 and 8; Vincent 2011, "A connection between score
    matching and denoising autoencoders").

    With the weighting "target" it is L = mean (F - T)^2, T = (x0 - c_skip x) / c_out being what the
    objective asks for. For "edm" that has variance 1 at every level if the data has sigma_data's,
    so a network that answers zero has L = 1: that is the number to compare with. White Gaussian
    data leaves no better answer than zero; what L falls below 1 is structure found in the data (and
    L never reaches 0: noise hides part of x0 for good).

    Args:
        x0: clean data, array (N, ...)
        sigma: noise levels, (N,)
        noise: standard normal numbers, array of x0's shape
        cond: passed through to the network
        weighting: one of WEIGHTINGS

    Returns a scalar Tensor.
    Raises ValueError if noise is not shaped as x0: broadcast, samples would share their noise.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {noise.shape}, the data {x0.shape}: they must agree")
    level = per_sample(sigma, x0)
    prediction = D(Tensor(x0 + level * noise), sigma, cond)
    weight = loss_weight(level, D.sigma_data, D.objective, weighting)
    return ops.mse_loss(prediction, x0, weight=weight)


def score_matching_loss(
    D: Denoiser, x, sigma, scores, cond=None, weighting: str = "target"
) -> Tensor:
    """Explicit score matching, where grad_x log p(x; sigma) is known at the noised x:

        mean of weight(sigma) sigma^4 (score_D - score)^2 = mean of weight(sigma) (D - (x + sigma^2
        score))^2

    Its gradient is the mean of `denoising_loss`'s over x0 and noise (Vincent 2011, appendix; Song
    et al. 2021, eq. 7), without that one's variance: the two differ by what no network changes.
    """
    if scores.shape != x.shape:
        raise ValueError(f"scores have shape {scores.shape}, x {x.shape}: they must agree")
    level = per_sample(sigma, x)
    weight = loss_weight(level, D.sigma_data, D.objective, weighting)
    return ops.mse_loss(D(Tensor(x), sigma, cond), x + level**2 * scores, weight=weight)


def score(D, x, sigma, cond=None):
    """grad_x log p(x; sigma, cond) = (D(x; sigma, cond) - x) / sigma^2.

    Karras et al. 2022, eq. 3.
    """
    return (D(x, sigma, cond) - x) / per_sample(sigma, x) ** 2
