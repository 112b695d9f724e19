"""Normalisation: GroupNorm, alone or fused with the SiLU that follows it, and LayerNorm."""

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

    An array is passed over as seldom as possible: sums over space are products with a vector of
    ones, per channel, and what remains to be summed over a group is tiny; r, gamma and beta are
    folded into one scale and one shift a channel, and so is SiLU's half (see sigmoid_gate). The
    scale meets c and never x itself, which loses no digits when the mean is large.
    """

    def forward(self, x, gamma, beta, *, groups: int, eps: float, silu: bool):
        self.groups, self.half = groups, 0.5 if silu else 1.0
        xp = array_module(x)
        rows = x.reshape(len(x), -1, x.shape[-1])  # (N, M, C)
        ones = xp.ones((1, rows.shape[1]), x.dtype)
        centred = rows - self.group_mean(ones @ rows, rows.shape[1])
        # Two passes: the variance of the centred values never cancels to something negative.
        var = self.group_mean(ones @ (centred * centred), rows.shape[1])
        rstd = 1 / xp.sqrt(var + eps)  # (N, 1, C)
        y = centred * (rstd * gamma * self.half)
        y += beta * self.half
        if silu:
            gate = sigmoid_gate(y)
            y *= gate
            self.save(centred, rstd, gamma, y, gate)
        else:
            self.save(centred, rstd, gamma)
        return y.reshape(x.shape)

    def group_mean(self, channel_sums, pixels: int):
        """Means over groups, spread to channels again: sums (N, 1, C) -> means (N, 1, C)."""
        n, _, c = channel_sums.shape
        per_group = channel_sums.reshape(n, self.groups, c // self.groups).sum(2, keepdims=True)
        per_group /= pixels * (c // self.groups)
        xp = array_module(per_group)
        return xp.broadcast_to(per_group, (n, self.groups, c // self.groups)).reshape(n, 1, c)

    def backward(self, gy):
        centred, rstd, gamma, *activation = self.saved
        xp = array_module(gy)
        pixels = centred.shape[1]
        gz = gy.reshape(centred.shape)  # (N, M, C)
        own = None  # an array that may be written to; gy may not
        if activation:
            own = twice_silu_slope(*activation)
            own *= gz
            gz = own  # twice gz: `half` makes up for it, in the sums and in the scale
        weights = xp.full((1, pixels), self.half, gy.dtype)
        product = gz * centred
        sum_gz = weights @ gz  # (N, 1, C)
        sum_gz_normed = (weights @ product) * rstd  # (N, 1, C)
        gx = None
        if self.needs[0]:
            gx = xp.multiply(gz, rstd * gamma * self.half, out=own)
            by_variance = rstd * rstd * self.group_mean(sum_gz_normed * gamma, pixels)
            gx -= xp.multiply(centred, by_variance, out=product)
            gx -= rstd * self.group_mean(sum_gz * gamma, pixels)
            gx = gx.reshape(gy.shape)
        return gx, sum_gz_normed.sum((0, 1)), sum_gz.sum((0, 1))


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
