"""Extreme numbers and shapes, for every operation and layer, forward and backward, in both types.

Each input in turn, and the cotangent, is made huge, tiny, constant or zero, in ordinary and in
degenerate shapes. Results are compared with the same in `longdouble`, whose range no square leaves
(where it is longer than a double). The reference rounded to the type is what must come out:
infinite where that is, and only then with a warning, and never NaN. The tolerance is that of a
stable algorithm: a few times what a change of the inputs by a rounding would change as well.
"""

import sys

import numpy as np
import pytest

from ldm_numpy import nn, ops, tensor
from ldm_numpy.function import Function
from ldm_numpy.ops.activation import GELU
from ldm_numpy.tensor import Tensor, gradients

from . import strict_backend
from .extremes import FILLS, OPS, REFUSED
from .strict_backend import cupy
from .test_gradients import subclasses

pytestmark = pytest.mark.host  # a GPU has no longdouble, and does not look at numbers
ROUNDINGS = 32
HOLD_ARRAYS_OF_THE_HOST = {  # a mask, a target, an index
    "ops.attention, masked", "ops.attention, of itself, masked", "ops.contrastive_loss",
    "ops.mse_loss", "tensor.where", "Tensor.__rmatmul__", "Tensor.__getitem__, ids",
}  # fmt: skip
NO_OPERATIONS = {"backward", "detach", "item", "numpy", "__init__", "__len__", "__repr__"}


@pytest.fixture(autouse=True)
def erf_of_longdoubles(monkeypatch):
    """SciPy's stops at doubles, whose digits do for a reference."""
    activation = sys.modules[GELU.__module__]
    erf = activation.erf

    def of_any(x):
        return erf(x) if x.dtype != np.longdouble else erf(x.astype(np.float64)).astype(x.dtype)

    monkeypatch.setattr(activation, "erf", of_any)


def run(function, inputs, gy):
    """The result, and the gradients of <gy, result>."""
    leaves = [Tensor(a, requires_grad=True) for a in inputs]
    y = function(*leaves)
    return [y.data, *gradients(y, leaves, gy)]


def reference(function, slots, epsilon: float):
    """`run` in longdouble, and by how much the results change with roundings of the inputs."""
    rng = np.random.default_rng(2)
    slots = [a.astype(np.longdouble) for a in slots]
    with np.errstate(all="ignore"):
        exact = run(function, slots[:-1], slots[-1])
        spread = [0 * e for e in exact]
        for _ in range(2):
            moved = [a * (1 + epsilon * rng.choice([-1, 0, 1], a.shape)) for a in slots]
            for i, r in enumerate(run(function, moved[:-1], moved[-1])):
                spread[i] = np.fmax(spread[i], np.abs(r - exact[i]))
    return exact, spread


def check(op, slots, beyond: bool) -> bool:
    """Whether results were beyond the range of the type, after all that is asserted of them."""
    dtype = slots[0].dtype
    limits = np.finfo(dtype)
    exact, spread = reference(op.function, slots, limits.eps)
    with np.errstate(all="ignore"):
        rounded = [e.astype(dtype) for e in exact]
        scale = op.scale([a.astype(np.longdouble) for a in slots[:-1]], slots[-1])
    infinite = any(np.isinf(r).any() for r in rounded)
    with np.errstate(all="raise", under="ignore", over="ignore" if beyond else "raise"):
        found = run(op.function, slots[:-1], slots[-1])
    for i, (got, wanted, change) in enumerate(zip(found, rounded, spread, strict=True)):
        assert got.dtype == dtype and not np.isnan(wanted).any()
        finite = np.isfinite(wanted)
        np.testing.assert_array_equal(got[~finite], wanted[~finite])
        size = np.abs(wanted[finite]).max(initial=0) + (scale if i else 0)
        tolerance = limits.eps * size + change[finite].max(initial=0)
        error = np.abs(got[finite] - exact[i][finite]).max(initial=0)
        assert error <= ROUNDINGS * tolerance + limits.tiny, f"{'gradient' if i else 'result'} {i}"
    return infinite


