"""Normalisation: GroupNorm, alone or fused with the SiLU that follows it, and LayerNorm."""

import math
from functools import lru_cache

from ..backend import array_module
from ..function import Function
from .activation import sigmoid_gate, twice_silu_slope
from .linear import column_sum, ones
from .overflow import beyond_range, overflowed


class GroupNorm(Function):
    """Normalise each sample over space and a group of channels; optionally apply SiLU.

    With m and v the mean and variance over a group, r = 1 / sqrt(v + eps), c = x - m, x^ = c r:
        z = gamma x^ + beta,    y = z, or y = silu(z)
    Backward, with gz = gy, or gz = gy silu'(z):
        gbeta = sum gz,   ggamma = sum gz x^   (over samples and space)
        gx = r (gamma gz - mean(gamma gz) - x^ mean(gamma gz x^))   (means over the group)
    The last two terms are what the mean and the variance owe to x.
    (Wu and He 2018, "Group normalization")

    An array is passed over as seldom as possible: a sum over space is a product with ones, the mean
    over a group, spread to its channels again, a product with two small matrices; r and gamma are
    folded into one scale a channel, s = gamma r, and so is SiLU's half (see sigmoid_gate). The
    scale meets c and never x itself, which loses no digits when the mean is large. As r is the same
    in a whole group, it may move into a mean over it:
        gx = s gz - mean(s gz) - c r^2 mean(s gz c)
    """

    def forward(self, x, gamma, beta, *, groups: int, eps: float, silu: bool):
        xp = array_module(x)
        rows = x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])  # (N, M, C)
        _, pixels, channels = rows.shape
        self.to_groups, self.to_channels = group_matrices(xp, channels, groups, pixels, x.dtype)
        self.half = 0.5 if silu else 1.0
        centred = rows - self.group_means(ones(xp, pixels, x.dtype) @ rows)
        # Two passes: the variance of the centred values never cancels to something negative.
        squares = xp.einsum("nmc,nmc->nc", centred, centred)
        if overflowed(squares, x):
            raise beyond_range("group_norm", x)
        variance = self.group_means(squares)  # (N, 1, C)
        variance += eps
        std = xp.sqrt(variance)
        scale = (gamma * self.half) / std
        y = xp.multiply(centred, scale, out=None if True in self.needs else centred)
        y += beta * self.half
        slope = None
        if silu:
            gate = sigmoid_gate(y)
            y *= gate
            slope = twice_silu_slope(y, gate) if True in self.needs else None
        self.save(centred, variance, std, scale, slope)
        return y.reshape(x.shape)

    def group_means(self, sums):
        """Sums over space (..., C) -> means over group and space, at each channel (..., 1, C)."""
        return (sums @ self.to_groups @ self.to_channels)[..., None, :]

    def backward(self, gy):
        centred, variance, std, scale, slope = self.saved
        xp = array_module(gy)
        n, pixels, c = centred.shape
        gz = gy.reshape(centred.shape)  # (N, M, C)
        own = None  # an array that may be written to; gy may not
        if slope is not None:
            gz = own = slope * gz  # twice gz: `half` makes up for it, in the scale and in the sums
        sums = xp.empty((2, n, c), gy.dtype)  # of gz and of gz c, over space
        xp.matmul(ones(xp, pixels, gy.dtype), gz, out=sums[0])
        sums[1] = xp.einsum("nmc,nmc->nc", gz, centred)
        gx = None
        if self.needs[0]:
            means = self.group_means(sums * scale[:, 0])  # (2, N, 1, C)
            means[1] /= variance
            gx = xp.multiply(gz, scale, out=own)
            gx -= centred * means[1]
            gx -= means[0]
            gx = gx.reshape(gy.shape)
        sums[1] /= std[:, 0]
        gbeta, ggamma = sums.sum(1) * self.half
        return gx, ggamma, gbeta


