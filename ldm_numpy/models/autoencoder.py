"""The autoencoder: images to latents and back, regularised by a KL term.

Kingma and Welling 2014 ("Auto-encoding variational Bayes") with the convolutional encoder and
decoder of Rombach et al. 2022. The latent of an image is a Gaussian for each element: encode gives
its mean and the logarithm of its variance.
"""

import math
from dataclasses import dataclass

from .. import ops
from ..nn import Conv2d, GroupNorm, Module, ModuleList
from ..tensor import Tensor
from .blocks import Attention, Downsample2D, ResnetBlock2D, Upsample2D

EPS = 1e-6  # of every normalisation here; the U-Net's ResBlocks have 1e-5


@dataclass(frozen=True)
class AutoencoderConfig:
    """Fields as in diffusers' AutoencoderKL, defaults as in Stable Diffusion 1.x.

    `patch_size` is ours: squares of so many pixels a side become channels before the first
    convolution and pixels again after the last, because convolutions at full resolution with few
    channels are slow on a CPU.

    Raises ValueError for combinations that no network can have.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    patch_size: int = 1

    def __post_init__(self):
        # JSON gives a list
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        if not self.block_out_channels:
            raise ValueError("AutoencoderConfig: block_out_channels needs at least one level")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"AutoencoderConfig: {channels} channels cannot form {self.norm_num_groups} "
                    "groups (norm_num_groups)"
                )
        if min(self.layers_per_block, self.latent_channels, self.patch_size) < 1:
            raise ValueError(
                "AutoencoderConfig: layers_per_block, latent_channels and patch_size start at 1"
            )

    @property
    def downsampling(self) -> int:
        """Pixels of the image a latent pixel stands for, along one side."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)


SD15 = AutoencoderConfig()
MNIST = AutoencoderConfig(
    in_channels=1,
    out_channels=1,
    block_out_channels=(32, 48),
    layers_per_block=1,
    norm_num_groups=8,
    patch_size=2,
)


class AttentionBlock(Attention):
    """x + attention(norm(x)) over the pixels, with one head.  (N, H, W, C)."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = GroupNorm(groups, channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        tokens = self.group_norm(x).reshape(n, height * width, channels)  # (N, T, C)
        return x + super().forward(tokens).reshape(n, height, width, channels)  # (N, H, W, C)


class Level(Module):
    """The ResBlocks of one resolution, then the change to the next.  (N, H, W, Cin -> Cout)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int,
        groups: int,
        downsample: bool = False,
        upsample: bool = False,
    ):
        inputs = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = ModuleList(ResnetBlock2D(c, out_channels, groups, EPS) for c in inputs)
        right_and_bottom = (0, 1, 0, 1)
        self.downsamplers = (
            ModuleList([Downsample2D(out_channels, right_and_bottom)]) if downsample else None
        )
        self.upsamplers = ModuleList([Upsample2D(out_channels)]) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for resample in self.downsamplers or self.upsamplers or ():
            x = resample(x)  # (N, H/2, W/2, C) or (N, 2H, 2W, C)
        return x


class MidBlock(Module):
    """ResBlock, attention, ResBlock.  (N, H, W, C)."""

    def __init__(self, channels: int, groups: int):
        self.attentions = ModuleList([AttentionBlock(channels, groups)])
        self.resnets = ModuleList(ResnetBlock2D(channels, channels, groups, EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(Module):
    """(N, H, W, Cin) -> (N, H / f, W / f, 2 latent), f = 2^(levels - 1)."""

    def __init__(self, config: AutoencoderConfig):
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv2d(config.in_channels * config.patch_size**2, widths[0], 3, padding=1)
        self.down_blocks = ModuleList(
            Level(cin, cout, config.layers_per_block, groups, downsample=i < len(widths) - 1)
            for i, (cin, cout) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS, silu=True)
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)  # (N, H/2, W/2, C), but for the last
        return self.conv_out(self.conv_norm_out(self.mid_block(x)))


class Decoder(Module):
    """(N, h, w, latent) -> (N, f h, f w, Cout): the encoder mirrored, one ResBlock more a level."""

    def __init__(self, config: AutoencoderConfig):
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = ModuleList(
            Level(cin, cout, config.layers_per_block + 1, groups, upsample=i < len(widths) - 1)
            for i, (cin, cout) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS, silu=True)
        self.conv_out = Conv2d(widths[-1], config.out_channels * config.patch_size**2, 3, padding=1)

    def forward(self, z) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)  # (N, 2h, 2w, C), but for the last
        return self.conv_out(self.conv_norm_out(x))