def fill(op, shapes, which: int | None, name: str, dtype) -> list[np.ndarray]:
    """Inputs and cotangent, of which one, or all for None, is filled as `name` says."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape) for shape in shapes]
    y = op.function(*[Tensor(np.abs(a) if op.positive else a) for a in inputs])
    slots = [*inputs, np.asarray(rng.standard_normal(y.shape))]
    for i in range(len(slots)) if which is None else [which]:
        slots[i] = FILLS[name](slots[i], rng)
    if op.positive:
        slots[-2] = np.abs(slots[-2])
    return [np.asarray(a, dtype) for a in slots]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPS)
def test_an_operation_is_finite_and_right(name, dtype):
    op = OPS[name]
    seen, refused = set(), set()
    for shapes in op.shapes:
        for which in range(len(shapes) + 1):
            for filled in FILLS if which == len(shapes) else op.fills:
                tag = f"{filled} {which}"
                try:
                    if check(op, fill(op, shapes, which, filled, dtype), tag in op.beyond):
                        seen.add(tag)
                except ValueError as error:
                    large = {"1e30", "mixed"} & set(tag.split())
                    if not (op.squares and large and "are beyond float32" in str(error)):
                        raise
                    refused.add(tag)
                except (AssertionError, FloatingPointError) as error:
                    raise AssertionError(f"{name}: {shapes}, {tag}: {error}") from error
    # A list that is longer than the truth would hide warnings.
    assert seen == op.beyond if dtype == np.float32 else seen <= op.beyond
    assert bool(refused) == (op.squares and dtype == np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("filled", ["equal", "zero"])
@pytest.mark.parametrize("name", OPS)
def test_an_operation_of_constants_alone(name, filled, dtype):
    op = OPS[name]
    if filled in op.fills:
        for shapes in op.shapes:
            check(op, fill(op, shapes, None, filled, dtype), False)


@pytest.mark.parametrize("name", OPS)
def test_an_operation_is_as_on_the_host_where_that_answers(name):
    """On the stand-in for a GPU, whose sums run in another order; never NaN. Where the host refuses
    numbers for being too large, a GPU does not look at them."""
    op = OPS[name]
    for shapes in op.shapes:
        for which in range(len(shapes) + 1):
            for filled in FILLS if which == len(shapes) else op.fills:
                slots = fill(op, shapes, which, filled, np.float32)
                with np.errstate(all="ignore"):
                    scale = op.scale([a.astype(np.longdouble) for a in slots[:-1]], slots[-1])
                    try:
                        host = run(op.function, slots[:-1], slots[-1])
                    except ValueError:
                        continue
                    found = on_a_device(op, slots)
                for i, (a, b) in enumerate(zip(host, found, strict=True)):
                    tag = f"{shapes}, {filled} {which}, {'gradient' if i else 'result'} {i}"
                    finite = np.isfinite(a)
                    np.testing.assert_array_equal(b[~finite], a[~finite], tag)
                    size = np.abs(a[finite]).max(initial=0) + (scale if i else 0)
                    if name == "ops.layer_norm" and filled == "equal, large":
                        size *= 1e4  # their distance from their mean is nothing but rounding
                    assert np.abs(a[finite] - b[finite]).max(initial=0) <= 1e-4 * size + 1e-30, tag


def on_a_device(op, slots):
    with strict_backend.installed():
        there = [cupy.asarray(a) for a in slots]
        if op in [OPS[name] for name in HOLD_ARRAYS_OF_THE_HOST]:
            with pytest.raises(TypeError):
                run(op.function, there[:-1], there[-1])
            return run(op.function, slots[:-1], slots[-1])
        return [a.get() for a in run(op.function, there[:-1], there[-1])]


@pytest.mark.parametrize("message, call", REFUSED, ids=[message for message, _ in REFUSED])
def test_what_has_no_answer_is_refused(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_everything_that_computes_is_listed():
    names = {name.split(",")[0] for name in OPS}
    methods = {n for n, value in vars(Tensor).items() if callable(value)} - NO_OPERATIONS
    layers = {c.__name__ for c in subclasses(nn.Module) if c.__module__ == nn.__name__}
    public = {f"ops.{name}" for name in ops.__all__}
    public |= {f"Tensor.{name}" for name in methods}
    public |= {f"tensor.{name}" for name in tensor.__all__}
    public -= {"tensor.Tensor", "tensor.gradients", "tensor.no_grad"}
    public |= {f"nn.{name}" for name in layers - {"ModuleList"}}
    assert not public ^ names, f"missing from OPS, or there and not public: {public ^ names}"


def test_every_function_is_reached():
    reached = set()
    for op in OPS.values():
        y = op.function(*[Tensor(np.ones(shape), requires_grad=True) for shape in op.shapes[0]])
        stack = [y.node]
        while stack:
            node = stack.pop()
            if isinstance(node, Function):
                reached.add(type(node))
                stack.extend(node.inputs)
    ours = {f for f in subclasses(Function) if f.__module__.startswith("ldm_numpy.")}
    assert not ours - reached, f"nothing in OPS computes {ours - reached}"
