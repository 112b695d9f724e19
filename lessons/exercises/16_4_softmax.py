"""Exercise 16.4: a softmax for both array modules.

    y = exp(x - max x) / sum exp(x - max x)    over the last axis

`np.exp` refuses an array on a GPU, `cupy.exp` one of NumPy. Ask the array for its module, and use
that. (The checker has no GPU: it hands in an array of NumPy's, so np.exp would pass.)
"""

from ldm_numpy.backend import array_module


def softmax(x):
    """x (..., D), an array of NumPy or CuPy; returns an array of the same kind and shape."""
    # About 4 lines, of which the first is xp = array_module(x).
    raise NotImplementedError
