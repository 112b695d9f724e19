"""Every Function of the package against the vector-Jacobian check, and more that holds for all.

CASES names, for each Function subclass, calls that reach its options, odd shapes and broadcasting.
A new Function without a case fails the suite.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

import ldm_numpy
from ldm_numpy import ops
from ldm_numpy import primitives as p
from ldm_numpy.function import Function
from ldm_numpy.gradcheck import vjp_errors
from ldm_numpy.ops.activation import (
    GEGLU,
    GELU,
    Dropout,
    QuickGELU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from ldm_numpy.ops.attention import Attention
from ldm_numpy.ops.conv import Conv2d
from ldm_numpy.ops.embedding import Embedding, FourierFeatures
from ldm_numpy.ops.linear import Linear
from ldm_numpy.ops.loss import ContrastiveLoss, GaussianKL, MSELoss, SoftmaxCrossEntropy
from ldm_numpy.ops.norm import GroupNorm, LayerNorm
from ldm_numpy.ops.resample import AveragePool, DepthToSpace, SpaceToDepth, UpsampleNearest
from ldm_numpy.ops.winograd import WinogradConv2d
from ldm_numpy.tensor import Tensor, concatenate, gradients, no_grad, where


class Case(NamedTuple):
    """A call of an operation and its inputs: `inputs(rng)` draws the float64 arrays."""

    function: Callable
    inputs: Callable


def normal(*shapes):
    """Standard normal arrays."""
    return lambda rng: [rng.standard_normal(shape) for shape in shapes]


def positive(*shapes):
    """Arrays away from zero, for divisors and logarithms."""
    return lambda rng: [rng.uniform(0.5, 2.5, shape) for shape in shapes]


def beside(kinks, *shape):
    """An array whose elements all keep a distance of 0.05 and more from every kink."""

    def inputs(rng):
        x = rng.standard_normal(shape)
        for kink in kinks:
            x = np.where(np.abs(x - kink) < 0.05, x + 0.1, x)
        return [x]

    return inputs


def distinct(*shape):
    """An array whose elements all differ by 0.1 and more, so that the maximum is no kink."""
    return lambda rng: [0.1 * rng.permutation(np.prod(shape)).reshape(shape) - 1]


def like(constant, x):
    """`constant` in the dtype of the Tensor x."""
    return constant.astype(x.dtype)


_rng = np.random.default_rng(99)
MASK = _rng.random((3, 4)) > 0.5
TARGET, WEIGHT = _rng.standard_normal((2, 3, 4)), _rng.uniform(0.5, 2, (2, 1, 4))
SOFT_TARGET = _rng.uniform(0, 1, (5, 3))  # rows need not sum to 1
IDS = np.array([[0, 4, 4], [2, 0, 4]])  # 1 and 3 never, 4 three times
LOOK = _rng.random((2, 1, 3, 5)) > 0.4  # (N, heads, T, S)
LOOK[0, 0, 1] = False  # a query that may look nowhere
LOOK[1, 0, 2] = True
POSITIVES = np.eye(4, dtype=bool)
POSITIVES[0, 2] = POSITIVES[2, 0] = POSITIVES[3, 1] = True


def conv_case(*, image=(2, 5, 6, 3), kernel=(3, 3), out=4, bias=True, **options):
    """A convolution of `image` (N, H, W, C) with a kernel (KH, KW)."""
    shapes = [image, (*kernel, image[3], out)] + ([(out,)] if bias else [])
    return Case(lambda *inputs: ops.conv2d(*inputs, **options), normal(*shapes))


def attention_case(*, q=(2, 3, 4), kv=(2, 5, 4), **options):
    return Case(lambda *inputs: ops.attention(*inputs, **options), normal(q, kv, kv))


def group_norm_case(shape, **options):
    c = shape[-1]
    return Case(lambda *inputs: ops.group_norm(*inputs, **options), normal(shape, (c,), (c,)))


def elementwise(op):
    """Cases of an elementwise function of one variable."""
    return {"": Case(op, normal((3, 4))), "scalar": Case(op, normal(()))}


CASES: dict[type[Function], dict[str, Case]] = {
    p.Add: {
        "": Case(lambda a, b: a + b, normal((2, 3), (2, 3))),
        "broadcast": Case(lambda a, b: a + b, normal((2, 1, 3), (4, 1))),
        "broadcast right": Case(lambda a, b: a + b, normal((), (1, 3))),
        "number": Case(lambda a: 2.0 + a + 1, normal((2, 3))),
    },
    p.Sub: {
        "": Case(lambda a, b: a - b, normal((2, 3), (2, 3))),
        "broadcast": Case(lambda a, b: a - b, normal((4, 1), (2, 1, 3))),
        "number": Case(lambda a: 1.0 - (a - 2), normal((2, 3))),
    },
    p.Mul: {
        "": Case(lambda a, b: a * b, normal((2, 3), (2, 3))),
        "broadcast": Case(lambda a, b: a * b, normal((2, 1, 3), (4, 1))),
        "broadcast right": Case(lambda a, b: a * b, normal((), (1, 3))),
        "number": Case(lambda a: 2.0 * a * 3, normal((2, 3))),
    },
    p.Div: {
        "": Case(lambda a, b: a / b, positive((2, 3), (2, 3))),
        "broadcast": Case(lambda a, b: a / b, positive((2, 1, 3), (4, 1))),
        "broadcast left": Case(lambda a, b: a / b, positive((4, 1), (2, 1, 3))),
        "number": Case(lambda a: 2.0 / (a / 3), positive((2, 3))),
    },
    p.Neg: {"": Case(lambda x: -x, normal((2, 3)))},
    p.Pow: {
        "square": Case(lambda x: x**2, normal((2, 3))),
        "cube": Case(lambda x: x**3, normal((2, 3))),
        "root": Case(lambda x: x**0.5, positive((2, 3))),
        "inverse root": Case(lambda x: x**-0.5, positive((2, 3))),
    },
    p.Exp: elementwise(Tensor.exp),
    p.Log: {"": Case(Tensor.log, positive((2, 3)))},
    p.Clip: {"": Case(lambda x: x.clip(-0.5, 0.7), beside((-0.5, 0.7), 4, 5))},
    p.MatMul: {
        "": Case(lambda a, b: a @ b, normal((2, 3), (3, 4))),
        "batch": Case(lambda a, b: a @ b, normal((5, 2, 3), (5, 3, 4))),
        "broadcast": Case(lambda a, b: a @ b, normal((2, 1, 2, 3), (5, 3, 4))),
        "matrix on the left": Case(lambda a, b: a @ b, normal((2, 3), (5, 3, 1))),
    },
    p.Sum: {
        "all": Case(lambda x: x.sum(), normal((2, 3))),
        "axis": Case(lambda x: x.sum(axis=1), normal((2, 3, 4))),
        "axes": Case(lambda x: x.sum(axis=(0, -1)), normal((2, 3, 4))),
        "keepdims": Case(lambda x: x.sum(axis=-2, keepdims=True), normal((2, 3, 4))),
    },
    p.Mean: {
        "all": Case(lambda x: x.mean(), normal((2, 3))),
        "axis": Case(lambda x: x.mean(axis=1), normal((2, 3, 4))),
        "axes": Case(lambda x: x.mean(axis=(0, -1)), normal((2, 3, 4))),
        "keepdims": Case(lambda x: x.mean(axis=-2, keepdims=True), normal((2, 3, 4))),
    },
    p.Max: {
        "all": Case(lambda x: x.max(), distinct(2, 3)),
        "axis": Case(lambda x: x.max(axis=1), distinct(2, 3, 4)),
        "axes": Case(lambda x: x.max(axis=(0, -1)), distinct(2, 3, 4)),
        "keepdims": Case(lambda x: x.max(axis=-2, keepdims=True), distinct(2, 3, 4)),
    },
    p.Reshape: {"": Case(lambda x: x.reshape(4, -1), normal((2, 3, 2)))},
    p.Transpose: {
        "reversed": Case(lambda x: x.transpose(), normal((2, 3, 4))),
        "cycle": Case(lambda x: x.transpose(2, 0, 1), normal((2, 3, 4))),
        "negative": Case(lambda x: x.transpose(-2, -1, 0), normal((2, 3, 4))),
    },
    p.Pad: {
        "": Case(lambda x: x.pad(((1, 0), (0, 2))), normal((2, 3))),
        "value": Case(lambda x: x.pad(((0, 2), (3, 1)), value=-1.0), normal((2, 3))),
    },
    p.GetItem: {
        "integer": Case(lambda x: x[1], normal((3, 4))),
        "slices": Case(lambda x: x[::-2, 1:3], normal((3, 4))),
        "ellipsis": Case(lambda x: x[..., None, -1], normal((3, 4))),
        "duplicates": Case(lambda x: x[np.array([2, 0, 2, 2])], normal((3, 4))),
        "pairs": Case(lambda x: x[np.array([0, 0, 2]), np.array([1, 1, 3])], normal((3, 4))),
        "list": Case(lambda x: x[:, [0, 0]], normal((3, 4))),
        "mask": Case(lambda x: x[MASK], normal((3, 4))),
    },
    p.Concatenate: {
        "first axis": Case(lambda a, b: concatenate([a, b]), normal((2, 3), (1, 3))),
        "last axis": Case(
            lambda a, b, c: concatenate([a, b, c], axis=-1), normal((2, 1), (2, 3), (2, 2))
        ),
        "middle axis": Case(lambda a, b: concatenate([a, b], axis=1), normal((2, 1, 4), (2, 3, 4))),
    },
    p.Where: {
        "": Case(lambda a, b: where(MASK, a, b), normal((3, 4), (3, 4))),
        "broadcast": Case(lambda a, b: where(MASK, a, b), normal((3, 1), (2, 3, 4))),
        "number": Case(lambda b: where(MASK, -1.0, b), normal((4,))),
    },
    Sigmoid: elementwise(ops.sigmoid),
    Tanh: elementwise(ops.tanh),
    ReLU: {"": Case(ops.relu, beside((0,), 4, 5))},
    SiLU: elementwise(ops.silu),
    GELU: elementwise(ops.gelu),
    GEGLU: {
        "": Case(ops.geglu, normal((2, 3, 8))),
        "one vector": Case(ops.geglu, normal((6,))),
        "image": Case(ops.geglu, normal((2, 3, 1, 2))),
        "several blocks": Case(ops.geglu, normal((5, 3 * 2**13))),
    },
    QuickGELU: elementwise(ops.quick_gelu),
    Softmax: {
        "last axis": Case(ops.softmax, normal((2, 3, 5))),
        "first axis": Case(lambda x: ops.softmax(x, axis=0), normal((3, 4))),
        "middle axis": Case(lambda x: ops.softmax(x, axis=1), normal((2, 3, 4))),
    },
    Dropout: {
        "": Case(lambda x: ops.dropout(x, 0.3, np.random.default_rng(7)), normal((4, 5))),
    },
    Attention: {
        "one head": attention_case(),
        "heads": attention_case(heads=2),
        "one a channel": attention_case(heads=4),
        "mask": attention_case(heads=2, mask=LOOK),
        "key mask": attention_case(heads=2, mask=LOOK[:, :, 2:, :]),
        "causal": attention_case(q=(2, 4, 6), kv=(2, 4, 6), heads=3, causal=True),
        "causal and mask": attention_case(q=(2, 3, 4), kv=(2, 5, 4), causal=True, mask=LOOK),
        "self": Case(lambda x: ops.attention(x, x, x, heads=2), normal((2, 3, 4))),
        "recorder": attention_case(recorder=lambda weights: None),
    },
    Linear: {
        "": Case(ops.linear, normal((5, 3), (3, 4), (4,))),
        "without bias": Case(ops.linear, normal((5, 3), (3, 4))),
        "one vector": Case(ops.linear, normal((3,), (3, 4), (4,))),
        "tokens": Case(ops.linear, normal((2, 5, 3), (3, 1), (1,))),
        "image": Case(ops.linear, normal((2, 3, 2, 3), (3, 2))),
        "as a 1x1 convolution": conv_case(kernel=(1, 1)),
    },
    Conv2d: {
        "": conv_case(),
        "same": conv_case(padding=1),
        "without bias": conv_case(padding=1, bias=False),
        "asymmetric padding": conv_case(padding=(0, 1, 2, 1)),
        "1x3": conv_case(kernel=(1, 3), padding=(0, 0, 1, 1)),
        "5x2": conv_case(kernel=(5, 2), padding=(3, 1, 0, 1)),
        "1x1 padded": conv_case(kernel=(1, 1), padding=1),
        "1x1 strided": conv_case(kernel=(1, 1), stride=2),
        "padding above the kernel": conv_case(kernel=(2, 3), padding=(3, 0, 1, 4)),
        "full padding": conv_case(padding=2, out=1),
        "stride 2": conv_case(stride=2, padding=1),
        "stride 2, right and bottom": conv_case(stride=2, padding=(0, 1, 0, 1)),
        "stride 3 with a rest": conv_case(image=(1, 9, 10, 2), kernel=(3, 2), stride=3),
        "stride above the kernel": conv_case(image=(1, 7, 8, 2), kernel=(2, 1), stride=3),
        "one channel in and out": conv_case(image=(2, 4, 5, 1), out=1, padding=1),
        "one channel, no padding": conv_case(image=(2, 4, 5, 1), kernel=(2, 3)),
        "kernel as large as the image": conv_case(kernel=(5, 6)),
    },
    WinogradConv2d: {
        "": conv_case(image=(8, 7, 6, 16), padding=1),
        "one tile": conv_case(image=(16, 4, 4, 17), out=3, padding=1),
        "without bias": conv_case(image=(5, 8, 8, 16), out=1, padding=1, bias=False),
    },
    Embedding: {"": Case(lambda w: ops.embedding(w, IDS), normal((5, 3)))},
    FourierFeatures: {
        "": Case(lambda x: ops.fourier_features(x, (0, 1, 3)), normal((2, 3, 2))),
        "none": Case(lambda x: ops.fourier_features(x, ()), normal((2, 3))),
    },
    MSELoss: {
        "": Case(lambda x: ops.mse_loss(x, like(TARGET, x)), normal((2, 3, 4))),
        "weight": Case(
            lambda x: ops.mse_loss(x, like(TARGET, x), like(WEIGHT, x)), normal((2, 3, 4))
        ),
        "continued": Case(lambda x: ops.mse_loss(x, like(TARGET, x)) * 3.0, normal((2, 3, 4))),
    },
    SoftmaxCrossEntropy: {
        "class ids": Case(
            lambda x: ops.softmax_cross_entropy(x, np.array([2, 0, 0, 1, 2])), normal((5, 3))
        ),
        "soft targets": Case(
            lambda x: ops.softmax_cross_entropy(x, like(SOFT_TARGET, x)), normal((5, 3))
        ),
        "continued": Case(
            lambda x: ops.softmax_cross_entropy(x, like(SOFT_TARGET, x)) * 3.0, normal((5, 3))
        ),
    },
    ContrastiveLoss: {
        "several positives": Case(
            lambda i, t, s: ops.contrastive_loss(i, t, s, POSITIVES), normal((4, 3), (4, 3), ())
        ),
        "one positive": Case(
            lambda i, t, s: ops.contrastive_loss(i, t, s, np.eye(3, dtype=bool)) * 3.0,
            normal((3, 5), (3, 5), (1,)),
        ),
    },
    GaussianKL: {
        "": Case(ops.gaussian_kl, normal((3, 2, 2, 4), (3, 2, 2, 4))),
        "continued": Case(lambda m, v: ops.gaussian_kl(m, v) * 3.0, normal((5, 2), (5, 2))),
    },
    GroupNorm: {
        "": group_norm_case((2, 3, 4, 6), groups=3),
        "silu": group_norm_case((2, 3, 4, 6), groups=3, silu=True),
        "one group": group_norm_case((2, 5, 6), groups=1),
        "a group a channel": group_norm_case((2, 3, 3, 4), groups=4, silu=True),
        "vectors": group_norm_case((3, 8), groups=2),
        "large eps": group_norm_case((2, 3, 2, 4), groups=2, eps=0.5),
        "large eps, silu": group_norm_case((2, 3, 2, 4), groups=2, eps=0.5, silu=True),
    },
    LayerNorm: {
        "": Case(ops.layer_norm, normal((2, 3, 5), (5,), (5,))),
        "one vector": Case(ops.layer_norm, normal((5,), (5,), (5,))),
        "large eps": Case(
            lambda *inputs: ops.layer_norm(*inputs, eps=0.5), normal((3, 4), (4,), (4,))
        ),
    },
    UpsampleNearest: {
        "2": Case(ops.upsample_nearest, normal((2, 3, 2, 3))),
        "3": Case(lambda x: ops.upsample_nearest(x, 3), normal((1, 2, 3, 2))),
    },
    AveragePool: {
        "2": Case(lambda x: ops.average_pool(x, 2), normal((2, 4, 6, 3))),
        "3": Case(lambda x: ops.average_pool(x, 3), normal((1, 3, 6, 2))),
    },
    SpaceToDepth: {"": Case(lambda x: ops.space_to_depth(x, 2), normal((2, 4, 6, 3)))},
    DepthToSpace: {"": Case(lambda x: ops.depth_to_space(x, 3), normal((2, 2, 1, 18)))},
}

every_case = pytest.mark.parametrize(
    "operation, case",
    [
        pytest.param(operation, case, id=f"{operation.__name__}{name and '-'}{name}")
        for operation, cases in CASES.items()
        for name, case in cases.items()
    ],
)


def subclasses(cls):
    """All classes below `cls`."""
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def run(case, arrays):
    """The result, and the gradients for a cotangent of random numbers."""
    inputs = [Tensor(array, requires_grad=True) for array in arrays]
    y = case.function(*inputs)
    gy = np.random.default_rng(3).standard_normal(y.shape).astype(y.dtype)
    return y.data, gradients(y, inputs, gy)


def test_every_function_has_a_case():
    for module in pkgutil.walk_packages(ldm_numpy.__path__, "ldm_numpy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = {f for f in subclasses(Function) if f.__module__.startswith("ldm_numpy.")}
    missing = sorted(f.__qualname__ for f in ours - set(CASES))
    assert not missing, f"add a case to CASES for {missing}"


@pytest.mark.host  # a GPU has no Winograd
@every_case
def test_case_reaches_its_operation(operation, case, rng):
    y = case.function(*[Tensor(a, requires_grad=True) for a in case.inputs(rng)])
    reached, stack = set(), [y.node]
    while stack:
        node = stack.pop()
        if isinstance(node, Function):
            reached.add(type(node))
            stack.extend(node.inputs)
    assert operation in reached


@pytest.mark.parametrize("seed", range(4))
@every_case
def test_gradients(operation, case, seed):
    arrays = case.inputs(np.random.default_rng(seed))
    assert max(vjp_errors(case.function, arrays, seed)) < 1e-6
    # A zero would agree with a zero: every gradient must have something to say.
    assert all(np.linalg.norm(gx) > 1e-3 for gx in run(case, arrays)[1])


@every_case
def test_a_gradient_does_not_depend_on_which_others_are_wanted(operation, case, rng):
    arrays = case.inputs(rng)
    y, expected = run(case, arrays)
    gy = np.random.default_rng(3).standard_normal(y.shape)
    for i, array in enumerate(arrays):
        x = Tensor(array, requires_grad=True)
        result = case.function(*[x if j == i else other for j, other in enumerate(arrays)])
        np.testing.assert_array_equal(result.data, y)
        np.testing.assert_allclose(gradients(result, [x], gy)[0], expected[i], rtol=1e-12)


SKIPPABLE = {p.Add: 2, p.Sub: 2, p.Mul: 2, p.Div: 2, p.MatMul: 2, p.Where: 2}
SKIPPABLE |= {Linear: 3, Conv2d: 3, WinogradConv2d: 3, Attention: 3, GroupNorm: 1, LayerNorm: 1}


@pytest.mark.parametrize("operation", SKIPPABLE, ids=lambda operation: operation.__name__)
def test_a_gradient_nobody_wants_is_not_computed(operation, rng):
    for name in ("", "one head", "stride 2, right and bottom"):
        if name not in CASES[operation]:
            continue
        case = CASES[operation][name]
        arrays = case.inputs(rng)
        for i in range(SKIPPABLE[operation]):
            y = case.function(*[Tensor(a, requires_grad=j != i) for j, a in enumerate(arrays)])
            returned = y.op.backward(rng.standard_normal(y.shape))
            assert [j for j, g in enumerate(returned) if g is None] == [i]


@every_case
def test_nothing_given_is_written_to(operation, case, rng):
    arrays = case.inputs(rng)
    inputs = [Tensor(array, requires_grad=True) for array in arrays]
    copies = [array.copy() for array in arrays]
    y = case.function(*inputs)
    gy = rng.standard_normal(y.shape)
    result, gy_copy = y.data.copy(), gy.copy()
    gradients(y, inputs, gy)
    for given, copy in zip((*arrays, y.data, gy), (*copies, result, gy_copy)):
        np.testing.assert_array_equal(given, copy)


@every_case
def test_single_precision_stays_single(operation, case, rng):
    arrays = case.inputs(rng)
    y, gs = run(case, [array.astype(np.float32) for array in arrays])
    y64, gs64 = run(case, arrays)
    assert y.dtype == np.float32
    assert [g.dtype for g in gs] == [np.float32] * len(arrays)
    for single, double in zip((y, *gs), (y64, *gs64)):
        assert np.linalg.norm(single - double) <= 3e-5 * np.linalg.norm(double)


@every_case
def test_no_graph_under_no_grad(operation, case, rng):
    arrays = case.inputs(rng)
    with no_grad():
        y = case.function(*[Tensor(array, requires_grad=True) for array in arrays])
    assert not y.requires_grad and y.op is None
    np.testing.assert_array_equal(y.data, run(case, arrays)[0])


def test_a_sum_of_gradients_writes_to_no_array_of_others(rng):
    """A tensor used four times: each use hands on the very gy that the others have."""
    x, z = (Tensor(rng.standard_normal((2, 3)), requires_grad=True) for _ in range(2))
    gy = rng.standard_normal((2, 3))
    copy = gy.copy()
    gx, gz = gradients(z + x + x + x + x, [x, z], gy)
    np.testing.assert_allclose(gx, 4 * copy)
    np.testing.assert_array_equal(gz, copy)
    np.testing.assert_array_equal(gy, copy)


def reverse_order(x):
    """x with its first axis varying fastest in memory."""
    return x.T.copy().T


def stepped(x):
    """x as every second element of a larger array."""
    return np.stack([x, np.full_like(x, np.nan)], axis=-1)[..., 0]


def stray(x):
    """x with a stride of 0 on each axis of length 1, as `x[..., None]` makes: still contiguous."""
    strides = [0 if n == 1 else stride for n, stride in zip(x.shape, x.strides)]
    return np.lib.stride_tricks.as_strided(x, x.shape, strides)


@pytest.mark.parametrize("layout", [reverse_order, stepped, stray])
@every_case
def test_memory_layout_does_not_matter(operation, case, rng, layout):
    arrays = case.inputs(rng)
    y, gs = run(case, arrays)
    inputs = [Tensor(layout(array), requires_grad=True) for array in arrays]
    result = case.function(*inputs)
    gy = layout(np.random.default_rng(3).standard_normal(y.shape))
    for got, expected in zip((result.data, *gradients(result, inputs, gy)), (y, *gs)):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
