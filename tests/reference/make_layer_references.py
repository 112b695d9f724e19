"""Writes `layers.npz` beside it: what PyTorch computes for each layer and operation of the library.

Run once, in an environment of its own, with PyTorch:

    python tests/reference/make_layer_references.py

Each case is a function of PyTorch, its inputs, its output and the gradients of <gy, output> with
respect to the inputs, everything in float64 and in PyTorch's layout. Inputs are multiples of 1/256,
which float32 holds exactly. The file has three members:

- `index`: JSON, the versions and for each case the names, types and shapes of its inputs (gy among
  them), the shape of its output and the names of the inputs that have gradients
- `inputs`: float32, all inputs one after the other, in the order of the index
- `results`: float64, of each case the output and then the gradients
"""

import json
import math
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from weights import noise

FILE = Path(__file__).with_name("layers.npz")


def draw(name: str, *shape: int) -> np.ndarray:
    return np.asarray(np.round(256 * noise(name, shape)) / 256)


def positive(name: str, *shape: int) -> np.ndarray:
    return np.abs(draw(name, *shape)) + 0.5


class Recorder:
    """Collects the cases."""

    def __init__(self):
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        self.index = {"versions": versions | {"numpy": np.__version__}, "cases": {}}
        self.inputs, self.results = [], []

    def case(self, name: str, function: Callable, constants=(), **inputs) -> None:
        """Run function(**inputs); a shape stands for random numbers. Floating point inputs that are
        not among `constants` get gradients."""
        arrays = {
            key: draw(f"{name} {key}", *value) if isinstance(value, tuple) else np.asarray(value)
            for key, value in inputs.items()
        }
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        leaves = [k for k, t in tensors.items() if t.is_floating_point() and k not in constants]
        for key in leaves:
            tensors[key].requires_grad_()
        output = function(**tensors)
        arrays["gy"] = draw(f"{name} gy", *output.shape)
        gradients = torch.autograd.grad(
            output, [tensors[key] for key in leaves], torch.from_numpy(arrays["gy"])
        )
        self.index["cases"][name] = {
            "inputs": {key: [str(a.dtype), list(a.shape)] for key, a in arrays.items()},
            "output": list(output.shape),
            "gradients": leaves,
        }
        for array in arrays.values():
            assert (array.astype(np.float32) == array).all()
            self.inputs.append(array.astype(np.float32).ravel())
        self.results += [t.detach().numpy().ravel() for t in (output, *gradients)]

    def block(self, name: str, module: nn.Module, **inputs) -> None:
        """A module: its parameters are inputs too, by their names."""
        module.double()
        parameters = dict(module.named_parameters())
        weights = {
            key: draw(f"{name} {key}", *p.shape) / 2 ** round(math.log2(p.shape[-1]) / 2)
            if p.ndim > 1
            else draw(f"{name} {key}", *p.shape) / 4 + ("norm" in key and key.endswith("weight"))
            for key, p in parameters.items()
        }
        weights = {key: np.round(256 * value) / 256 for key, value in weights.items()}

        def run(**values):
            state = {key: values.pop(key) for key in parameters}
            return torch.func.functional_call(module, state, kwargs=values)

        self.case(name, run, **inputs, **weights)

    def write(self) -> None:
        np.savez_compressed(
            FILE,
            index=np.array(json.dumps(self.index)),
            inputs=np.concatenate(self.inputs),
            results=np.concatenate(self.results),
        )


# Operations --------------------------------------------------------------------------------


def conv2d(padding=0, stride=1):
    """With zeros (top, bottom, left, right) around the image, or so many on every side."""
    top, bottom, left, right = (padding,) * 4 if isinstance(padding, int) else padding

    def run(x, weight, bias=None):
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride)

    return run


def group_norm(groups: int, eps: float = 1e-5):
    return lambda x, weight, bias: F.group_norm(x, groups, weight, bias, eps)


def geglu(h):
    a, b = h.chunk(2, dim=-1)
    return a * F.gelu(b)


def attention(heads: int, causal: bool = False):
    """scaled_dot_product_attention of q (N, T, D), k and v (N, S, D)."""

    def run(q, k, v, mask=None):
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return y.transpose(1, 2).flatten(2)

    return run


def space_to_depth(x, block: int = 2):
    """pixel_unshuffle, with the channels of a pixel together."""
    y = F.pixel_unshuffle(x, block).unflatten(1, (x.shape[1], -1))
    return y.transpose(1, 2).flatten(1, 2)


