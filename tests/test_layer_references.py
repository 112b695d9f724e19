"""Each layer and operation against PyTorch's, through committed numbers (tests/reference).

Whole networks: test_references.py.
"""

import json
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.models.blocks import (
    Attention,
    BasicTransformerBlock,
    Downsample2D,
    ResnetBlock2D,
    Upsample2D,
)
from ldm_numpy.nn import from_torch_layout, to_torch_layout
from ldm_numpy.ops.winograd import WinogradConv2d
from ldm_numpy.tensor import Tensor, concatenate, gradients, where

from .test_references import distance

TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
FILE = Path(__file__).parent / "reference" / "layers.npz"


class Reference(NamedTuple):
    """What PyTorch was given and what it made of it, in its layout."""

    inputs: dict[str, np.ndarray]
    gy: np.ndarray
    output: np.ndarray
    gradients: dict[str, np.ndarray]


@cache
def references() -> dict[str, Reference]:
    """All cases of layers.npz; see make_layer_references.py for its format."""
    file = np.load(FILE, allow_pickle=False)
    flat = {name: iter(np.split(file[name], ends)) for name, ends in pieces(file).items()}
    found = {}
    for name, case in json.loads(str(file["index"]))["cases"].items():
        inputs = {
            key: next(flat["inputs"]).astype(dtype).reshape(shape)
            for key, (dtype, shape) in case["inputs"].items()
        }
        output = next(flat["results"]).reshape(case["output"])
        slopes = {
            key: next(flat["results"]).reshape(inputs[key].shape) for key in case["gradients"]
        }
        found[name] = Reference(inputs, inputs.pop("gy"), output, slopes)
    return found


def pieces(file) -> dict[str, np.ndarray]:
    """Where the arrays end that `inputs` and `results` are made up of."""
    sizes: dict[str, list[int]] = {"inputs": [], "results": []}
    for case in json.loads(str(file["index"]))["cases"].values():
        shapes = {key: shape for key, (_, shape) in case["inputs"].items()}
        sizes["inputs"] += map(math.prod, shapes.values())
        results = [case["output"], *(shapes[key] for key in case["gradients"])]
        sizes["results"] += map(math.prod, results)
    for name, listed in sizes.items():
        assert sum(listed) == file[name].size
    return {name: np.cumsum(listed)[:-1] for name, listed in sizes.items()}


# Layouts: what turns PyTorch's arrays into ours, and back ---------------------------------------


def plain(name: str, array: np.ndarray) -> np.ndarray:
    return array


def transposed(name: str, array: np.ndarray) -> np.ndarray:
    """The weight of a linear layer, which multiplies from the other side."""
    return array.T if name == "weight" else array


def images(name: str, array: np.ndarray) -> np.ndarray:
    """Channels last, and kernels (KH, KW, Cin, Cout)."""
    if name == "weight" and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


def images_back(name: str, array: np.ndarray) -> np.ndarray:
    if name == "weight" and array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


BACK = {plain: plain, transposed: transposed, images: images_back}


class Case(NamedTuple):
    """Our function of the same inputs, by their names; for a block, what builds the module."""

    function: Callable
    layout: Callable = plain


def of_first(function: Callable, *names: str, **options) -> Callable:
    """A function whose arguments PyTorch calls by these names."""
    return lambda **inputs: function(*(inputs.get(name) for name in names), **options)


def unary(function: Callable, **options) -> Case:
    return Case(of_first(function, "input", **options))


def method(function: Callable) -> Case:
    return Case(of_first(function, "x"))


def pair(function: Callable) -> Case:
    return Case(of_first(function, "a", "b"))


def conv(**options) -> Case:
    return Case(of_first(ops.conv2d, "x", "weight", "bias", **options), images)


def norm(function: Callable, layout: Callable, **options) -> Case:
    return Case(of_first(function, "x", "weight", "bias", **options), layout)


def attend(**options) -> Case:
    return Case(lambda q, k, v, mask=None: ops.attention(q, k, v, mask=mask, **options))


