"""The parts that the autoencoder and the U-Net are made of.

Layers that end a residual branch start at zero in the U-Net, so that at first every block is the
identity and the signal crosses a deep network unchanged (as in the code of Rombach et al. 2022,
"High-resolution image synthesis with latent diffusion models": `zero_module`).
"""

from collections.abc import Callable
from functools import partial

from .. import ops
from ..nn import Conv2d, GroupNorm, LayerNorm, Linear, Module, ModuleList
from ..tensor import Tensor

Recorder = Callable[[str, object], None]  # (path of the attention layer, weights (N, heads, T, S))


def recorder_within(recorder: Recorder | None, path: str) -> Recorder | None:
    """A recorder for the module at `path`: it puts `path` before the names it is given."""
    if recorder is None:
        return None
    return lambda name, weights: recorder(f"{path}.{name}", weights)


class ResnetBlock2D(Module):
    """y = shortcut(x) + conv(silu(norm(conv(silu(norm(x))) + time))).  (N, H, W, Cin -> Cout).

    With `time_channels`, the U-Net's block: a projection of the time embedding joins between the
    convolutions, and the second of them starts at zero. Without, the autoencoder's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        eps: float,
        time_channels: int | None = None,
    ):
        last_init = "zeros" if time_channels else None
        self.norm1 = GroupNorm(groups, in_channels, eps, silu=True)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = Linear(time_channels, out_channels) if time_channels else None
        self.norm2 = GroupNorm(groups, out_channels, eps, silu=True)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, init=last_init)
        changes = in_channels != out_channels
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1) if changes else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(self.norm1(x))  # (N, H, W, Cout)
        if self.time_emb_proj:
            shift = self.time_emb_proj(time)  # (N, Cout)
            h = h + shift.reshape(len(shift), 1, 1, shift.shape[1])
        h = self.conv2(self.norm2(h))
        return h + (self.conv_shortcut(x) if self.conv_shortcut else x)


class Downsample2D(Module):
    """A convolution of stride 2.  (N, H, W, C) -> (N, H/2, W/2, C).

    The U-Net pads by 1 on every side, the autoencoder on the right and at the bottom only.
    """

    def __init__(self, channels: int, padding: int | tuple[int, int, int, int]):
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample2D(Module):
    """Each pixel repeated 2 x 2, then a convolution.  (N, H, W, C) -> (N, 2H, 2W, C)."""

    def __init__(self, channels: int):
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(ops.upsample_nearest(x, 2))


class Attention(Module):
    """softmax(Q K^T / sqrt(D / heads)) V in each head, projected (Vaswani et al. 2017, eq. 1).

    Queries come from x (N, T, D); keys and values from `context` (N, S, context_dim), or from x
    itself. -> (N, T, D).
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, bias: bool = False):
        context_dim = context_dim or dim
        self.heads = heads
        self.to_q = Linear(dim, dim, bias)
        self.to_k = Linear(context_dim, dim, bias)
        self.to_v = Linear(context_dim, dim, bias)
        self.to_out = ModuleList([Linear(dim, dim)])

    def forward(self, x: Tensor, context=None, recorder: Callable | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)  # (N, T or S, D)
        return self.to_out[0](ops.attention(q, k, v, heads=self.heads, recorder=recorder))


class GEGLU(Module):
    """y = a * gelu(b), (a, b) = x W + b0 (Shazeer 2020, "GLU variants improve transformer").

    (N, T, D) -> (N, T, Dout)."""

    def __init__(self, dim: int, dout: int):
        self.proj = Linear(dim, 2 * dout)

    def forward(self, x: Tensor) -> Tensor:
        return ops.geglu(self.proj(x))  # (N, T, 2 Dout) -> (N, T, Dout)


class FeedForward(Module):
    """Two linear layers with GEGLU between, four times as wide inside.  (N, T, D)."""

    def __init__(self, dim: int):
        self.net = ModuleList([GEGLU(dim, 4 * dim), None, Linear(4 * dim, dim)])  # 1: no dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(Module):
    """Self-attention, cross-attention to the text and feed-forward, each x + f(norm(x)).

    x (N, T, D), context (N, S, context_dim) -> (N, T, D).
    """

    def __init__(self, dim: int, heads: int, context_dim: int):
        self.norm1 = LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.norm2 = LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context, recorder: Recorder | None = None) -> Tensor:
        to_self = partial(recorder, "attn1") if recorder else None
        to_text = partial(recorder, "attn2") if recorder else None
        x = x + self.attn1(self.norm1(x), recorder=to_self)
        x = x + self.attn2(self.norm2(x), context, recorder=to_text)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(Module):
    """Transformer blocks over the pixels of a feature map, added to it.  (N, H, W, C).

    Channels last, so pixels become tokens by a reshape that copies nothing.
    """

    def __init__(self, channels: int, heads: int, context_dim: int, layers: int, groups: int):
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Conv2d(channels, channels, 1)
        self.transformer_blocks = ModuleList(
            BasicTransformerBlock(channels, heads, context_dim) for _ in range(layers)
        )
        self.proj_out = Conv2d(channels, channels, 1, init="zeros")

    def forward(self, x: Tensor, context, recorder: Recorder | None = None) -> Tensor:
        n, height, width, channels = x.shape
        h = self.proj_in(self.norm(x))
        h = h.reshape(n, height * width, channels)  # (N, T, C)
        for i, block in enumerate(self.transformer_blocks):
            h = block(h, context, recorder_within(recorder, f"transformer_blocks.{i}"))
        h = h.reshape(n, height, width, channels)  # (N, H, W, C)
        return x + self.proj_out(h)
