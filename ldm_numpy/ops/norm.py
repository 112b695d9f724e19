"""Normalisation: GroupNorm, alone or fused with the SiLU that follows it, and LayerNorm."""

from ..backend import array_module
from ..function import Function
from .activation import stable_sigmoid


class GroupNorm(Function):
    """Normalise each sample over space and a group of channels; optionally apply SiLU.

    With m and v the mean and variance over a group, r = 1 / sqrt(v + eps), x^ = (x - m) r:
        z = gamma x^ + beta,    y = z, or y = silu(z) = z s(z)
    Backward, with gz = gy, or gz = gy s (1 + z (1 - s)):
        gbeta = sum gz,   ggamma = sum gz x^   (over samples and space)
        gx = r (gamma gz - mean(gamma gz) - x^ mean(gamma gz x^))   (means over the group)
    The last two terms are what the mean and the variance owe to x.
    (Wu and He 2018, "Group normalization")

    Sums over space are products with a vector of ones, per channel; what remains to be summed over
    a group is tiny. Only x is kept, and the mean and r of each sample's groups.
    """

    def forward(self, x, gamma, beta, *, groups: int, eps: float, silu: bool):
        self.groups, self.silu = groups, silu
        xp = array_module(x)
        rows = x.reshape(len(x), -1, x.shape[-1])  # (N, M, C)
        mean = self.group_mean(xp.ones((1, rows.shape[1]), x.dtype) @ rows, rows.shape[1])
        z = rows - mean
        # Two passes: the variance of the centred values never cancels to something negative.
        var = self.group_mean(xp.ones((1, rows.shape[1]), x.dtype) @ (z * z), rows.shape[1])
        rstd = 1 / xp.sqrt(var + eps)  # (N, 1, C)
        self.save(rows, mean, rstd, gamma, beta)
        z *= rstd * gamma
        z += beta
        if silu:
            z *= stable_sigmoid(z)
        return z.reshape(x.shape)

    def group_mean(self, channel_sums, pixels: int):
        """Means over groups, spread to channels again: sums (N, 1, C) -> means (N, 1, C)."""
        n, _, c = channel_sums.shape
        per_group = channel_sums.reshape(n, self.groups, c // self.groups).sum(2, keepdims=True)
        per_group /= pixels * (c // self.groups)
        xp = array_module(per_group)
        return xp.broadcast_to(per_group, (n, self.groups, c // self.groups)).reshape(n, 1, c)

    def backward(self, gy):
        rows, mean, rstd, gamma, beta = self.saved
        xp = array_module(gy)
        pixels = rows.shape[1]
        ones = xp.ones((1, pixels), gy.dtype)
        gz = gy.reshape(rows.shape)  # (N, M, C)
        normed = rows - mean
        normed *= rstd
        if self.silu:
            z = normed * gamma
            z += beta
            s = stable_sigmoid(z)
            z *= 1 - s
            z += 1
            z *= s
            z *= gz
            gz = z
        sum_gz = ones @ gz  # (N, 1, C)
        sum_gz_normed = ones @ (gz * normed)  # (N, 1, C)
        gx = None
        if self.needs[0]:
            gx = gz * (rstd * gamma)
            normed *= rstd * self.group_mean(sum_gz_normed * gamma, pixels)
            gx -= normed
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
        self.save(normed, rstd, gamma, average)
        y = normed * gamma
        y += beta
        return y.reshape(x.shape)

    def backward(self, gy):
        normed, rstd, gamma, average = self.saved
        rows = gy.reshape(normed.shape)  # (M, D)
        gy_normed = rows * normed
        ones = array_module(gy).ones(len(rows), gy.dtype)
        ggamma, gbeta = ones @ gy_normed, ones @ rows
        gx = None
        if self.needs[0]:
            gy_normed *= gamma
            gx = rows * gamma
            gx -= gx @ average
            gx -= normed * (gy_normed @ average)
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
