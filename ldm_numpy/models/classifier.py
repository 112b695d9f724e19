"""Classifiers of digits. One supplies the features of the perceptual loss; another, of a different
architecture, reads the samples, so that no network is judged by the one it was trained against.
"""

import math
from dataclasses import dataclass

from .. import ops
from ..backend import array_module
from ..nn import Conv2d, GroupNorm, Linear, Module, ModuleList
from ..tensor import Tensor, concatenate
from .blocks import ResnetBlock2D


@dataclass(frozen=True)
class ClassifierConfig:
    """A small convolutional network.

    Fields:
        patch_size: squares of so many pixels a side become channels first: fast on a CPU
        block_out_channels: one level each, at half the resolution of the one before
        layers_per_block: blocks a level after the convolution that enters it
        residual: whether those blocks are ResBlocks; plain convolutions otherwise
        pool: side of the squares whose mean the head sees
        embedding_dim: width of the last layer but one

    Raises ValueError for combinations that no network can have.
    """

    in_channels: int = 1
    num_classes: int = 10
    image_size: int = 28
    patch_size: int = 2
    block_out_channels: tuple[int, ...] = (32, 64)
    layers_per_block: int = 1
    residual: bool = True
    pool: int = 1
    embedding_dim: int = 64
    norm_num_groups: int = 8

    def __post_init__(self):
        # JSON gives a list
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        if not self.block_out_channels or self.layers_per_block < 0:
            raise ValueError("ClassifierConfig: at least one level, and no negative layers")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"ClassifierConfig: {channels} channels cannot form {self.norm_num_groups} "
                    "groups (norm_num_groups)"
                )
        if self.image_size % (self.patch_size * 2 ** (len(self.block_out_channels) - 1)):
            raise ValueError(
                f"ClassifierConfig: images of {self.image_size} pixels cannot be halved as often "
                "as block_out_channels and patch_size ask"
            )
        if self.last_side % self.pool:
            raise ValueError(
                f"ClassifierConfig: pool {self.pool} does not divide the last feature map, "
                f"{self.last_side} pixels wide"
            )

    @property
    def last_side(self) -> int:
        """Side of the last feature map."""
        return self.image_size // (self.patch_size * 2 ** (len(self.block_out_channels) - 1))


PERCEPTUAL = ClassifierConfig(block_out_channels=(32, 64), residual=False)
READER = ClassifierConfig(block_out_channels=(32, 64), residual=True, pool=7, embedding_dim=128)
NOISY = ClassifierConfig(  # of latents, 8x8x4
    in_channels=5, image_size=8, patch_size=1, block_out_channels=(48, 64), pool=4, embedding_dim=64
)


class ConvBlock(Module):
    """silu(norm(conv(x))).  (N, H, W, Cin) -> (N, H / stride, W / stride, Cout)."""

    def __init__(self, cin: int, cout: int, groups: int, stride: int = 1):
        self.conv = Conv2d(cin, cout, 3, stride=stride, padding=1)
        self.norm = GroupNorm(groups, cout, silu=True)

    def forward(self, x) -> Tensor:
        return self.norm(self.conv(x))


class Classifier(Module):
    """images (N, H, W, C) in [-1, 1] -> logits (N, classes).

    `seed` initialises the parameters; without it they are zeros, to be loaded.
    """

    def __init__(self, config: ClassifierConfig, seed: int | None = None):
        self.config = config
        groups = config.norm_num_groups
        channels, levels = config.in_channels * config.patch_size**2, []
        for i, width in enumerate(config.block_out_channels):
            blocks = [ConvBlock(channels, width, groups, stride=1 if i == 0 else 2)]
            for _ in range(config.layers_per_block):
                if config.residual:
                    blocks.append(ResnetBlock2D(width, width, groups, 1e-5))
                else:
                    blocks.append(ConvBlock(width, width, groups))
            levels.append(ModuleList(blocks))
            channels = width
        self.levels = ModuleList(levels)
        squares = (config.last_side // config.pool) ** 2
        self.embedding = Linear(channels * squares, config.embedding_dim)
        self.head = Linear(config.embedding_dim, config.num_classes)
        if seed is not None:
            self.initialise(seed)

    def features(self, images) -> list[Tensor]:
        """The feature maps (N, H, W, C) after each level, finest first, for a perceptual loss.

        Raises ValueError for images of another size.
        """
        size, channels = self.config.image_size, self.config.in_channels
        if images.ndim != 4 or images.shape[1:] != (size, size, channels):
            raise ValueError(
                f"Classifier: images of shape {images.shape}; expected "
                f"(N, {size}, {size}, {channels})"
            )
        x = ops.space_to_depth(images, self.config.patch_size)  # (N, H/p, W/p, p p C)
        maps = []
        for level in self.levels:
            for block in level:
                x = block(x)  # (N, H/2, W/2, C) where a level after the first is entered
            maps.append(x)
        return maps

    def embed(self, images) -> Tensor:
        """The last layer but one (N, embedding_dim): a space in which digits can be compared."""
        x = ops.average_pool(self.features(images)[-1], self.config.pool)  # (N, h, w, C)
        flat = x.reshape(len(x), math.prod(x.shape[1:]))  # (N, h w C)
        return ops.silu(self.embedding(flat))  # (N, D)

    def forward(self, images) -> Tensor:
        return self.head(self.embed(images))


class NoisyClassifier(Classifier):
    """log p(class | x; sigma), of latents that hold noise: a Classifier whose input has one channel
    more, which says how much. Its configuration's in_channels counts that one too.

    Dhariwal and Nichol 2021, "Diffusion models beat GANs on image synthesis", section 4.1.
    """

    def forward(self, x, sigma) -> Tensor:
        """Logits (N, classes) of scaled latents x (N, H, W, C), Tensor or array, at noise levels
        sigma, an array (N,)."""
        xp = array_module(sigma)
        level = sigma[:, None, None, None]  # (N, 1, 1, 1)
        channel = xp.broadcast_to(xp.log(level) / 4, (*x.shape[:3], 1))
        scaled = x / xp.sqrt(level**2 + 1)  # of variance 1, as the clean latents
        return super().forward(concatenate([scaled, channel], axis=-1))

    def log_probability(self, x, sigma, classes) -> Tensor:
        """log p(classes | x; sigma) (N,) in nats, for classes (N,), as `classifier_guide` asks."""
        xp, n = array_module(x.data), len(x)
        levels = xp.broadcast_to(xp.asarray(sigma, dtype=x.dtype), (n,))
        logits = self(x, levels)
        logits = logits - logits.data.max(axis=1, keepdims=True)
        chosen = logits[xp.arange(n), xp.asarray(classes)]
        return chosen - logits.exp().sum(axis=1).log()
