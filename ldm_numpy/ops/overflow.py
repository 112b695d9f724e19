"""What is too large to be computed with: a clear error in the place of a silent NaN.

A sum of squares of numbers from 1e19 on is beyond float32, though a norm or softmax of them is not.
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


def beyond_range(name: str, *arrays) -> ValueError:
    """The error to raise, naming the operation and the largest of its inputs."""
    largest = max(np.abs(array).max() for array in arrays)
    return ValueError(
        f"{name}: products of numbers up to {largest:.1e} are beyond {arrays[0].dtype}"
    )
