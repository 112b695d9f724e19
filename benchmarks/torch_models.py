"""The same three networks in PyTorch, as a PyTorch user writes them.

Parameter names are those of diffusers and transformers, so a state dict of ours, brought into
PyTorch's layout by `ldm_numpy.nn.to_torch_layout`, loads as it is. Images are (N, C, H, W).
Configurations are ours, too.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def as_image(tokens, x):
    """Tokens (N, H W, C) as an image (N, C, H, W), in the memory format of the image x."""
    n, _, height, width = x.shape
    image = tokens.reshape(n, height, width, -1).permute(0, 3, 1, 2)
    last = x.is_contiguous(memory_format=torch.channels_last)
    return image.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def as_tokens(image):
    """(N, C, H, W) -> (N, H W, C)."""
    return image.flatten(2).transpose(1, 2)


def heads_attention(q, k, v, heads: int, causal: bool = False):
    """Attention of q (N, T, D) on k and v (N, S, D), in so many heads -> (N, T, D)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, h, T, d)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return y.transpose(1, 2).flatten(2)


class ResnetBlock2D(nn.Module):
    def __init__(self, cin, cout, groups, eps, time_channels=None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, cin, eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        if time_channels:
            self.time_emb_proj = nn.Linear(time_channels, cout)
        self.norm2 = nn.GroupNorm(groups, cout, eps)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x, time=None):
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample2D(nn.Module):
    def __init__(self, channels, one_sided=False):
        super().__init__()
        self.one_sided = one_sided
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if one_sided else 1)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.one_sided else x)


class Upsample2D(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Attention(nn.Module):
    def __init__(self, dim, heads, context_dim=None, bias=False):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias)
        self.to_k = nn.Linear(context_dim or dim, dim, bias)
        self.to_v = nn.Linear(context_dim or dim, dim, bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out[0](heads_attention(q, k, v, self.heads))


class GEGLU(nn.Module):
    def __init__(self, dim, dout):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * dout)

    def forward(self, x):
        a, b = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(b)


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, dim, heads, context_dim):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.attn2 = nn.LayerNorm(dim), Attention(dim, heads, context_dim)
        self.norm3, self.ff = nn.LayerNorm(dim), FeedForward(dim)

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    def __init__(self, channels, config):
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, config.attention_head_dim, config.cross_attention_dim)
            for _ in range(config.transformer_layers_per_block)
        )
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x, context):
        h = as_tokens(self.proj_in(self.norm(x)))
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(as_image(h, x))


class UNetLevel(nn.Module):
    def __init__(self, config, inputs, channels, attends, down=False, up=False):
        super().__init__()
        groups, time_channels = config.norm_num_groups, 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList(
            ResnetBlock2D(cin, channels, groups, 1e-5, time_channels) for cin in inputs
        )
        count = len(inputs) if attends else 0
        self.attentions = nn.ModuleList(Transformer2DModel(channels, config) for _ in range(count))
        self.downsamplers = nn.ModuleList([Downsample2D(channels)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample2D(channels)] if up else [])

    def layer(self, i, x, time, context):
        x = self.resnets[i](x, time)
        return self.attentions[i](x, context) if self.attentions else x


class UNetMidBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        channels, groups = config.block_out_channels[-1], config.norm_num_groups
        time_channels = 4 * config.block_out_channels[0]
        self.attentions = nn.ModuleList([Transformer2DModel(channels, config)])
        self.resnets = nn.ModuleList(
            ResnetBlock2D(channels, channels, groups, 1e-5, time_channels) for _ in range(2)
        )

    def forward(self, x, time, context):
        return self.resnets[1](self.attentions[0](self.resnets[0](x, time), context), time)


class UNet(nn.Module):
    """UNet2DConditionModel. x (N, C, H, W), timestep (N,), context (N, T, D)."""

    def __init__(self, config):
        super().__init__()
        widths, depth = config.block_out_channels, config.layers_per_block
        first, last = widths[0], len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(first, 4 * first), "linear_2": nn.Linear(4 * first, 4 * first)}
        )
        exponents = -math.log(10000) * torch.arange(first // 2) / (first // 2)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)
        skips, channels, levels = [first], first, []
        for i, width in enumerate(widths):
            inputs = [channels] + [width] * (depth - 1)
            attends = config.attention_levels[i]
            levels.append(UNetLevel(config, inputs, width, attends, down=i < last))
            skips += [width] * (depth + (i < last))
            channels = width
        self.down_blocks = nn.ModuleList(levels)
        self.mid_block = UNetMidBlock(config)
        levels = []
        for i, width in reversed(list(enumerate(widths))):
            inputs = []
            for _ in range(depth + 1):
                inputs.append(channels + skips.pop())
                channels = width
            levels.append(UNetLevel(config, inputs, width, config.attention_levels[i], up=i > 0))
        self.up_blocks = nn.ModuleList(levels)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, first, 1e-5)
        self.conv_out = nn.Conv2d(first, config.out_channels, 3, padding=1)

    def forward(self, x, timestep, context):
        angles = timestep[:, None] * self.frequencies
        time = torch.cat([angles.cos(), angles.sin()], dim=-1)
        time = self.time_embedding["linear_2"](F.silu(self.time_embedding["linear_1"](time)))
        time = F.silu(time)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_blocks:
            for i in range(len(level.resnets)):
                x = level.layer(i, x, time, context)
                skips.append(x)
            for downsample in level.downsamplers:
                x = downsample(x)
                skips.append(x)
        x = self.mid_block(x, time, context)
        for level in self.up_blocks:
            for i in range(len(level.resnets)):
                x = level.layer(i, torch.cat([x, skips.pop()], dim=1), time, context)
            for upsample in level.upsamplers:
                x = upsample(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
