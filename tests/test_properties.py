"""The operations behind Tensor's operators and methods, for any shapes that NumPy takes.

Results are NumPy's. The gradient of an element that is used many times is the sum of the gradients
of its uses; which uses those are is found by running NumPy on the elements' numbers.
"""

import operator

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ldm_numpy.tensor import Tensor, concatenate, gradients, where

SIDES = {"min_side": 0, "max_side": 4}
shapes = hnp.array_shapes(min_dims=0, max_dims=4, **SIDES)
seeds = st.integers(0, 2**32 - 1)


def numbers(seed: int, *wanted: tuple[int, ...]) -> list[np.ndarray]:
    """Arrays of these shapes, all elements between 0.5 and 2, where every operation is smooth."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.5, 2, shape) for shape in wanted]


def leaf(array: np.ndarray) -> Tensor:
    return Tensor(array, requires_grad=True)


def check(actual, expected) -> None:
    actual = actual.data if isinstance(actual, Tensor) else actual
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def collected(g: np.ndarray, places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The sum of `g` over all elements with the same number in `places`, as an array of `shape`."""
    size = int(np.prod(shape))
    sums = np.bincount(places.ravel(), weights=g.ravel(), minlength=size)
    return sums.reshape(shape)


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    """An array whose elements are their own numbers."""
    return np.arange(int(np.prod(shape))).reshape(shape)


def unbroadcast(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return collected(g, np.broadcast_to(numbered(shape), g.shape), shape)


# Broadcasting --------------------------------------------------------------------------------

# Function, and its two derivatives.
BINARY = {
    "add": (operator.add, lambda a, b: 1 + 0 * a * b, lambda a, b: 1 + 0 * a * b),
    "sub": (operator.sub, lambda a, b: 1 + 0 * a * b, lambda a, b: -1 + 0 * a * b),
    "mul": (operator.mul, lambda a, b: b + 0 * a, lambda a, b: a + 0 * b),
    "div": (operator.truediv, lambda a, b: 1 / b + 0 * a, lambda a, b: -a / b**2),
}


@pytest.mark.parametrize("name", BINARY)
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, **SIDES), seeds)
def test_binary_operators_broadcast_as_numpy_does(name, pair, seed):
    op, by_a, by_b = BINARY[name]
    a, b = numbers(seed, *pair.input_shapes)
    x, y = leaf(a), leaf(b)
    result = op(x, y)
    assert result.shape == pair.result_shape
    check(result, op(a, b))
    (gy,) = numbers(seed + 1, pair.result_shape)
    ga, gb = gradients(result, [x, y], gy)
    check(ga, unbroadcast(gy * by_a(a, b), a.shape))
    check(gb, unbroadcast(gy * by_b(a, b), b.shape))


@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, **SIDES), seeds)
def test_where_broadcasts_as_numpy_does(three, seed):
    a, b, chance = numbers(seed, *three.input_shapes)
    mask = np.asarray(chance > 1.25)
    x, y = leaf(a), leaf(b)
    result = where(mask, x, y)
    check(result, np.where(mask, a, b))
    (gy,) = numbers(seed + 1, three.result_shape)
    ga, gb = gradients(result, [x, y], gy)
    check(ga, unbroadcast(np.where(mask, gy, 0), a.shape))
    check(gb, unbroadcast(np.where(mask, 0, gy), b.shape))


@given(
    hnp.mutually_broadcastable_shapes(signature="(i,j),(j,k)->(i,k)", max_dims=2, **SIDES), seeds
)
def test_matmul_broadcasts_as_numpy_does(pair, seed):
    a, b = numbers(seed, *pair.input_shapes)
    x, y = leaf(a), leaf(b)
    result = x @ y
    assert result.shape == pair.result_shape
    check(result, np.einsum("...ij,...jk->...ik", a, b))
    (gy,) = numbers(seed + 1, pair.result_shape)
    ga, gb = gradients(result, [x, y], gy)
    check(ga, unbroadcast(np.einsum("...ik,...jk->...ij", gy, b), a.shape))
    check(gb, unbroadcast(np.einsum("...ij,...ik->...jk", a, gy), b.shape))


@given(shapes, shapes)
def test_what_numpy_does_not_broadcast_is_refused(one, other):
    a, b = leaf(np.ones(one)), leaf(np.ones(other))
    try:
        expected = np.broadcast_shapes(one, other)
    except ValueError:
        for op, *_ in BINARY.values():
            with pytest.raises(ValueError):
                op(a, b)
    else:
        assert (a + b).shape == expected


# One input -----------------------------------------------------------------------------------

UNARY = {
    "neg": (operator.neg, np.negative, lambda x: -np.ones_like(x)),
    "exp": (Tensor.exp, np.exp, np.exp),
    "log": (Tensor.log, np.log, lambda x: 1 / x),
    "pow": (lambda x: x**-1.5, lambda x: x**-1.5, lambda x: -1.5 * x**-2.5),
    "clip": (
        lambda x: x.clip(0.8, 1.6),
        lambda x: np.clip(x, 0.8, 1.6),
        lambda x: ((x > 0.8) & (x < 1.6)).astype(float),
    ),
}


@pytest.mark.parametrize("name", UNARY)
@given(shapes, seeds)
def test_elementwise_functions_keep_every_shape(name, shape, seed):
    op, function, slope = UNARY[name]
    x, gy = numbers(seed, shape, shape)
    t = leaf(x)
    result = op(t)
    check(result, np.asarray(function(x)))
    check(gradients(result, [t], gy)[0], gy * slope(x))


