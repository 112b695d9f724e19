"""Losses: each returns one number, a mean over the batch. No batch at all is a ValueError.

A loss beyond the range of its type, as the square of 1e30 in float32, is infinite, and NumPy warns;
gradients within the range are right nevertheless.
"""

import numpy as np

from ..backend import array_module
from ..function import Function, raw


class MSELoss(Function):
    """L = mean of w (x - t)^2;  gx = gy 2 w (x - t) / count."""

    def forward(self, x, *, target, weight):
        difference = x - target
        weighted = difference if weight is None else difference * weight
        self.save(weighted)
        return (weighted * difference).mean()

    def backward(self, gy):
        (weighted,) = self.saved
        return (weighted * (gy * (2 / weighted.size)),)


class SoftmaxCrossEntropy(Function):
    """L = -mean over n of sum_k t log softmax(x);  gx = gy (softmax(x) sum_k t - t) / N."""

    def forward(self, x, *, target):
        xp = array_module(x)
        shifted = x - x.max(axis=1, keepdims=True)  # (N, K)
        log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
        self.save(xp.exp(log_p), target)
        return -(target * log_p).sum() / len(x)

    def backward(self, gy):
        p, target = self.saved
        return ((p * target.sum(axis=1, keepdims=True) - target) * (gy / len(p)),)


class ContrastiveLoss(Function):
    """CLIP's symmetric loss, with any number of right answers a row.

    Logits Z = e^s I T^t for image rows I and text rows T (N, P) of length 1. With R the positives
    divided by their row sums, C by their column sums:
        L = (cross entropy of softmax over rows of Z with R + over columns of Z with C) / 2
    Backward:
        gZ = (softmax_rows - R + softmax_columns - C) / 2N
        gI = e^s gZ T,  gT = e^s gZ^t I,  gs = sum gZ Z
    (Radford et al. 2021, figure 3; spread over several positives: Khosla et al. 2020)
    """

    def forward(self, image, text, log_scale, *, positives):
        xp = array_module(image)
        positives = positives.astype(image.dtype)
        scale = xp.exp(log_scale)
        z = scale * (image @ text.T)  # (N, N)
        loss, gz = 0, 0
        for axis in (1, 0):
            target = positives / positives.sum(axis=axis, keepdims=True)
            shifted = z - z.max(axis=axis, keepdims=True)
            log_p = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
            loss = loss - (target * log_p).sum() / (2 * len(z))
            gz = gz + (xp.exp(log_p) - target) / (2 * len(z))
        self.save(image, text, scale, z, gz)
        return loss

    def backward(self, gy):
        image, text, scale, z, gz = self.saved
        gz = gz * gy
        return scale * (gz @ text), scale * (gz.T @ image), (gz * z).sum().reshape(scale.shape)


class GaussianKL(Function):
    """L = mean over n of sum of (m^2 + e^l - 1 - l) / 2: KL(N(m, e^l) || N(0, 1)).

    gm = gy m / N,  gl = gy (e^l - 1) / 2N.  (Kingma and Welling 2014, appendix B)
    """

    def forward(self, mean, logvar):
        variance = array_module(mean).exp(logvar)
        self.save(mean, variance)
        return 0.5 * (mean * mean + variance - 1 - logvar).sum() / len(mean)

    def backward(self, gy):
        mean, variance = self.saved
        gy = gy / len(mean)
        return gy * mean, (0.5 * gy) * (variance - 1)


def mse_loss(x, target, weight=None):
    """Mean of weight (x - target)^2. `target` has x's shape, `weight` broadcasts; both arrays."""
    if x.shape != target.shape:
        raise ValueError(f"mse_loss: x {x.shape} and target {target.shape} differ in shape")
    if not x.size:
        raise ValueError(f"mse_loss: {x.shape} has no element to take a mean of")
    return MSELoss.apply(x, target=target, weight=weight)


def softmax_cross_entropy(logits, target):
    """Mean cross entropy of logits (N, K) with `target`: class ids (N,) or probabilities (N, K).

    Ids are best on the host, where they are checked. ValueError for shapes or ids that do not fit.
    """
    x = raw(logits)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"softmax_cross_entropy: logits {x.shape} must be (N, K), N and K not 0")
    if target.ndim == 1:
        if target.dtype.kind not in "iu":
            raise ValueError(f"softmax_cross_entropy: ids must be integers, not {target.dtype}")
        if isinstance(target, np.ndarray) and not ((target >= 0) & (target < x.shape[1])).all():
            raise ValueError(f"softmax_cross_entropy: ids must lie in 0 ... {x.shape[1] - 1}")
        xp = array_module(x)
        target = xp.eye(x.shape[1], dtype=x.dtype)[xp.asarray(target)]  # (N, K)
    if target.shape != x.shape:
        raise ValueError(f"softmax_cross_entropy: target {target.shape} must be (N,) or {x.shape}")
    return SoftmaxCrossEntropy.apply(logits, target=target)


def contrastive_loss(image_features, text_features, log_scale, positives):
    """Symmetric contrastive loss of matching rows, each of length 1.

    Args:
        image_features, text_features: (N, P), normalised
        log_scale: logarithm of the inverse temperature, a Tensor or array of shape ()
        positives: booleans (N, N), true where text j describes image i: the diagonal, and where
            rows have the same text. (Between rows of equal vectors it makes no difference, to loss
            or gradients; where those differ, by dropout say, the diagonal alone punishes right
            answers.)

    Raises ValueError for shapes that do not fit, for a row or column without a positive, and (on
    the host) for a log_scale whose exponential is beyond the type's range.
    """
    n = len(image_features)
    if image_features.ndim != 2 or image_features.shape != text_features.shape or not n:
        shapes = f"{image_features.shape} and {text_features.shape}"
        raise ValueError(f"contrastive_loss: features {shapes} must both be (N, P), N not 0")
    if positives.shape != (n, n):
        raise ValueError(f"contrastive_loss: positives {positives.shape} must be {(n, n)}")
    if isinstance(positives, np.ndarray) and not (positives.any(0) & positives.any(1)).all():
        raise ValueError("contrastive_loss: every image and every text needs a positive")
    scale = raw(log_scale)
    if isinstance(scale, np.ndarray) and (scale > np.log(np.finfo(scale.dtype).max)).any():
        raise ValueError(f"contrastive_loss: e^{scale.max():g} is too large for {scale.dtype}")
    return ContrastiveLoss.apply(image_features, text_features, log_scale, positives=positives)


def gaussian_kl(mean, logvar):
    """KL divergence of N(mean, exp(logvar)) from N(0, 1): summed over dimensions, mean over N.

    mean and logvar: (N, ...), ValueError where shapes differ or N is 0.
    """
    if mean.shape != logvar.shape or not mean.ndim or not len(mean):
        shapes = f"{mean.shape} and {logvar.shape}"
        raise ValueError(f"gaussian_kl: {shapes} must both be (N, ...), N not 0")
    return GaussianKL.apply(mean, logvar)
