"""The operations behind Tensor's operators, forward against NumPy; gradients: test_gradients.py."""

import operator

import numpy as np
import pytest

from ldm_numpy.primitives import unbroadcast
from ldm_numpy.tensor import Tensor, concatenate, gradients, where


def tensor(rng, *shape):
    return Tensor(rng.standard_normal(shape), requires_grad=True)


# Operators ---------------------------------------------------------------------------------

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize(
    "shapes", [((2, 3), (2, 3)), ((2, 1, 3), (4, 1)), ((3,), (2, 3)), ((), (2,))]
)
def test_binary_operators(rng, op, shapes):
    a, b = (rng.standard_normal(shape) for shape in shapes)
    expected = op(a, b)
    for x, y in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))):
        result = op(x, y)
        assert isinstance(result, Tensor)
        np.testing.assert_array_equal(result.data, expected)


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("number", [2, 2.5, np.float32(2.5), np.array(2.5, np.float32)])
def test_numbers_on_either_side(op, number):
    x = np.array([1.0, -2.0, 4.0], np.float32)
    for result, expected in (
        (op(Tensor(x), number), op(x, number)),
        (op(number, Tensor(x)), op(number, x)),
    ):
        assert isinstance(result, Tensor) and result.dtype == np.float32
        np.testing.assert_array_equal(result.data, expected)


def test_unary_operators(rng):
    x = rng.uniform(0.5, 2, (2, 3))
    t = Tensor(x)
    np.testing.assert_array_equal((-t).data, -x)
    np.testing.assert_array_equal((t**3).data, x**3)
    np.testing.assert_array_equal((t**-0.5).data, x**-0.5)
    np.testing.assert_array_equal(t.exp().data, np.exp(x))
    np.testing.assert_array_equal(t.log().data, np.log(x))
    np.testing.assert_array_equal(t.clip(0.8, 1.2).data, np.clip(x, 0.8, 1.2))


def test_a_tensor_is_no_exponent():
    with pytest.raises(ValueError, match="needs a number"):
        Tensor([2.0]) ** Tensor([2.0])


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 1, 2, 3), (5, 3, 4))]
)
def test_matmul(rng, shapes):
    a, b = (rng.standard_normal(shape) for shape in shapes)
    for x, y in ((Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))):
        result = x @ y
        assert isinstance(result, Tensor)
        np.testing.assert_allclose(result.data, np.einsum("...ij,...jk->...ik", a, b), atol=1e-12)


@pytest.mark.parametrize("shapes", [((3,), (3, 4)), ((2, 3), (3,)), ((2, 3), (4, 3))])
def test_matmul_refuses(rng, shapes):
    with pytest.raises(ValueError, match=r"matmul: shapes .* do not fit"):
        tensor(rng, *shapes[0]) @ tensor(rng, *shapes[1])


# Reductions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (-1, 0)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(rng, name, axis, keepdims):
    x = rng.standard_normal((2, 3, 4))
    result = getattr(Tensor(x), name)(axis=axis, keepdims=keepdims)
    expected = getattr(x, name)(axis=axis, keepdims=keepdims)
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result.data, expected, rtol=1e-14, atol=1e-15)


def test_max_shares_the_gradient_evenly_among_equals():
    x = Tensor(np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]), requires_grad=True)
    (gx,) = gradients(x.max(axis=1), [x], np.array([4.0, 5.0]))
    np.testing.assert_array_equal(gx, [[0, 2, 2], [5, 0, 0]])
    (gx,) = gradients(x.max(), [x])
    np.testing.assert_array_equal(gx, [[0, 0.5, 0.5], [0, 0, 0]])


# Kinks -------------------------------------------------------------------------------------


def test_clip_passes_the_gradient_inside_and_on_its_ends():
    x = Tensor(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), requires_grad=True)
    (gx,) = gradients(x.clip(-1.0, 1.0), [x], np.arange(1.0, 6.0))
    np.testing.assert_array_equal(gx, [0, 2, 3, 4, 0])


# Shapes ------------------------------------------------------------------------------------


def test_reshape(rng):
    x = rng.standard_normal((2, 3, 4))
    for result in (Tensor(x).reshape(6, 4), Tensor(x).reshape((6, 4)), Tensor(x).reshape(-1, 4)):
        np.testing.assert_array_equal(result.data, x.reshape(6, 4))
    assert Tensor(x).reshape(-1).shape == (24,)


