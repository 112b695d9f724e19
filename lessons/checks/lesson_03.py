"""Exercises of lesson 03: checking gradients."""

import numpy as np

from ..check import Exercise
from ..solutions.lesson_03 import complex_step, directional, jacobian, vjp_error


def layer(rng):
    """A function (4, 3) -> (4, 2), also of complex numbers, and arguments for it."""
    w = rng.standard_normal((3, 2))
    x, v = rng.standard_normal((2, 4, 3))
    return (lambda x: np.exp(np.sin(x) @ w)), x, v


def along(rng, h):
    f, x, v = layer(rng)
    return {"f": f, "x": x, "v": v, "h": h}


def with_a_bug(rng):
    """The square of a linear map, and a backward pass that forgets the factor 2."""
    w = rng.standard_normal((3, 2))
    x, v = rng.standard_normal((2, 4, 3))
    return {
        "f": lambda x: (x @ w) ** 2,
        "backward": lambda gy, x: (gy * (x @ w)) @ w.T,
        "x": x, "gy": rng.standard_normal((4, 2)), "v": v, "h": 1e-3,
    }  # fmt: skip


def matrix(rng):
    f, x, _ = layer(rng)
    return {"f": f, "x": x[:2], "h": 1e-3}


# Wrong answers ------------------------------------------------------------------------------


def sides(f, backward, x, gy, v, h):
    jv = directional(f, x, v, h)
    return jv, np.vdot(gy, jv), abs(np.vdot(gy, jv) - np.vdot(backward(gy, x), v))


def relative_to_jv(f, backward, x, gy, v, h):
    jv, _, difference = sides(f, backward, x, gy, v, h)
    return difference / np.linalg.norm(jv)


def relative_to_product(f, backward, x, gy, v, h):
    _, product, difference = sides(f, backward, x, gy, v, h)
    return difference / abs(product)


def all_ones(f, backward, x, gy, v, h):
    return vjp_error(f, backward, x, np.ones_like(gy), v, h)


def one_sided(f, x, h):
    moved = x.ravel() + h * np.eye(x.size)  # (N, N), one input a row
    return np.stack([(f(m.reshape(x.shape)) - f(x)).ravel() / h for m in moved], axis=1)


def never_put_back(f, x, h):
    columns, x = [], x.copy()
    for j in range(x.size):
        x.flat[j] += h
        ahead = f(x)
        x.flat[j] -= 2 * h
        columns.append((ahead - f(x)).ravel() / (2 * h))
    return np.stack(columns, axis=1)


EXERCISES = [
    Exercise(
        "03_1_directional",
        "directional",
        solution=directional,
        inputs=lambda rng: along(rng, 1e-3),
        results=("jv",),
        wrong={
            "that is the one-sided difference: its error is of order h, not h^2":
                lambda f, x, v, h: (f(x + h * v) - f(x)) / h,
            "the two points are 2 h apart, not h": lambda f, x, v, h: 2 * directional(f, x, v, h),
            "divide by 2 h, not by 2": lambda f, x, v, h: h * directional(f, x, v, h),
            "v keeps its length: J v is linear in v":
                lambda f, x, v, h: directional(f, x, v / np.linalg.norm(v), h),
        },
    ),
    Exercise(
        "03_2_vjp_error",
        "vjp_error",
        solution=vjp_error,
        inputs=with_a_bug,
        results=("error",),
        wrong={
            "the given gy must be used: all ones miss too much": all_ones,
            "make it relative: divide by |gy| |J v|": lambda **given: sides(**given)[2],
            "divide by |gy| as well: the error must not grow with gy": relative_to_jv,
            "divide by |gy| |J v|: the product <gy, J v> may be small by chance":
                relative_to_product,
        },
    ),
    Exercise(
        "03_3_jacobian",
        "jacobian",
        solution=jacobian,
        inputs=matrix,
        results=("J",),
        wrong={
            "an input is a column of J, not a row: transpose":
                lambda f, x, h: jacobian(f, x, h).T,
            "that is the one-sided difference: step forwards and backwards": one_sided,
            "put x[j] back before the next element moves": never_put_back,
            "the two points are 2 h apart, not h": lambda f, x, h: 2 * jacobian(f, x, h),
        },
    ),
    Exercise(
        "03_4_complex_step",
        "complex_step",
        solution=complex_step,
        inputs=lambda rng: along(rng, 1e-20),
        results=("jv",),
        wrong={
            "the derivative is in the imaginary part": lambda f, x, v, h: f(x),
            "one step, from the real axis: divide by h, not by 2 h":
                lambda f, x, v, h: complex_step(f, x, v, h) / 2,
            "zero: x + h v is x with an h of 1e-20, step along i v; or / h is missing": directional,
            "Im is missing: f(x + i h v) / h still has f(x) in its real part":
                lambda f, x, v, h: f(x + 1j * h * v) / h,
            "that is i J v: take the imaginary part, and no difference is needed":
                lambda f, x, v, h: (f(x + 1j * h * v) - f(x)) / h,
            "that is J v as a complex number: J v = Im f(x + i h v) / h is real":
                lambda f, x, v, h: complex_step(f, x, v, h) + 0j,
            "the step is along v": lambda f, x, v, h: complex_step(f, x, np.ones_like(v), h),
        },
        tolerance=1e-12,
    ),
]  # fmt: skip