def depth_to_space(x, block: int = 2):
    y = x.unflatten(1, (block**2, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(y, block)


def weighted_mse(x, target, weight):
    return (weight * (x - target) ** 2).mean()


def gaussian_kl(mean, logvar):
    normal = torch.distributions.Normal
    posterior = normal(mean, torch.exp(0.5 * logvar))
    prior = normal(torch.zeros_like(mean), torch.ones_like(mean))
    return torch.distributions.kl_divergence(posterior, prior).sum() / len(mean)


def contrastive(image, text, log_scale):
    logits = log_scale.exp() * image @ text.T
    right = torch.arange(len(logits))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


# Blocks ------------------------------------------------------------------------------------


class Resnet(nn.Module):
    """The residual block of diffusers, spelled out."""

    def __init__(self, cin: int, cout: int, groups: int, eps: float, time: int | None = None):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, cin, eps)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, cout) if time else None
        self.norm2 = nn.GroupNorm(groups, cout, eps)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, time=None):
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        return self.conv2(F.silu(self.norm2(h))) + self.conv_shortcut(x)


class Sampling(nn.Module):
    """Down: a convolution of stride 2. Up: nearest neighbours, then a convolution."""

    def __init__(self, channels: int, resample: Callable, **options):
        super().__init__()
        self.resample = resample
        self.conv = nn.Conv2d(channels, channels, 3, **options)

    def forward(self, x):
        return self.conv(self.resample(x))


class CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x, context=None):
        context = x if context is None else context
        heads = attention(self.heads)
        return self.to_out[0](heads(self.to_q(x), self.to_k(context), self.to_v(context)))


class Gate(nn.Module):
    def __init__(self, dim: int, dout: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * dout)

    def forward(self, x):
        return geglu(self.proj(x))