@lru_cache(maxsize=32)
def group_matrices(xp, channels: int, groups: int, pixels: int, dtype):
    """Two matrices (C, G) and (G, C): from sums over space to means over group and space, and from
    a group's number to each of its channels."""
    of_channel = xp.arange(channels) // (channels // groups)
    members = (of_channel[:, None] == xp.arange(groups)).astype(dtype)  # (C, G)
    return members * (groups / (max(1, pixels) * channels)), members.T.copy()


@lru_cache(maxsize=32)
def averages(xp, width: int, dtype):
    """A column to multiply a row with for its mean; kept, as `ones` are."""
    return xp.full((width, 1), 1 / width, dtype)


class LayerNorm(Function):
    """Normalise over the last axis: y = gamma x^ + beta, x^ = (x - m) / sqrt(v + eps).

    gx = r (gamma gy - mean(gamma gy) - x^ mean(gamma gy x^)), r = 1 / sqrt(v + eps);
    ggamma = sum gy x^, gbeta = sum gy.  (Ba et al. 2016, "Layer normalization")
    """

    def forward(self, x, gamma, beta, *, eps: float):
        xp = array_module(x)
        width = x.shape[-1]
        rows = x.reshape(-1, width)  # (M, D)
        normed = rows - rows @ averages(xp, width, x.dtype)
        rstd = xp.einsum("md,md->m", normed, normed)[:, None]  # (M, 1), so far D times v
        if overflowed(rstd, x):
            raise beyond_range("layer_norm", x)
        rstd += width * eps
        xp.sqrt(rstd, out=rstd)
        xp.divide(math.sqrt(width), rstd, out=rstd)
        normed *= rstd
        self.save(normed, rstd, gamma)
        y = xp.multiply(normed, gamma, out=None if True in self.needs else normed)
        y += beta
        return y.reshape(x.shape)

    def backward(self, gy):
        normed, rstd, gamma = self.saved
        rows = gy.reshape(normed.shape)  # (M, D)
        product = rows * normed
        ggamma, gbeta = column_sum(product), column_sum(rows)
        gx = None
        if self.needs[0]:
            average = (gamma / len(gamma))[:, None]  # rows @ average = mean(gamma rows)
            by_mean, by_variance = rows @ average, product @ average  # (M, 1)
            gx = rows * gamma
            gx -= normed * by_variance
            gx -= by_mean
            gx *= rstd
            gx = gx.reshape(gy.shape)
        return gx, ggamma, gbeta


def group_norm(x, gamma, beta, *, groups: int, eps: float = 1e-5, silu: bool = False):
    """GroupNorm over x (N, ..., C) with `groups` groups of channels, then SiLU when `silu`.

    gamma, beta: (C,). Raises ValueError unless `groups` divides C.

    The mean is known to a rounding of the largest |x|: what lies closer together than that, as a
    constant 1e4 in float32, comes out as noise of up to that rounding / sqrt(eps). ValueError where
    squares are beyond the type's range (1e19 in float32); a GPU is not asked, and gives NaN.
    """
    shape = x.shape
    if len(shape) < 2 or groups < 1 or not shape[-1]:
        raise ValueError(f"group_norm: x {shape} must be (N, ..., C), {groups} groups 1 or more")
    if shape[-1] % groups:
        raise ValueError(f"group_norm: {groups} groups do not divide {shape[-1]} channels")
    return GroupNorm.apply(x, gamma, beta, groups=groups, eps=eps, silu=silu)


def layer_norm(x, gamma, beta, *, eps: float = 1e-5):
    """LayerNorm over the last axis of x (..., D); gamma, beta: (D,). ValueError without any D.

    Of numbers that are very large, or very close together, the same holds as of group_norm, but
    that a GPU gives beta for squares beyond the type's range.
    """
    shape = x.shape
    if not shape or not shape[-1]:
        raise ValueError(f"layer_norm: the last axis of {shape} has no element")
    return LayerNorm.apply(x, gamma, beta, eps=eps)
