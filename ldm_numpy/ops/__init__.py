"""Fused operations with hand-derived backward passes. Stateless: every weight is an argument.

Channels come last everywhere: images (N, H, W, C), tokens (N, T, D).
"""

from .activation import dropout, geglu, gelu, quick_gelu, relu, sigmoid, silu, softmax, tanh
from .attention import attention
from .conv import conv2d
from .embedding import embedding, fourier_features
from .linear import linear
from .loss import contrastive_loss, gaussian_kl, mse_loss, softmax_cross_entropy
from .norm import group_norm, layer_norm
from .resample import average_pool, depth_to_space, space_to_depth, upsample_nearest

__all__ = [
    "attention",
    "average_pool",
    "contrastive_loss",
    "conv2d",
    "depth_to_space",
    "dropout",
    "embedding",
    "fourier_features",
    "gaussian_kl",
    "geglu",
    "gelu",
    "group_norm",
    "layer_norm",
    "linear",
    "mse_loss",
    "quick_gelu",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "space_to_depth",
    "tanh",
    "upsample_nearest",
]