class AutoencoderKL(Module):
    """diffusers' AutoencoderKL. Latents are as encoded: scaling them is the pipeline's business.

    `seed` initialises the parameters; without it they are zeros, to be loaded.
    """

    def __init__(self, config: AutoencoderConfig, seed: int | None = None):
        self.config = config
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = Conv2d(latent, latent, 1)
        if seed is not None:
            self.initialise(seed)

    def encode(self, images) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, each (N, H / f, W / f, latent).

        images: (N, H, W, Cin) in [-1, 1]; f = patch_size 2^(levels - 1).
        Raises ValueError for another number of axes or channels.
        """
        self._check("images", images, self.config.in_channels)
        images = ops.space_to_depth(images, self.config.patch_size)  # (N, H/p, W/p, p p Cin)
        moments = self.quant_conv(self.encoder(images))  # (N, H/f, W/f, 2 latent)
        latent = self.config.latent_channels
        return moments[..., :latent], moments[..., latent:].clip(-30.0, 20.0)

    def decode(self, latents) -> Tensor:
        """Images (N, f h, f w, Cout) of latents (N, h, w, latent); ValueError as for `encode`."""
        self._check("latents", latents, self.config.latent_channels)
        patches = self.decoder(self.post_quant_conv(latents))  # (N, f h / p, f w / p, p p Cout)
        return ops.depth_to_space(patches, self.config.patch_size)  # (N, f h, f w, Cout)

    @staticmethod
    def _check(what: str, x, channels: int) -> None:
        if x.ndim != 4 or x.shape[-1] != channels:
            raise ValueError(
                f"AutoencoderKL: {what} of shape {x.shape}; expected (N, H, W, {channels})"
            )


@dataclass(frozen=True)
class PixelSpaceConfig:
    """channels of the image; patch_size: side of the squares of pixels that become channels; mean:
    of all pixels, which is taken away, for a network wants numbers about zero."""

    channels: int = 1
    patch_size: int = 2
    mean: float = 0.0

    def __post_init__(self):
        if min(self.channels, self.patch_size) < 1:
            raise ValueError("PixelSpaceConfig: channels and patch_size start at 1")
        if not isinstance(self.mean, int | float) or not math.isfinite(self.mean):
            raise ValueError(f"PixelSpaceConfig: mean must be a finite number, not {self.mean!r}")

    @property
    def latent_channels(self) -> int:
        return self.channels * self.patch_size**2

    @property
    def downsampling(self) -> int:
        return self.patch_size


class PixelSpace(Module):
    """What stands in the autoencoder's place in a model of pixels: "latents" are the pixels
    themselves, only in another order, because a U-Net at full resolution is slow on a CPU.

    It has no parameters, loses nothing, and leaves likelihoods as they are.
    """

    def __init__(self, config: PixelSpaceConfig):
        self.config = config

    def encode(self, images) -> tuple[Tensor, Tensor]:
        """(N, H, W, C) -> (N, H / p, W / p, p p C), and its log-variance: none to speak of."""
        latents = ops.space_to_depth(images, self.config.patch_size) - self.config.mean
        return latents, latents * 0 - 30.0

    def decode(self, latents) -> Tensor:
        """The inverse of `encode`."""
        return ops.depth_to_space(latents + self.config.mean, self.config.patch_size)