@pytest.mark.parametrize("axes", [(), (2, 0, 1), (1, 2, 0), (-1, 0, -2)])
def test_transpose(rng, axes):
    x = rng.standard_normal((2, 3, 4))
    np.testing.assert_array_equal(Tensor(x).transpose(*axes).data, x.transpose(*axes))


def test_pad(rng):
    x = rng.standard_normal((2, 3))
    width = ((1, 0), (2, 3))
    np.testing.assert_array_equal(Tensor(x).pad(width).data, np.pad(x, width))
    expected = np.pad(x, width, constant_values=-1)
    np.testing.assert_array_equal(Tensor(x).pad(width, value=-1).data, expected)


INDICES = {
    "integer": 1,
    "negative": -1,
    "slice": slice(None, None, -2),
    "integers and slices": (slice(1, 3), 2),
    "ellipsis and new axis": (..., None, 0),
    "numpy integer": np.int64(2),
    "list": [0, 2, 2],
    "array": np.array([[1, 1], [0, 3]]),
    "arrays": (np.array([0, 3, 0]), np.array([1, 1, 1])),
    "array and slice": (slice(None), np.array([2, 0, 2])),
    "mask": np.array([True, False, True, True]),
    "full mask": np.arange(12).reshape(4, 3) % 5 == 1,
}


@pytest.mark.parametrize("name", INDICES)
def test_getitem(rng, name):
    index = INDICES[name]
    x = tensor(rng, 4, 3)
    y = x[index]
    np.testing.assert_array_equal(y.data, x.data[index])

    gy = rng.standard_normal(y.shape)
    positions = np.arange(12).reshape(4, 3)[index]  # which element of x each element of y is
    expected = np.bincount(np.ravel(positions), weights=gy.ravel(), minlength=12).reshape(4, 3)
    np.testing.assert_allclose(gradients(y, [x], gy)[0], expected)


def test_split_is_slices(rng):
    x = tensor(rng, 2, 6)
    parts = [x[:, i : i + 2] for i in (0, 2, 4)]
    joined = concatenate(parts, axis=1)
    np.testing.assert_array_equal(joined.data, x.data)
    gy = rng.standard_normal((2, 6))
    np.testing.assert_array_equal(gradients(joined, [x], gy)[0], gy)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate(rng, axis):
    shapes = [[2, 3, 4] for _ in range(3)]
    for i, shape in enumerate(shapes):
        shape[axis] = i + 1
    arrays = [rng.standard_normal(shape) for shape in shapes]
    expected = np.concatenate(arrays, axis)
    np.testing.assert_array_equal(concatenate([Tensor(a) for a in arrays], axis).data, expected)
    mixed = concatenate([Tensor(arrays[0]), *arrays[1:]], axis)
    np.testing.assert_array_equal(mixed.data, expected)
    assert isinstance(concatenate(arrays, axis), np.ndarray)


def test_concatenate_joins_the_first_axis_by_default(rng):
    assert concatenate([tensor(rng, 2, 3), tensor(rng, 1, 3)]).shape == (3, 3)


def test_where(rng):
    a, b = tensor(rng, 2, 3), tensor(rng, 3)
    mask = np.array([[True, False, True], [False, False, True]])
    np.testing.assert_array_equal(where(mask, a, b).data, np.where(mask, a.data, b.data))
    np.testing.assert_array_equal(where(mask, 0.0, b).data, np.where(mask, 0, b.data))
    assert where(mask, Tensor(np.ones((2, 3), np.float32)), 0.5).dtype == np.float32


# Broadcasting ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(2, 3, 4), (3, 4), (4,), (1,), (), (1, 1), (2, 1, 4), (1, 3, 1), (3, 1), (1, 1, 4)]
)
def test_unbroadcast_is_the_adjoint_of_broadcasting(rng, shape):
    x, g = rng.standard_normal(shape), rng.standard_normal((2, 3, 4))
    back = unbroadcast(g, shape)
    assert back.shape == shape
    np.testing.assert_allclose(np.vdot(g, np.broadcast_to(x, g.shape)), np.vdot(back, x))


@pytest.mark.host
def test_unbroadcast_keeps_what_was_not_broadcast(rng):
    g = rng.standard_normal((1, 3))
    assert unbroadcast(g, (1, 3)) is g
    assert unbroadcast(g, (3,)).shape == (3,)
    np.testing.assert_array_equal(unbroadcast(g, (1, 1)), g.sum(keepdims=True))


def test_the_gradient_of_a_power_of_zero_is_an_array_of_zeros():
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    (g,) = gradients((x**0).sum(), [x])
    assert g.shape == (2, 3) and g.dtype == np.float32 and not g.any()