@st.composite
def reductions(draw):
    """A shape, none, one or several of its axes, and whether they are kept. The reduced axes have
    elements (a mean of none is not defined), others need not."""
    shape = draw(shapes)
    single = st.integers(-len(shape), len(shape) - 1) if shape else st.none()
    axis = draw(st.none() | single | hnp.valid_tuple_axes(len(shape)))
    reduced = range(len(shape)) if axis is None else np.atleast_1d(axis)
    for i in map(int, reduced):
        assume(shape[i] > 0)
    return shape, axis, draw(st.booleans())


@given(reductions(), seeds)
def test_reductions_take_any_axes(reduction, seed):
    shape, axis, keepdims = reduction
    (x,) = numbers(seed, shape)
    for name in ("sum", "mean", "max"):
        t = leaf(x)
        result = getattr(t, name)(axis=axis, keepdims=keepdims)
        expected = np.asarray(getattr(np, name)(x, axis=axis, keepdims=keepdims))
        check(result, expected)
        (gy,) = numbers(seed + 1, expected.shape)
        kept = np.asarray(getattr(np, name)(x, axis=axis, keepdims=True))
        spread = np.broadcast_to(gy.reshape(kept.shape), shape)
        factor = {"sum": 1, "mean": kept.size / max(1, x.size), "max": x == kept}[name]
        check(gradients(result, [t], gy)[0], spread * factor)


# Shapes and places -----------------------------------------------------------------------------


def check_moved(function, *arrays: np.ndarray, seed: int) -> None:
    """`function`, of Tensors or arrays, only moves elements, and perhaps adds zeros; its gradients
    are moved back."""
    leaves = [leaf(a) for a in arrays]
    result = function(*leaves)
    check(result, np.asarray(function(*arrays)))
    # Element by element: its number, counted through all inputs from 1 on. 0 is what was added.
    starts = np.cumsum([1, *(a.size for a in arrays)])
    places = function(*(start + numbered(a.shape) for start, a in zip(starts, arrays)))
    (gy,) = numbers(seed + 1, result.shape)
    sums = collected(gy, np.asarray(places), (int(starts[-1]),))
    for a, start, g in zip(arrays, starts, gradients(result, leaves, gy)):
        check(g, sums[start : start + a.size].reshape(a.shape))


@st.composite
def factorisations(draw):
    """Two shapes of as many elements, and perhaps a -1 in the second."""
    factors = draw(st.lists(st.integers(1, 4), max_size=5))
    cuts = [sorted(draw(st.lists(st.integers(0, len(factors)), max_size=3))) for _ in range(2)]
    pair = [
        [int(np.prod(factors[i:j])) for i, j in zip([0, *cut], [*cut, len(factors)])]
        for cut in cuts
    ]
    if draw(st.booleans()):
        pair[1][draw(st.integers(0, len(pair[1]) - 1))] = -1
    return tuple(pair[0]), tuple(pair[1])


@given(factorisations(), seeds)
def test_reshape(pair, seed):
    old, new = pair
    check_moved(lambda x: x.reshape(new), *numbers(seed, old), seed=seed)


@given(shapes, st.data(), seeds)
def test_transpose(shape, data, seed):
    axes = data.draw(st.permutations(range(len(shape))))
    axes = [a - len(shape) if data.draw(st.booleans()) else a for a in axes]
    check_moved(lambda x: x.transpose(*axes), *numbers(seed, shape), seed=seed)


@given(hnp.array_shapes(max_dims=4, **SIDES), st.data(), seeds)
def test_pad(shape, data, seed):
    width = tuple(data.draw(st.tuples(*[st.integers(0, 3)] * 2)) for _ in shape)

    def pad(x):
        return x.pad(width) if isinstance(x, Tensor) else np.pad(x, width)

    check_moved(pad, *numbers(seed, shape), seed=seed)


@given(hnp.array_shapes(max_dims=4, **SIDES), st.data(), seeds)
def test_slices_and_integers(shape, data, seed):
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    check_moved(lambda x: x[index], *numbers(seed, shape), seed=seed)


@given(hnp.array_shapes(max_dims=4, min_side=1, max_side=4), st.data(), seeds)
def test_integer_arrays_name_elements_as_often_as_they_like(shape, data, seed):
    result_shape = hnp.array_shapes(max_dims=2, min_side=0, max_side=5)
    index = data.draw(hnp.integer_array_indices(shape, result_shape=result_shape))
    check_moved(lambda x: x[index], *numbers(seed, shape), seed=seed)


@given(hnp.array_shapes(max_dims=3, **SIDES), st.data(), seeds)
def test_masks(shape, data, seed):
    mask = data.draw(hnp.arrays(bool, shape[: data.draw(st.integers(1, len(shape)))]))
    check_moved(lambda x: x[mask], *numbers(seed, shape), seed=seed)


@given(hnp.array_shapes(max_dims=4, **SIDES), st.data(), seeds)
def test_concatenate(shape, data, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    arrays = []
    for size in data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4)):
        part = list(shape)
        part[axis] = size
        arrays += numbers(seed + len(arrays), tuple(part))

    def join(*parts):
        join = concatenate if isinstance(parts[0], Tensor) else np.concatenate
        return join(parts, axis)

    check_moved(join, *arrays, seed=seed)