class Transformer(nn.Module):
    """BasicTransformerBlock of diffusers, spelled out."""

    def __init__(self, dim: int, heads: int, context_dim: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn1 = CrossAttention(dim, heads, dim)
        self.attn2 = CrossAttention(dim, heads, context_dim)
        self.ff = nn.Module()
        self.ff.net = nn.ModuleList([Gate(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x, context):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        h = self.norm3(x)
        for layer in self.ff.net:
            h = layer(h)
        return x + h


# Cases -------------------------------------------------------------------------------------


def arithmetic(record: Recorder) -> None:
    case = record.case
    case("add", lambda a, b: a + b, a=(2, 1, 3), b=(4, 1))
    case("sub", lambda a, b: a - b, a=(4, 1), b=(2, 1, 3))
    case("mul", lambda a, b: a * b, a=(2, 1, 3), b=(4, 1))
    case("div", lambda a, b: a / b, a=(4, 1), b=positive("div b", 2, 1, 3))
    case("pow", lambda x: x**-1.5, x=positive("pow x", 2, 3))
    case("exp", torch.exp, input=(2, 3))
    case("log", torch.log, input=positive("log x", 2, 3))
    case("clip", lambda x: x.clip(-0.5, 0.75), x=np.array([-2, -0.5, 0.25, 0.75, 1.0]))
    case("matmul", lambda a, b: a @ b, a=(2, 1, 2, 3), b=(3, 3, 2))
    case("sum", lambda x: x.sum((0, 2)), x=(2, 3, 2))
    case("mean", lambda x: x.mean((0, 2), keepdim=True), x=(2, 3, 2))
    case("max", lambda x: x.amax((0, 2)), x=np.array([[[1, 3], [2, 0.5]], [[3, 3], [1, 2]]]))
    case("reshape", lambda x: x.reshape(3, 4), x=(2, 3, 2))
    case("transpose", lambda x: x.permute(2, 0, 1), x=(2, 3, 2))
    case("pad", lambda x: F.pad(x, (0, 2, 1, 0), value=-1.0), x=(2, 3))
    case("getitem", lambda x, ids: x[:, ids], x=(2, 4), ids=np.array([3, 0, 3]))
    case("concatenate", lambda a, b: torch.cat([a, b], 1), a=(2, 1, 2), b=(2, 3, 2))
    mask = np.array([[True, False, True], [False, False, True]])
    case("where", lambda mask, a, b: torch.where(mask, a, b), mask=mask, a=(2, 1), b=(3,))


def layers(record: Recorder) -> None:
    case = record.case
    case("linear", F.linear, input=(2, 3, 4), weight=(5, 4), bias=(5,))
    case("linear without bias", F.linear, input=(3, 4), weight=(2, 4))
    image, kernel = (2, 3, 5, 6), (4, 3, 3, 3)
    case("conv2d", conv2d(), x=image, weight=kernel, bias=(4,))
    case("conv2d, padding 1", conv2d(1), x=image, weight=kernel, bias=(4,))
    case("conv2d, stride 2, padding 1", conv2d(1, 2), x=image, weight=kernel)
    case("conv2d, stride 2, uneven", conv2d((0, 1, 0, 1), 2), x=image, weight=kernel, bias=(4,))
    case("conv2d, 5x2", conv2d((3, 1, 0, 1)), x=(1, 2, 4, 5), weight=(3, 2, 5, 2), bias=(3,))
    case("conv2d, 1x1", conv2d(), x=image, weight=(4, 3, 1, 1), bias=(4,))
    case("conv2d, 1x1, stride 2", conv2d(0, 2), x=image, weight=(4, 3, 1, 1))
    case("conv2d, stride 3", conv2d(1, 3), x=(1, 2, 7, 6), weight=(2, 2, 2, 2), bias=(2,))
    affine = {"weight": (4,), "bias": (4,)}
    case("group_norm", group_norm(2), x=(2, 4, 3, 2), **affine)
    case("group_norm, large eps", group_norm(4, 0.5), x=(2, 4, 3), **affine)
    silu = group_norm(2, 1e-6)
    case("group_norm and silu", lambda **x: F.silu(silu(**x)), x=(2, 4, 3, 2), **affine)
    case("layer_norm", lambda x, weight, bias: F.layer_norm(x, (5,), weight, bias),
         x=(2, 3, 5), weight=(5,), bias=(5,))  # fmt: skip
    ids = np.array([[0, 4, 4], [2, 4, 0]])
    case("embedding", lambda ids, weight: F.embedding(ids, weight), ids=ids, weight=(5, 3))
    for name, function in {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "silu": F.silu,
        "gelu": F.gelu,
        "quick_gelu": lambda input: input * torch.sigmoid(1.702 * input),
        "softmax": lambda input: F.softmax(input, -1),
        "softmax, axis 1": lambda input: F.softmax(input, 1),
    }.items():
        case(name, function, input=2 * draw(name, 2, 4, 3))
    case("geglu", geglu, h=(2, 3, 6))
    tokens = {"q": (2, 4, 6), "k": (2, 5, 6), "v": (2, 5, 6)}
    case("attention", attention(1), **tokens)
    case("attention, heads", attention(3), **tokens)
    case("attention, causal", attention(2, causal=True), **tokens)
    padding = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], bool)[:, None, None]
    case("attention, padding", attention(2), **tokens, mask=padding)
    both = padding & np.tri(4, 5, dtype=bool)
    case("attention, causal and padding", attention(2), **tokens, mask=both)
    pairs = draw("mask", 2, 2, 4, 5) > 0
    pairs[..., 2] = True  # something to see for every query
    case("attention, a mask a head", attention(2), **tokens, mask=pairs)
    case("upsample_nearest", lambda x: F.interpolate(x, scale_factor=2), x=(2, 3, 2, 3))
    case("average_pool", lambda x: F.avg_pool2d(x, 2), x=(2, 2, 4, 2))
    case("space_to_depth", space_to_depth, x=(1, 2, 4, 6))
    case("depth_to_space", depth_to_space, x=(1, 8, 2, 3))


def losses(record: Recorder) -> None:
    case, once = record.case, ("target", "weight")
    case("mse_loss", F.mse_loss, once, input=(2, 3, 4), target=(2, 3, 4))
    weight = positive("mse_loss weight", 2, 1, 1)
    case("mse_loss, weighted", weighted_mse, once, x=(2, 3, 4), target=(2, 3, 4), weight=weight)
    ids = np.array([2, 0, 0, 1, 2])
    case("cross_entropy", F.cross_entropy, input=2 * draw("logits", 5, 3), target=ids)
    soft = positive("soft", 5, 3)
    case("cross_entropy, soft", F.cross_entropy, once, input=(5, 3), target=soft)
    case("gaussian_kl", gaussian_kl, mean=(3, 2, 4), logvar=(3, 2, 4))
    case("contrastive_loss", contrastive, image=(4, 3), text=(4, 3), log_scale=np.array(0.75))


def blocks(record: Recorder) -> None:
    record.block("resnet", Resnet(4, 4, 2, 1e-6), x=(2, 4, 3, 4))
    record.block("resnet with time", Resnet(2, 4, 2, 1e-5, time=3), x=(2, 2, 4, 3), time=(2, 3))
    once = Sampling(2, nn.Identity(), stride=2, padding=1)
    record.block("downsample", once, x=(2, 2, 4, 5))
    uneven = Sampling(2, lambda x: F.pad(x, (0, 1, 0, 1)), stride=2)
    record.block("downsample, uneven", uneven, x=(2, 2, 4, 5))
    twice = Sampling(2, lambda x: F.interpolate(x, scale_factor=2), padding=1)
    record.block("upsample", twice, x=(2, 2, 2, 3))
    record.block("attention block", CrossAttention(4, 2, 3), x=(2, 3, 4), context=(2, 5, 3))
    record.block("transformer", Transformer(4, 2, 3), x=(2, 3, 4), context=(2, 5, 3))


if __name__ == "__main__":
    recorder = Recorder()
    for part in (arithmetic, layers, losses, blocks):
        part(recorder)
    recorder.write()
