"""Guidance: a D made of others, whose samples follow a condition more closely, or flee from one."""

from numbers import Real

from ..checks import number, shown
from ..tensor import Tensor, concatenate, gradients
from .denoiser import per_sample

EVERYWHERE = (0.0, 1e9)  # an interval of noise levels that holds them all


def guide(
    D,
    guidance_scale: float,
    uncond=None,
    join=None,
    interval=EVERYWHERE,
    guidance_rescale: float = 0.0,
):
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

    Guidance far out makes the clean estimates larger than any data. `guidance_rescale` in 0 ... 1
    takes them so much of the way back to the standard deviation that D_c has, over all dimensions
    of a sample. Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed",
    eq. 15 and 16, there for a network that predicts v.

    `join(uncond, cond)` makes one condition for twice the rows; with it both are one evaluation of
    D, which is faster where an evaluation costs something however few its rows.

    Raises ValueError for a scale that is not finite, for what is no interval, and for a
    guidance_rescale outside 0 ... 1.
    """
    number("guidance_scale", guidance_scale)
    number("guidance_rescale", guidance_rescale, 0, 1)
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
        result = without + (given - without) * scale
        if guidance_rescale > 0:
            if x.size == len(x):
                raise ValueError("guidance_rescale: a sample of one number has no deviation")
            back = deviation(given) / deviation(result)
            result = result * (back * guidance_rescale + (1 - guidance_rescale))
        return result

    return guided


def deviation(x):
    """Standard deviation of each sample over its dimensions, (N, 1, ..., 1)."""
    flat = x.reshape(len(x), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    return ((centred * centred).mean(axis=1) ** 0.5).reshape(-1, *(1,) * (x.ndim - 1))


def classifier_guide(D, log_probability, guidance_scale: float, interval=EVERYWHERE):
    """Guidance by a classifier of noised samples:

        D + guidance_scale sigma^2 grad_x log p(c | x; sigma)

    By Bayes' rule grad log p(x | c) = grad log p(x) + grad log p(c | x): with scale 1 an
    unconditional D becomes the conditional one, and larger scales go past it, as with `guide`.
    Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis", section 4.2.

    Args:
        D: of no condition, or of its own: it is given `cond` too
        log_probability: called as log_probability(x, sigma, cond) with a Tensor x (N, ...); returns
            a Tensor (N,) of log p(cond | x; sigma) in nats

    The result takes arrays, not Tensors: its gradient would be a second derivative. Raises
    ValueError for a scale that is not finite, and for what is no interval.
    """
    number("guidance_scale", guidance_scale)
    low, high = checked_interval(interval)

    def guided(x, sigma, cond=None):
        denoised = D(x, sigma, cond)
        levels = per_sample(sigma, x)
        inside = (levels > low) & (levels <= high)
        if not inside.any():
            return denoised
        x = Tensor(x, requires_grad=True)
        (slope,) = gradients(log_probability(x, sigma, cond).sum(), [x])
        return denoised + inside * (levels**2 * levels.dtype.type(guidance_scale)) * slope

    return guided


def checked_interval(interval) -> tuple[float, float]:
    """(low, high) of an interval of noise levels; ValueError unless 0 <= low < high.

    The end is at most EVERYWHERE's: JSON has no infinity."""
    pair = isinstance(interval, tuple | list) and len(interval) == 2
    if not pair or not all(isinstance(end, Real) for end in interval):
        raise ValueError(
            f"guidance_interval must be two numbers (low, high), not {shown(interval)}"
        )
    low, high = float(interval[0]), min(float(interval[1]), EVERYWHERE[1])
    if not 0 <= low < high:
        raise ValueError(f"guidance_interval: 0 <= low < high is needed, not {low:g} and {high:g}")
    return low, high