LINEAR = Case(of_first(ops.linear, "input", "weight", "bias"), transposed)
CROSS_ENTROPY = Case(of_first(ops.softmax_cross_entropy, "input", "target"))
CASES: dict[str, Case] = {
    "add": pair(lambda a, b: a + b),
    "sub": pair(lambda a, b: a - b),
    "mul": pair(lambda a, b: a * b),
    "div": pair(lambda a, b: a / b),
    "pow": method(lambda x: x**-1.5),
    "exp": unary(Tensor.exp),
    "log": unary(Tensor.log),
    "clip": method(lambda x: x.clip(-0.5, 0.75)),
    "matmul": pair(lambda a, b: a @ b),
    "sum": method(lambda x: x.sum((0, 2))),
    "mean": method(lambda x: x.mean((0, 2), keepdims=True)),
    "max": method(lambda x: x.max((0, 2))),
    "reshape": method(lambda x: x.reshape(3, 4)),
    "transpose": method(lambda x: x.transpose(2, 0, 1)),
    "pad": method(lambda x: x.pad(((1, 0), (0, 2)), value=-1.0)),
    "getitem": Case(lambda x, ids: x[:, ids]),
    "concatenate": pair(lambda a, b: concatenate([a, b], axis=1)),
    "where": Case(lambda mask, a, b: where(mask, a, b)),
    "linear": LINEAR,
    "linear without bias": LINEAR,
    "conv2d": conv(),
    "conv2d, padding 1": conv(padding=1),
    "conv2d, stride 2, padding 1": conv(stride=2, padding=1),
    "conv2d, stride 2, uneven": conv(stride=2, padding=(0, 1, 0, 1)),
    "conv2d, 5x2": conv(padding=(3, 1, 0, 1)),
    "conv2d, 1x1": conv(),
    "conv2d, 1x1, stride 2": conv(stride=2),
    "conv2d, stride 3": conv(stride=3, padding=1),
    "group_norm": norm(ops.group_norm, images, groups=2),
    "group_norm, large eps": norm(ops.group_norm, images, groups=4, eps=0.5),
    "group_norm and silu": norm(ops.group_norm, images, groups=2, eps=1e-6, silu=True),
    "layer_norm": norm(ops.layer_norm, plain),
    "embedding": Case(of_first(ops.embedding, "weight", "ids")),
    "sigmoid": unary(ops.sigmoid),
    "tanh": unary(ops.tanh),
    "relu": unary(ops.relu),
    "silu": unary(ops.silu),
    "gelu": unary(ops.gelu),
    "quick_gelu": unary(ops.quick_gelu),
    "softmax": unary(ops.softmax),
    "softmax, axis 1": unary(ops.softmax, axis=1),
    "geglu": Case(ops.geglu),
    "attention": attend(),
    "attention, heads": attend(heads=3),
    "attention, causal": attend(heads=2, causal=True),
    "attention, padding": attend(heads=2),
    "attention, causal and padding": attend(heads=2),
    "attention, a mask a head": attend(heads=2),
    "upsample_nearest": Case(ops.upsample_nearest, images),
    "average_pool": Case(partial(ops.average_pool, size=2), images),
    "space_to_depth": Case(partial(ops.space_to_depth, block=2), images),
    "depth_to_space": Case(partial(ops.depth_to_space, block=2), images),
    "mse_loss": Case(of_first(ops.mse_loss, "input", "target")),
    "mse_loss, weighted": Case(ops.mse_loss),
    "cross_entropy": CROSS_ENTROPY,
    "cross_entropy, soft": CROSS_ENTROPY,
    "gaussian_kl": Case(ops.gaussian_kl),
    "contrastive_loss": Case(
        lambda image, text, log_scale: ops.contrastive_loss(
            image, text, log_scale, np.eye(len(image), dtype=bool)
        )
    ),
    "resnet": Case(lambda: ResnetBlock2D(4, 4, 2, 1e-6), images),
    "resnet with time": Case(lambda: ResnetBlock2D(2, 4, 2, 1e-5, time_channels=3), images),
    "downsample": Case(lambda: Downsample2D(2, 1), images),
    "downsample, uneven": Case(lambda: Downsample2D(2, (0, 1, 0, 1)), images),
    "upsample": Case(lambda: Upsample2D(2), images),
    "attention block": Case(lambda: Attention(4, 2, 3)),
    "transformer": Case(lambda: BasicTransformerBlock(4, 2, 3)),
}
BLOCKS = list(CASES)[-7:]


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(dtype) if array.dtype.kind == "f" else array


def compare(ours: dict, theirs: dict, dtype: str) -> None:
    for what, array in theirs.items():
        assert ours[what].dtype == dtype, what
        assert distance(np.asarray(ours[what]), array) <= TOLERANCES[dtype], what


every_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


@every_dtype
@pytest.mark.parametrize("name", [name for name in CASES if name not in BLOCKS])
def test_an_operation_matches_pytorch(name, dtype):
    function, layout = CASES[name]
    reference = references()[name]
    arrays = {key: cast(layout(key, array), dtype) for key, array in reference.inputs.items()}
    inputs = arrays | {key: Tensor(arrays[key], requires_grad=True) for key in reference.gradients}
    y = function(**inputs)
    wanted = [inputs[key] for key in reference.gradients]
    slopes = gradients(y, wanted, cast(layout("x", reference.gy), dtype))
    back = BACK[layout]
    ours = {key: back(key, gx) for key, gx in zip(reference.gradients, slopes)}
    output = {"output": reference.output}
    compare({"output": back("x", y.data)} | ours, output | reference.gradients, dtype)


@every_dtype
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_matches_pytorch(name, dtype):
    build, layout = CASES[name]
    reference = references()[name]
    module = build().astype(dtype)
    names = dict(module.named_parameters())
    weights = {key: array for key, array in reference.inputs.items() if key in names}
    module.load_state_dict(from_torch_layout(module, weights))  # all of them, or it is refused
    inputs = {
        key: Tensor(cast(layout(key, array), dtype), requires_grad=True)
        for key, array in reference.inputs.items()
        if key not in names
    }
    y = module(**inputs)
    wanted = inputs | names
    slopes = gradients(y, wanted.values(), cast(layout("x", reference.gy), dtype))
    ours = dict(zip(wanted, slopes))
    of_inputs = {key: BACK[layout](key, ours.pop(key)) for key in inputs}
    output = {"output": BACK[layout]("x", y.data)}
    theirs = {"output": reference.output} | reference.gradients
    compare(output | of_inputs | to_torch_layout(module, ours), theirs, dtype)


@pytest.mark.host
@every_dtype
def test_the_fast_convolution_matches_pytorch(dtype):
    """The reference's image is too small for `conv2d` to choose it."""
    reference = references()["conv2d, padding 1"]
    names = ("x", "weight", "bias")
    inputs = [
        Tensor(cast(images(name, reference.inputs[name]), dtype), requires_grad=True)
        for name in names
    ]
    y = WinogradConv2d.apply(*inputs)
    slopes = gradients(y, inputs, cast(images("x", reference.gy), dtype))
    ours = {name: images_back(name, gx) for name, gx in zip(names, slopes)}
    theirs = {"output": reference.output} | reference.gradients
    compare({"output": images_back("x", y.data)} | ours, theirs, dtype)


def test_every_reference_is_used():
    assert list(references()) == list(CASES)
    assert all(np.linalg.norm(reference.output) > 0.1 for reference in references().values())
