"""A call of everything public that computes, for test_extremes.py: a new operation joins OPS."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ldm_numpy import nn, ops
from ldm_numpy.tensor import Tensor, concatenate, where

FILLS = {
    "1e4": lambda a, rng: 1e4 * a,
    "1e-30": lambda a, rng: 1e-30 * a,
    "1e30": lambda a, rng: 1e30 * a,
    "mixed": lambda a, rng: np.sign(a) * 10 ** rng.uniform(-30, 30, a.shape),
    "equal": lambda a, rng: np.full_like(a, 1.7),
    "equal, large": lambda a, rng: np.full_like(a, 1e4),
    "zero": lambda a, rng: np.zeros_like(a),
}
NOT_ZERO = frozenset(FILLS) - {"zero"}
MODERATE = {"1e-30", "equal", "zero"}


class Op(NamedTuple):
    """A call.

    Attributes:
        function: of the inputs, as Tensors
        shapes: of the inputs, several times: ordinary ones first, then degenerate ones
        fills: those of FILLS that an input may have; what others do is in REFUSED
        beyond: fills of an input, as "1e30 0", for which the true result is beyond float32
        scale: (inputs, gy) -> terms of a difference that gradients are, and may cancel to zero:
            rounding errors are relative to them
        positive: the last input must be
        squares: it squares inputs, or multiplies them with one another, and refuses those of 1e30
            in float32
    """

    function: Callable
    shapes: list
    fills: frozenset = frozenset(FILLS)
    beyond: frozenset = frozenset()
    scale: Callable = lambda inputs, gy: 0
    positive: bool = False
    squares: bool = False


def largest(*arrays):
    """The largest absolute value in each, multiplied."""
    return np.prod([np.abs(a).max(initial=0) for a in arrays])


def elementwise(function, beyond=frozenset(), **options) -> Op:
    return Op(function, [[(4, 6)], [()], [(1, 2)], [(0, 6)]], beyond=beyond, **options)


def binary(function, **options) -> Op:
    return Op(function, [[(3, 4)] * 2, [()] * 2, [(0, 2)] * 2], **options)


def one(function, *shapes, **options) -> Op:
    """Of one input."""
    return Op(function, [[shape] for shape in shapes], **options)


def convolution(k: int, **options) -> Op:
    def shapes(n, h, w, c, out):
        return [(n, h, w, c), (k, k, c, out), (out,)]

    images = shapes(2, 4, 5, 2, 3), shapes(1, k, k, 1, 1), shapes(0, 4, 4, 2, 1)
    return Op(partial(ops.conv2d, **options), list(images))


def attention(**options) -> Op:
    return Op(
        partial(ops.attention, **options),
        [
            [(n, t, d), (n, s, d), (n, s, d)]
            for n, t, s, d in ((2, 3, 5, 4), (0, 3, 5, 4), (1, 0, 5, 4), (1, 1, 1, 2), (1, 1, 5, 2))
        ][: 2 if "mask" in options else None],
        scale=lambda i, gy: largest(i[2], gy) * max(largest(i[0]), largest(i[1])),
    )


def norm_scale(inputs, gy):
    """gx is a difference of terms of the size of gamma gy / deviation."""
    x, gamma, _ = inputs
    return largest(gamma, gy) / np.sqrt(x.var(-1).min(initial=1) + 1e-5)


def norm(function, *shapes) -> Op:
    return Op(function, [[s, s[-1:], s[-1:]] for s in shapes], scale=norm_scale, squares=True)


def layer(module: nn.Module, *shapes, **options) -> Op:
    """A layer as a function of its input and all of its parameters."""
    names = [name for name, _ in module.named_parameters()]
    weights = [parameter.shape for parameter in module.parameters()]

    def run(*inputs):
        for name, weight in zip(reversed(names), reversed(inputs)):
            setattr(module, name, weight)
        return module(*(inputs[: -len(names)] or [IDS]))

    return Op(run, [[*shape, *weights] for shape in shapes], **options)


def plain(x, *shape):
    """A constant array in the type of the Tensor x."""
    return np.linspace(-1, 2, int(np.prod(shape))).reshape(shape).astype(x.dtype)


BATCHES = (2, 3, 4, 6), (1, 1, 2), (2, 1, 6), (0, 4, 6)
IMAGES = (2, 4, 4, 4), (1, 2, 2, 4), (0, 4, 4, 4)
IDS = np.array([[0, 4, 4], [2, 0, 4]])
LOOK = np.array([[True, False, True, True, False], [False] * 5, [True] * 5])  # one looks nowhere
BIG = {"1e30 0", "mixed 0"}

OPS = {
    "ops.attention": attention(heads=2),
    "ops.attention, causal": attention(causal=True),
    "ops.attention, masked": attention(mask=LOOK),
    "ops.attention, of itself": one(
        lambda x: ops.attention(x, x, x), (2, 3, 4), (1, 1, 2),
        scale=lambda i, gy: largest(i[0], i[0], gy), squares=True,
    ),
    "ops.attention, of its negative": one(  # the first query sees the lowest score alone
        lambda x: ops.attention(x, x * -1.0, x, causal=True), (2, 3, 4), (1, 1, 2),
        scale=lambda i, gy: largest(i[0], i[0], gy), squares=True,
    ),
    "ops.attention, of itself, masked": one(
        lambda x: ops.attention(x, x, x, mask=LOOK[:, 1:4]), (2, 3, 4),
        scale=lambda i, gy: largest(i[0], i[0], gy), squares=True,
    ),
    "ops.average_pool": one(lambda x: ops.average_pool(x, 2), *IMAGES),
    "ops.contrastive_loss": Op(
        lambda a, b, s: ops.contrastive_loss(a, b, s, np.eye(len(a), dtype=bool)),
        [[(3, 4), (3, 4), ()], [(1, 1), (1, 1), ()]], fills=MODERATE,
        scale=lambda i, gy: largest(gy) * np.exp(i[2]) * max(1, largest(i[0], i[1])) * 2,
    ),
    "ops.conv2d": convolution(3),
    "ops.conv2d, padded": convolution(3, padding=1),
    "ops.conv2d, strided": convolution(3, padding=1, stride=2),
    "ops.conv2d, 1x1": convolution(1),
    "ops.conv2d, Winograd's": Op(
        partial(ops.conv2d, padding=1), [[(n, 8, 8, 16), (3, 3, 16, 2), (2,)] for n in (4, 0)]
    ),
    "ops.depth_to_space": one(lambda x: ops.depth_to_space(x, 2), *IMAGES),
    "ops.dropout": elementwise(lambda x: ops.dropout(x, 0.3, np.random.default_rng(7))),
    "ops.embedding": one(lambda w: ops.embedding(w, IDS), (5, 3), (5, 1), (5, 0)),
    "ops.fourier_features": one(
        lambda x: ops.fourier_features(x, (0, 1, 6)), (2, 3, 2), (1,), (0, 2),
        scale=lambda i, gy: largest(i[0], gy) * (2**6 * np.pi) ** 2,  # the digits a phase has
    ),
    "ops.gaussian_kl": Op(
        ops.gaussian_kl, [[(3, 2, 4)] * 2, [(1, 1)] * 2],
        beyond=BIG | {"1e4 1", "1e30 1", "mixed 1", "equal, large 1"},
        scale=lambda i, gy: largest(gy),
    ),
    "ops.geglu": one(
        ops.geglu, (2, 3, 8), (2,), (0, 4), beyond=BIG, scale=lambda i, gy: largest(i[0], gy)
    ),
    "ops.gelu": elementwise(ops.gelu),
    "ops.group_norm": norm(partial(ops.group_norm, groups=2), *BATCHES),
    "ops.group_norm, one group": norm(partial(ops.group_norm, groups=1), *BATCHES, (1, 1)),
    "ops.group_norm, silu": norm(partial(ops.group_norm, groups=2, silu=True), *BATCHES),
    "ops.layer_norm": norm(ops.layer_norm, *BATCHES, (1,)),
    "ops.linear": Op(ops.linear, [[(*n, 3), (3, 4), (4,)] for n in ((5,), (), (0, 2))]),
    "ops.mse_loss": one(lambda x: ops.mse_loss(x, plain(x, *x.shape)), (3, 4), (1,), beyond=BIG),
    "ops.quick_gelu": elementwise(ops.quick_gelu),
    "ops.relu": elementwise(ops.relu),
    "ops.sigmoid": elementwise(ops.sigmoid),
    "ops.silu": elementwise(ops.silu),
    "ops.softmax": one(ops.softmax, (3, 5), (1, 1), (0, 5), scale=lambda i, gy: largest(gy)),
    "ops.softmax_cross_entropy": one(
        lambda x: ops.softmax_cross_entropy(x, np.arange(len(x)) % x.shape[1]), (4, 3), (1, 1),
        scale=lambda i, gy: largest(gy),
    ),
    "ops.space_to_depth": one(lambda x: ops.space_to_depth(x, 2), *IMAGES),
    "ops.tanh": elementwise(ops.tanh),
    "ops.upsample_nearest": one(ops.upsample_nearest, *IMAGES, (1, 1, 1, 1)),
    "tensor.concatenate": Op(lambda a, b: concatenate([a, b]), [[(2, 3), (1, 3)], [(1,), (0,)]]),
    "tensor.where": binary(lambda a, b: where(plain(a, *a.shape) > 0, a, b)),
    "Tensor.__add__": binary(lambda a, b: a + b),
    "Tensor.__radd__": elementwise(lambda x: 2.0 + x),
    "Tensor.__sub__": binary(lambda a, b: a - b),
    "Tensor.__rsub__": elementwise(lambda x: 2.0 - x),
    "Tensor.__mul__": binary(lambda a, b: a * b),
    "Tensor.__rmul__": elementwise(lambda x: 2.0 * x),
    "Tensor.__truediv__": binary(
        lambda a, b: a / b, fills=NOT_ZERO, positive=True, beyond={"1e-30 1", "mixed 1"}
    ),
    "Tensor.__rtruediv__": elementwise(
        lambda x: 2.0 / x, fills=NOT_ZERO, beyond={"1e-30 0", "mixed 0"}
    ),
    "Tensor.__matmul__": Op(lambda a, b: a @ b, [[(2, 3), (3, 4)], [(1, 1)] * 2, [(0, 3), (3, 2)]]),
    "Tensor.__rmatmul__": one(lambda x: plain(x, 2, 3) @ x, (3, 4), (3, 1), (0, 3, 2)),
    "Tensor.__neg__": elementwise(lambda x: -x),
    "Tensor.__pow__": elementwise(lambda x: x**2, beyond=BIG),
    "Tensor.__pow__, 3": elementwise(lambda x: x**3, beyond=BIG),
    "Tensor.__pow__, 1": elementwise(lambda x: x**1),
    "Tensor.__pow__, 0": elementwise(lambda x: x**0),
    "Tensor.__pow__, 0.5": elementwise(lambda x: x**0.5, fills=NOT_ZERO, positive=True),
    "Tensor.__pow__, -0.5": elementwise(
        lambda x: x**-0.5, fills=NOT_ZERO, positive=True, beyond={"1e-30 0", "mixed 0"}
    ),
    "Tensor.__getitem__": one(lambda x: x[1:, ::2], (3, 4), (1, 1), (0, 2)),
    "Tensor.__getitem__, ids": one(lambda x: x[np.array([2, 0, 2])], (3, 4), (3, 0)),
    "Tensor.exp": elementwise(Tensor.exp, beyond=BIG | {"1e4 0", "equal, large 0"}),
    "Tensor.log": elementwise(Tensor.log, fills=NOT_ZERO, positive=True),
    "Tensor.clip": elementwise(lambda x: x.clip(-0.5, 0.7)),
    "Tensor.sum": one(lambda x: x.sum(axis=1), (3, 4), (1, 1), (0, 4), (4, 0)),
    "Tensor.mean": one(lambda x: x.mean(axis=1), (3, 4), (1, 1), (0, 4)),
    "Tensor.max": one(lambda x: x.max(axis=1), (3, 4), (1, 1), (0, 4)),
    "Tensor.reshape": one(lambda x: x.reshape(-1, 2), (3, 4), (1, 2), (0, 2)),
    "Tensor.transpose": one(lambda x: x.transpose(), (3, 4), (), (0, 2)),
    "Tensor.pad": one(lambda x: x.pad(((1, 0), (0, 2)), 3.0), (3, 4), (1, 1), (0, 1)),
    "nn.Linear": layer(nn.Linear(3, 2), [(4, 3)], [(3,)], [(0, 3)]),
    "nn.Conv2d": layer(
        nn.Conv2d(2, 3, 3, padding=1), [(2, 4, 4, 2)], [(1, 1, 1, 2)], [(0, 2, 2, 2)]
    ),
    "nn.GroupNorm": layer(
        nn.GroupNorm(2, 4), [(2, 3, 3, 4)], [(1, 1, 1, 4)], [(0, 2, 2, 4)],
        scale=norm_scale, squares=True,
    ),
    "nn.LayerNorm": layer(
        nn.LayerNorm(4), [(2, 3, 4)], [(4,)], [(0, 4)], scale=norm_scale, squares=True
    ),
    "nn.Embedding": layer(nn.Embedding(5, 3), []),
}  # fmt: skip


def attend(q=(1, 2, 4), k=(1, 3, 4), **options):
    return lambda: ops.attention(np.ones(q), np.ones(k), np.ones(k), **options)


def group_norm(*shape, groups=2):
    return lambda: ops.group_norm(
        np.ones(shape), np.ones(shape[-1:]), np.ones(shape[-1:]), groups=groups
    )


def slope_at_zero(exponent):
    return lambda: (Tensor(np.zeros(2), requires_grad=True) ** exponent).sum().backward()


def convolve(*kernel):
    return lambda: ops.conv2d(np.ones((1, 4, 4, kernel[2])), np.ones(kernel))


def contrast(image=(2, 3), text=(2, 3), log_scale=0.0, dtype=np.float64):
    n = image[0]
    return lambda: ops.contrastive_loss(
        np.ones(image, dtype), np.ones(text, dtype), np.array(log_scale, dtype), np.eye(n) > 0
    )


HUGE, FEW, NONE = np.array([[1e200, -2e200]]), np.ones((2, 3)), np.ones((0, 3))
# What has no answer: the beginning of the message, and the call.
REFUSED = [
    ("attention: 0 heads", attend(heads=0)),
    ("attention: -1 heads", attend(heads=-1)),
    (r"attention: keys \(1, 0, 4\)", attend(k=(1, 0, 4))),
    (r"attention: keys \(1, 3, 0\)", attend(q=(1, 2, 0), k=(1, 3, 0))),
    (r"attention: q \(2, 4\)", attend(q=(2, 4), k=(3, 4))),
    ("attention: .* 2.0e\\+200 are beyond float64", lambda: ops.attention(*[HUGE[None]] * 3)),
    ("average_pool: 0 must be 1 or more", lambda: ops.average_pool(np.ones((1, 2, 2, 1)), 0)),
    ("clip: low = 1 ", lambda: Tensor(FEW).clip(1, 0)),
    ("clip: low = nan ", lambda: Tensor(FEW).clip(float("nan"), 1)),
    ("concatenate: no arrays", lambda: concatenate([])),
    ("contrastive_loss: features", contrast((0, 3), (0, 3))),
    ("contrastive_loss: features", contrast((2, 3), (3, 3))),
    (r"contrastive_loss: e\^89 is too large for float32", contrast(log_scale=89, dtype=np.float32)),
    (r"contrastive_loss: e\^710 is too large for float64", contrast(log_scale=710)),
    ("conv2d: a weight .* has no element", convolve(3, 3, 0, 2)),
    ("conv2d: a weight .* has no element", convolve(3, 3, 2, 0)),
    ("conv2d: a weight .* has no element", convolve(0, 3, 2, 2)),
    ("depth_to_space: 0 must be", lambda: ops.depth_to_space(np.ones((1, 2, 2, 4)), 0)),
    ("division by zero", lambda: Tensor(FEW) / np.array([1.0, 0.0, 2.0])),
    ("division by zero", lambda: Tensor(FEW) / 0),
    ("division by zero", lambda: 1 / Tensor(0 * FEW)),
    (r"fourier_features: 2\^127 pi is",
     lambda: ops.fourier_features(np.ones(1, np.float32), [127])),
    ("gaussian_kl: ", lambda: ops.gaussian_kl(NONE, NONE)),
    ("gaussian_kl: ", lambda: ops.gaussian_kl(FEW, np.ones(3))),
    ("geglu: the last axis", lambda: ops.geglu(np.ones((2, 0)))),
    ("geglu: the last axis", lambda: ops.geglu(np.ones(()))),
    ("group_norm: .*, 0 groups", group_norm(1, 2, 4, groups=0)),
    ("group_norm: .*, -1 groups", group_norm(1, 2, 4, groups=-1)),
    ("group_norm: x", group_norm(1, 2, 0)),
    ("group_norm: x", group_norm(4)),
    ("group_norm: .* beyond float64",
     lambda: ops.group_norm(HUGE, np.ones(2), np.ones(2), groups=1)),
    ("layer_norm: the last axis", lambda: ops.layer_norm(np.ones((2, 0)), np.ones(0), np.ones(0))),
    ("layer_norm: the last axis", lambda: ops.layer_norm(np.ones(()), np.ones(1), np.ones(1))),
    ("layer_norm: .* beyond float64", lambda: ops.layer_norm(HUGE, np.ones(2), np.ones(2))),
    ("linear: a weight", lambda: ops.linear(np.ones((2, 0)), np.ones((0, 3)))),
    ("linear: a weight", lambda: ops.linear(FEW, np.ones((3, 0)))),
    ("linear: a weight", lambda: ops.linear(FEW, np.ones(3))),
    (r"linear: x \(\)", lambda: ops.linear(np.ones(()), np.ones((1, 3)))),
    ("log: .* smallest is 0", lambda: Tensor(0 * FEW).log()),
    ("log: .* smallest is -1", lambda: Tensor(-FEW).log()),
    ("max over axis 0", lambda: Tensor(NONE).max(axis=0)),
    ("mean over axis None", lambda: Tensor(NONE).mean()),
    ("mean over axis -2", lambda: Tensor(NONE).mean(axis=-2)),
    ("mse_loss: .* no element", lambda: ops.mse_loss(NONE, NONE)),
    (r"reshape: \(0, 3\) has no element", lambda: Tensor(NONE).reshape(0, -1)),
    ("softmax: axis -1", lambda: ops.softmax(np.ones((2, 0)))),
    ("softmax: axis -1", lambda: ops.softmax(np.ones(()))),
    ("softmax_cross_entropy: ", lambda: ops.softmax_cross_entropy(NONE, np.arange(0))),
    ("softmax_cross_entropy: ", lambda: ops.softmax_cross_entropy(NONE.T, NONE.T)),
    ("softmax_cross_entropy: ", lambda: ops.softmax_cross_entropy(np.ones(3), np.arange(2))),
    ("space_to_depth: -2 must be", lambda: ops.space_to_depth(np.ones((1, 2, 2, 1)), -2)),
    ("upsample_nearest: 0 must be", lambda: ops.upsample_nearest(np.ones((1, 2, 2, 1)), 0)),
    (r"x \*\* 0.5: .* not be negative", lambda: Tensor(-FEW) ** 0.5),
    (r"x \*\* -1: x must not be 0", lambda: Tensor(0 * FEW) ** -1),
    (r"x \*\* 0.5: its slope at x = 0", slope_at_zero(0.5)),
]  # fmt: skip
