"""Normalisation: GroupNorm, alone or fused with the SiLU that follows it, and LayerNorm."""

from functools import lru_cache

from ..backend import array_module
from ..function import Function
from .activation import sigmoid_gate, twice_silu_slope


class GroupNorm(Function):
    """Normalise each sample over space and a group of channels; optionally apply SiLU.

    With m and v the mean and variance over a group, r = 1 / sqrt(v + eps), c = x - m, x^ = c r:
        z = gamma x^ + beta,    y = z, or y = silu(z)
    Backward, with gz = gy, or gz = gy silu'(z):
        gbeta = sum gz,   ggamma = sum gz x^   (over samples and space)
        gx = r (gamma gz - mean(gamma gz) - x^ mean(gamma gz x^))   (means over the group)
    The last two terms are what the mean and the variance owe to x.
    (Wu and He 2018, "Group normalization")

    An array is passed over as seldom as possible: a mean over space is a product with a vector, the
    mean over a group, spread to its channels again, one with a small matrix; r and gamma are folded
    into one scale a channel, and so is SiLU's half (see sigmoid_gate). The scale meets c and never
    x itself, which loses no digits when the mean is large.
    """

    def forward(self, x, gamma, beta, *, groups: int, eps: float, silu: bool):
        xp = array_module(x)
        rows = x.reshape(len(x), -1, x.shape[-1])  # (N, M, C)
        self.over_group = group_average(xp, rows.shape[2], groups, x.dtype)
        self.half = 0.5 if silu else 1.0
        over_space = xp.full((1, rows.shape[1]), 1 / rows.shape[1], x.dtype)
        centred = rows - self.group_means(over_space @ rows)
        # Two passes: the variance of the centred values never cancels to something negative.
        squares = xp.einsum("nmc,nmc->nc", centred, centred)[:, None]
        rstd = 1 / xp.sqrt(self.group_means(squares) / rows.shape[1] + eps)  # (N, 1, C)
        scale = rstd * (gamma * self.half)
        y = centred * scale
        y += beta * self.half
        slope = None
        if silu:
            gate = sigmoid_gate(y)
            y *= gate
            slope = twice_silu_slope(y, gate) if True in self.needs else None
        self.save(centred, rstd, scale, gamma, slope)
        return y.reshape(x.shape)

    def group_means(self, means):
        """(..., 1, C) -> (..., 1, C): in the place of each channel the mean of its group."""
        return (means.reshape(-1, means.shape[-1]) @ self.over_group).reshape(means.shape)

    def backward(self, gy):
        centred, rstd, scale, gamma, slope = self.saved
        xp = array_module(gy)
        n, pixels, c = centred.shape
        gz = gy.reshape(centred.shape)  # (N, M, C)
        own = None  # an array that may be written to; gy may not
        if slope is not None:
            gz = own = slope * gz  # twice gz: `half` makes up for it, in the sums and in the scale
        sums = xp.empty((2, n, 1, c), gy.dtype)  # of gz and of gz x^, over space
        xp.matmul(xp.full((1, pixels), self.half, gy.dtype), gz, out=sums[0])
        sums[1] = xp.einsum("nmc,nmc->nc", gz, centred)[:, None]
        sums[1] *= self.half * rstd
        gx = None
        if self.needs[0]:
            means = self.group_means(sums * (gamma / pixels))
            means *= rstd
            means[1] *= rstd  # it is to meet c, not x^
            gx = xp.multiply(gz, scale, out=own)
            gx -= centred * means[1]
            gx -= means[0]
            gx = gx.reshape(gy.shape)
        gbeta, ggamma = sums.sum((1, 2))
        return gx, ggamma, gbeta


@lru_cache
def group_average(xp, channels: int, groups: int, dtype):
    """The matrix (C, C) that puts the mean of its group in the place of every channel."""
    group = xp.arange(channels) // (channels // groups)
    return (group[:, None] == group).astype(dtype) / (channels // groups)


class LayerNorm(Function):
    """Normalise over the last axis: y = gamma x^ + beta, x^ = (x - m) / sqrt(v + eps).

    gx = r (gamma gy - mean(gamma gy) - x^ mean(gamma gy x^)), r = 1 / sqrt(v + eps);
    ggamma = sum gy x^, gbeta = sum gy.  (Ba et al. 2016, "Layer normalization")
    """

    def forward(self, x, gamma, beta, *, eps: float):
        xp = array_module(x)
        rows = x.reshape(-1, x.shape[-1])  # (M, D)
        average = xp.full((rows.shape[1], 1), 1 / rows.shape[1], x.dtype)
        normed = rows - rows @ average
        rstd = 1 / xp.sqrt((normed * normed) @ average + eps)  # (M, 1)
        normed *= rstd
        self.save(normed, rstd, gamma)
        y = normed * gamma
        y += beta
        return y.reshape(x.shape)

    def backward(self, gy):
        normed, rstd, gamma = self.saved
        rows = gy.reshape(normed.shape)  # (M, D)
        product = rows * normed
        ones = array_module(gy).ones(len(rows), gy.dtype)
        ggamma, gbeta = ones @ product, ones @ rows
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
    """
    if x.shape[-1] % groups:
        raise ValueError(f"group_norm: {groups} groups do not divide {x.shape[-1]} channels")
    return GroupNorm.apply(x, gamma, beta, groups=groups, eps=eps, silu=silu)


def layer_norm(x, gamma, beta, *, eps: float = 1e-5):
    """LayerNorm over the last axis of x (..., D); gamma, beta: (D,)."""
    return LayerNorm.apply(x, gamma, beta, eps=eps)
