"""The test of a backward pass: <gy, J v> = <J^T gy, v> for random gy and v.

J v, the change of the output along the direction v, comes from central differences of the forward
pass; J^T gy comes from the backward pass. Random gy and v meet every entry of J with its own
weight. The customary all-ones gy does not: softmax's outputs sum to one, so that its J^T gy is zero
however wrong the backward pass scales it.
"""

import numpy as np

from .backend import array_module
from .tensor import Tensor


def vjp_errors(function, arrays, seed: int = 0, step: float = 1e-5) -> list[float]:
    """Relative error of each input's gradient: |<gy, J v> - <J^T gy, v>| / (|gy| |J v|).

    Args:
        function: Tensors in, one Tensor out, deterministic
        arrays: its inputs, float64 arrays; each is varied alone, along a random direction
        seed: of gy and v
        step: of the central difference, relative to the size of the input

    Returns one number an input. 1e-6 and less is right; a wrong term shows as 1e-2 to 1.
    Raises ValueError for inputs that are not float64 (rounding would hide the error).
    """
    for i, array in enumerate(arrays):
        if array.dtype != np.float64:
            raise ValueError(f"gradient checks need float64; input {i} is {array.dtype}")
    rng = np.random.default_rng(seed)
    inputs = [Tensor(array, requires_grad=True) for array in arrays]
    y = function(*inputs)
    xp = array_module(y.data)
    gy = xp.asarray(rng.standard_normal(y.shape))
    y.backward(gy)

    errors = []
    for i, x in enumerate(inputs):
        v = xp.asarray(rng.standard_normal(x.shape))
        h = step * max(1.0, float(abs(x.data).max()) if x.size else 0.0)

        def moved(t, i=i, v=v):
            shifted = [a + t * v if j == i else a for j, a in enumerate(arrays)]
            return function(*[Tensor(a) for a in shifted]).data

        jv = (moved(h) - moved(-h)) / (2 * h)
        gx = xp.zeros_like(x.data) if x.grad is None else x.grad
        difference = abs(float(xp.vdot(gy, jv)) - float(xp.vdot(gx, v)))
        size = float(xp.linalg.norm(gy) * xp.linalg.norm(jv))
        errors.append(difference / size if size else difference)
    return errors


def check_gradients(
    function, arrays, seeds=(0, 1, 2), tolerance: float = 1e-6, step: float = 1e-5
) -> None:
    """Raise AssertionError naming the inputs whose gradient is wrong, for any of the seeds."""
    for seed in seeds:
        errors = vjp_errors(function, arrays, seed, step)
        wrong = {i: error for i, error in enumerate(errors) if not error <= tolerance}
        if wrong:
            listed = ", ".join(f"input {i}: {error:.1e}" for i, error in wrong.items())
            raise AssertionError(f"gradient wrong (seed {seed}, allowed {tolerance:g}): {listed}")
