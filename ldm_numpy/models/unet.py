"""The U-Net: noisy latent, noise level and text in, what to remove out.

Down through the levels, across the middle and up again; each step up sees what the same step down
produced (Ronneberger et al. 2015). Text enters by cross-attention (Rombach et al. 2022, section
3.3).
"""

import math
from dataclasses import dataclass

from .. import ops
from ..backend import array_module
from ..nn import Conv2d, GroupNorm, Linear, Module, ModuleList
from ..tensor import Tensor, concatenate
from .autoencoder import PixelSpaceConfig
from .blocks import (
    Downsample2D,
    Recorder,
    ResnetBlock2D,
    Transformer2DModel,
    Upsample2D,
    recorder_within,
)


@dataclass(frozen=True)
class UNetConfig:
    """Fields as in diffusers' UNet2DConditionModel; the defaults are Stable Diffusion 1.x's.

    Raises ValueError for combinations that no network can have.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)  # which levels see the text
    layers_per_block: int = 2
    attention_head_dim: int = 8  # the number of heads: diffusers' name for it is an old mistake
    cross_attention_dim: int = 768
    transformer_layers_per_block: int = 1
    norm_num_groups: int = 32
    fourier_exponents: tuple[int, ...] = ()  # ours, for pixels: see ops.fourier_features

    def __post_init__(self):
        # JSON gives lists
        object.__setattr__(self, "fourier_exponents", tuple(self.fourier_exponents))
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        if not all(isinstance(n, int) and 0 <= n <= 16 for n in self.fourier_exponents):
            raise ValueError(
                "UNetConfig: fourier_exponents must be whole numbers 0 ... 16, not "
                f"{self.fourier_exponents}"
            )
        levels = len(self.block_out_channels)
        if levels == 0 or len(self.attention_levels) != levels:
            raise ValueError(
                "UNetConfig: attention_levels needs one bool for each of block_out_channels, "
                f"not {len(self.attention_levels)} for {levels}"
            )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"UNetConfig: {channels} channels cannot form {self.norm_num_groups} groups "
                    "(norm_num_groups)"
                )
            if channels % self.attention_head_dim:
                raise ValueError(
                    f"UNetConfig: {channels} channels cannot form {self.attention_head_dim} heads "
                    "(attention_head_dim, which counts heads)"
                )
        if self.block_out_channels[0] % 2:
            raise ValueError("UNetConfig: the first of block_out_channels must be even")
        if min(self.layers_per_block, self.transformer_layers_per_block) < 1:
            raise ValueError("UNetConfig: every level needs at least one layer")


SD15 = UNetConfig()
MNIST = UNetConfig(
    block_out_channels=(64, 96),
    attention_levels=(True, True),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=64,
    norm_num_groups=16,
)
PIXEL = UNetConfig(  # of 28x28 pixels as 14x14 squares: 14 -> 7, where it attends
    block_out_channels=(48, 64),
    attention_levels=(False, True),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=64,
    norm_num_groups=16,
    fourier_exponents=(2, 4, 6),
)
PIXEL_SPACE = PixelSpaceConfig()


def timestep_embedding(timestep, dim: int):
    """[cos(t w_i), sin(t w_i)], w_i = 10000^(-2i / dim), i < dim / 2.  (N,) -> (N, dim).

    Vaswani et al. 2017, section 3.5; cosines first, as Stable Diffusion has it.
    """
    xp = array_module(timestep)
    half = dim // 2
    exponents = xp.arange(half, dtype=timestep.dtype) * (-math.log(10000) / half)
    angles = timestep[:, None] * xp.exp(exponents)  # (N, dim / 2)
    return xp.concatenate([xp.cos(angles), xp.sin(angles)], axis=-1)  # (N, dim)


class TimestepEmbedding(Module):
    """Two linear layers with SiLU between.  (N, din) -> (N, dout)."""

    def __init__(self, din: int, dout: int):
        self.linear_1 = Linear(din, dout)
        self.linear_2 = Linear(dout, dout)

    def forward(self, x) -> Tensor:
        return self.linear_2(ops.silu(self.linear_1(x)))


class UNetLevel(Module):
    """The ResBlocks of one level on the way down or up, each followed by a transformer where the
    level sees the text; then a change of resolution. Attributes that a level lacks are None."""

    def __init__(
        self,
        config: UNetConfig,
        in_channels: list[int],
        out_channels: int,
        attends: bool,
        downsample: bool = False,
        upsample: bool = False,
    ):
        """`in_channels`: what each ResBlock receives."""
        groups, time_channels = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.resnets = ModuleList(
            ResnetBlock2D(channels, out_channels, groups, 1e-5, time_channels)
            for channels in in_channels
        )
        transformer = (
            out_channels,
            config.attention_head_dim,
            config.cross_attention_dim,
            config.transformer_layers_per_block,
            groups,
        )
        count = len(in_channels)
        self.attentions = (
            ModuleList(Transformer2DModel(*transformer) for _ in range(count)) if attends else None
        )
        self.downsamplers = (
            ModuleList([Downsample2D(out_channels, padding=1)]) if downsample else None
        )
        self.upsamplers = ModuleList([Upsample2D(out_channels)]) if upsample else None

    def layer(self, i: int, x: Tensor, time: Tensor, context, recorder: Recorder | None) -> Tensor:
        """ResBlock i and its transformer.  (N, H, W, Cin) -> (N, H, W, Cout)."""
        x = self.resnets[i](x, time)
        if self.attentions:
            x = self.attentions[i](x, context, recorder_within(recorder, f"attentions.{i}"))
        return x


class UNetMidBlock(Module):
    """ResBlock, transformer, ResBlock at the lowest resolution.  (N, H, W, C)."""

    def __init__(self, config: UNetConfig):
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        time_channels = 4 * config.block_out_channels[0]
        self.attentions = ModuleList(
            [
                Transformer2DModel(
                    channels,
                    config.attention_head_dim,
                    config.cross_attention_dim,
                    config.transformer_layers_per_block,
                    groups,
                )
            ]
        )
        self.resnets = ModuleList(
            ResnetBlock2D(channels, channels, groups, 1e-5, time_channels) for _ in range(2)
        )

    def forward(self, x: Tensor, time: Tensor, context, recorder: Recorder | None) -> Tensor:
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, context, recorder_within(recorder, "attentions.0"))
        return self.resnets[1](x, time)


class UNet(Module):
    """diffusers' UNet2DConditionModel, as far as Stable Diffusion 1.x uses it.

    `seed` initialises the parameters; without it they are zeros, to be loaded.
    """

    def __init__(self, config: UNetConfig, seed: int | None = None):
        self.config = config
        widths = config.block_out_channels
        first, last = widths[0], len(widths) - 1

        waves = 1 + 2 * len(config.fourier_exponents)
        self.conv_in = Conv2d(config.in_channels * waves, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, 4 * first)

        skips, channels, levels = [first], first, []  # skips: channels of what goes across
        for i, width in enumerate(widths):
            inputs = [channels] + [width] * (config.layers_per_block - 1)
            attends = config.attention_levels[i]
            levels.append(UNetLevel(config, inputs, width, attends, downsample=i < last))
            skips += [width] * (config.layers_per_block + (i < last))
            channels = width
        self.down_blocks = ModuleList(levels)

        self.mid_block = UNetMidBlock(config)

        levels = []
        for i, width in reversed(list(enumerate(widths))):
            inputs = []
            for _ in range(config.layers_per_block + 1):
                inputs.append(channels + skips.pop())
                channels = width
            attends = config.attention_levels[i]
            levels.append(UNetLevel(config, inputs, width, attends, upsample=i > 0))
        self.up_blocks = ModuleList(levels)

        self.conv_norm_out = GroupNorm(config.norm_num_groups, first, 1e-5, silu=True)
        self.conv_out = Conv2d(first, config.out_channels, 3, padding=1, init="zeros")
        if seed is not None:
            self.initialise(seed)

    def forward(
        self, x, timestep, encoder_hidden_states, recorder: Recorder | None = None
    ) -> Tensor:
        """What the network says of a noisy latent.

        Args:
            x: latents (N, H, W, in_channels), Tensor or array; H and W divide by 2 at every level
            timestep: (N,) float array: the noise level, on whatever scale training used
            encoder_hidden_states: the text (N, T, cross_attention_dim), Tensor or array
            recorder: called with (path, weights (N, heads, H W, T or H W)) by every attention layer

        Returns (N, H, W, out_channels). Raises ValueError for shapes that do not fit.
        """
        self._check(x, timestep, encoder_hidden_states)
        context = encoder_hidden_states
        time = timestep_embedding(timestep, self.config.block_out_channels[0])  # (N, first)
        time = ops.silu(self.time_embedding(time))  # (N, 4 first): every ResBlock starts with SiLU

        if self.config.fourier_exponents:
            x = ops.fourier_features(x, self.config.fourier_exponents)  # (N, H, W, more C)
        x = self.conv_in(x)
        skips = [x]
        for i, level in enumerate(self.down_blocks):
            inner = recorder_within(recorder, f"down_blocks.{i}")
            for j in range(len(level.resnets)):
                x = level.layer(j, x, time, context, inner)
                skips.append(x)
            if level.downsamplers:
                x = level.downsamplers[0](x)  # (N, H/2, W/2, C)
                skips.append(x)

        x = self.mid_block(x, time, context, recorder_within(recorder, "mid_block"))

        for i, level in enumerate(self.up_blocks):
            inner = recorder_within(recorder, f"up_blocks.{i}")
            for j in range(len(level.resnets)):
                x = concatenate([x, skips.pop()], axis=-1)  # (N, H, W, C + Cskip)
                x = level.layer(j, x, time, context, inner)
            if level.upsamplers:
                x = level.upsamplers[0](x)  # (N, 2H, 2W, C)

        return self.conv_out(self.conv_norm_out(x))

    def _check(self, x, timestep, context) -> None:
        config = self.config
        step = 2 ** (len(config.block_out_channels) - 1)
        if x.ndim != 4 or x.shape[-1] != config.in_channels or any(n % step for n in x.shape[1:3]):
            raise ValueError(
                f"UNet: latents of shape {x.shape}; expected (N, H, W, {config.in_channels}) with "
                f"H and W multiples of {step}"
            )
        if timestep.shape != (len(x),):
            raise ValueError(f"UNet: timestep of shape {timestep.shape}; expected ({len(x)},)")
        width = config.cross_attention_dim
        if context.ndim != 3 or len(context) != len(x) or context.shape[-1] != width:
            raise ValueError(
                f"UNet: encoder_hidden_states of shape {context.shape}; expected "
                f"({len(x)}, T, {width})"
            )
