"""The autoencoder in PyTorch (see torch_models.py)."""

import torch.nn.functional as F
from torch import nn

from .torch_models import (
    Attention,
    Downsample2D,
    ResnetBlock2D,
    Upsample2D,
    as_image,
    as_tokens,
)

EPS = 1e-6


class AttentionBlock(Attention):
    def __init__(self, channels, groups):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, EPS)

    def forward(self, x):
        return x + as_image(super().forward(as_tokens(self.group_norm(x))), x)


class MidBlock(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels, groups)])
        self.resnets = nn.ModuleList(
            ResnetBlock2D(channels, channels, groups, EPS) for _ in range(2)
        )

    def forward(self, x):
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Level(nn.Module):
    def __init__(self, cin, cout, layers, groups, down=False, up=False):
        super().__init__()
        inputs = [cin] + [cout] * (layers - 1)
        self.resnets = nn.ModuleList(ResnetBlock2D(c, cout, groups, EPS) for c in inputs)
        self.downsamplers = nn.ModuleList([Downsample2D(cout, one_sided=True)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample2D(cout)] if up else [])

    def forward(self, x):
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        last, depth = len(widths) - 1, config.layers_per_block
        self.conv_in = nn.Conv2d(config.in_channels * config.patch_size**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(cin, cout, depth, groups, down=i < last)
            for i, (cin, cout) in enumerate(zip((widths[0], *widths), widths))
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        last, depth = len(widths) - 1, config.layers_per_block + 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            Level(cin, cout, depth, groups, up=i < last)
            for i, (cin, cout) in enumerate(zip((widths[0], *widths), widths))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        patch = config.out_channels * config.patch_size**2
        self.conv_out = nn.Conv2d(widths[-1], patch, 3, padding=1)

    def forward(self, z):
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Images have one channel: of several, ours orders a patch's pixels differently."""

    def __init__(self, config):
        super().__init__()
        latent = config.latent_channels
        self.patch_size = config.patch_size
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def encode(self, images):
        moments = self.quant_conv(self.encoder(F.pixel_unshuffle(images, self.patch_size)))
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, latents):
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(latents)), self.patch_size)
