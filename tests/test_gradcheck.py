"""The gradient check itself: it must catch wrong gradients, or no other test means anything."""

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.function import Function
from ldm_numpy.gradcheck import check_gradients, vjp_errors
from ldm_numpy.ops.activation import Softmax
from ldm_numpy.ops.norm import LayerNorm
from ldm_numpy.primitives import Exp, MatMul, Mul
from ldm_numpy.tensor import Tensor, gradients


class SoftmaxWithAFactor(Softmax):
    """Twice the right gradient."""

    def backward(self, gy):
        return (2 * super().backward(gy)[0],)


class SoftmaxDiagonal(Softmax):
    """The mean over the row forgotten: gx = gy y (1 - y)."""

    def backward(self, gy):
        (y,) = self.saved
        return (gy * y * (1 - y),)


class SoftmaxWithoutGradient(Softmax):
    def backward(self, gy):
        return (np.zeros_like(gy),)


class SlightlyWrong(Exp):
    """Off by a hundred thousandth."""

    def backward(self, gy):
        return ((1 + 1e-5) * super().backward(gy)[0],)


class WrongSign(Exp):
    def backward(self, gy):
        return (-super().backward(gy)[0],)


class NotANumber(Exp):
    def backward(self, gy):
        return (np.full_like(gy, np.nan),)


class LayerNormWithoutVariance(LayerNorm):
    """What the variance owes to x forgotten."""

    def backward(self, gy):
        _, rstd, gamma = self.saved
        _, ggamma, gbeta = super().backward(gy)
        gx = rstd * (gy * gamma - (gy * gamma).mean(-1, keepdims=True))
        return gx, ggamma, gbeta


class OneElementWrong(Mul):
    def backward(self, gy):
        ga, gb = super().backward(gy)
        ga = ga.copy()
        ga[(0,) * ga.ndim] *= 1.01
        return ga, gb


class WritesIntoGy(Exp):
    """The right gradient, but the caller's gy is destroyed."""

    def backward(self, gy):
        (y,) = self.saved
        gy *= y
        return (gy,)


class Swapped(MatMul):
    """The factors' gradients mistaken for each other (square matrices hide it from shapes)."""

    def backward(self, gy):
        ga, gb = super().backward(gy)
        return gb, ga


x34 = np.random.default_rng(5).standard_normal((3, 4))
x44 = np.random.default_rng(6).standard_normal((4, 4))
gamma, beta = np.random.default_rng(7).standard_normal((2, 4))

WRONG = {
    "softmax times two": (lambda x: SoftmaxWithAFactor.apply(x, axis=-1), [x34]),
    "softmax, diagonal only": (lambda x: SoftmaxDiagonal.apply(x, axis=-1), [x34]),
    "softmax, zero": (lambda x: SoftmaxWithoutGradient.apply(x, axis=-1), [x34]),
    "slightly wrong": (SlightlyWrong.apply, [x34]),
    "wrong sign": (WrongSign.apply, [x34]),
    "not a number": (NotANumber.apply, [x34]),
    "one element": (OneElementWrong.apply, [x34, x34 + 1]),
    "layer norm without a term": (
        lambda x, g, b: LayerNormWithoutVariance.apply(x, g, b, eps=1e-5),
        [x34, gamma, beta],
    ),
    "gy overwritten": (WritesIntoGy.apply, [x34]),
    "gradients swapped": (Swapped.apply, [x44, x44.T + 1]),
}


@pytest.mark.parametrize("name", WRONG)
def test_catches_a_planted_bug(name):
    function, arrays = WRONG[name]
    with pytest.raises(AssertionError, match=r"gradient wrong \(seed \d, allowed 1e-06\): input 0"):
        check_gradients(function, arrays)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", [n for n in WRONG if n != "slightly wrong"])
def test_one_seed_is_enough_for_most(name, seed):
    function, arrays = WRONG[name]
    assert not vjp_errors(function, arrays, seed)[0] < 1e-5


def test_names_only_the_wrong_input():
    with pytest.raises(AssertionError) as caught:
        check_gradients(OneElementWrong.apply, [x34, x34 + 1])
    assert "input 0" in str(caught.value) and "input 1" not in str(caught.value)


def test_a_missing_gradient_is_wrong():
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(lambda x: x.detach() + x * 1.0, [x34])


def test_an_unused_input_is_right():
    assert vjp_errors(lambda x, unused: x * 2.0, [x34, x34])[1] == 0


@pytest.mark.parametrize("wrong", [SoftmaxWithAFactor, SoftmaxWithoutGradient])
def test_a_cotangent_of_ones_would_have_passed_a_wrong_softmax(wrong):
    x = Tensor(x34, requires_grad=True)
    (gx,) = gradients(wrong.apply(x, axis=-1), [x], np.ones_like(x34))
    assert np.abs(gx).max() < 1e-15  # and the right gradient is 0: nothing seems amiss


def test_passes_right_gradients():
    check_gradients(ops.softmax, [x34])
    check_gradients(lambda a, b: (a @ b).exp().mean(axis=0), [x34, x44])
    check_gradients(lambda x: (x * x).sum(), [x34])
    assert max(vjp_errors(lambda x: x.log(), [np.abs(x34) + 0.5])) < 1e-9


def test_the_step_follows_the_size_of_the_input():
    check_gradients(lambda x: x * x, [x34 * 1e8])
    check_gradients(lambda x: x.exp(), [x34 * 1e-8])


def test_scalar_inputs():
    check_gradients(lambda x: x * x * x, [np.array(0.7)])


def test_the_error_is_relative():
    class Off(Function):
        """y = 1000 x with a gradient of 1001."""

        def forward(self, x):
            return 1000 * x

        def backward(self, gy):
            return (1001 * gy,)

    (error,) = vjp_errors(Off.apply, [np.array([1.0])])
    assert error == pytest.approx(1e-3, rel=1e-3)  # |<gy, v>| = |gy| |v| in one dimension


def test_the_tolerance_is_the_callers():
    check_gradients(SlightlyWrong.apply, [x34], tolerance=1e-4)


def test_refuses_single_precision():
    with pytest.raises(ValueError, match="float64; input 1 is float32"):
        vjp_errors(lambda a, b: a + b, [x34, x34.astype(np.float32)])
