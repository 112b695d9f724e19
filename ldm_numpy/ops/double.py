"""What overflows in single precision, once more in double.

A sum of squares of numbers from 1e19 on is beyond float32, though a norm or softmax of them is not.
Such numbers are rare: whoever has none pays for one look at the sums, which are few.
"""

import math

import numpy as np


def overflowed(sums, *arrays) -> bool:
    """Whether `sums` are not all finite, though the `arrays` that they were made of are.

    Always False on a GPU: the answer would have to be waited for.
    """
    if type(sums) is not np.ndarray or not sums.size:
        return False
    # argmax and argmin find a NaN, too, and take a third of the time of isfinite.
    if sums.item(sums.argmin()) > -math.inf and sums.item(sums.argmax()) < math.inf:
        return False
    return all(np.isfinite(array).all() for array in arrays)


def in_double(op, *arrays, **options):
    """op.forward in float64, with the result in the type of the first array; its backward follows.

    ValueError where that is float64 already.
    """
    dtype = arrays[0].dtype
    if dtype != np.float32:
        largest = max(np.abs(array).max() for array in arrays)
        name = type(op).__name__
        raise ValueError(f"{name}: products of numbers up to {largest:.1e} are beyond {dtype}")
    double = type(op)()
    double.needs = op.needs

    def backward(gy):
        gradients = double.backward(gy.astype(np.float64))
        return tuple([g if g is None else g.astype(dtype) for g in gradients])

    op.backward = backward
    return double.forward(*[array.astype(np.float64) for array in arrays], **options).astype(dtype)
