"""Exercise 16.4: a softmax for both array modules.

    y = exp(x - max x) / sum exp(x - max x)    over the last axis

`cupy.exp` refuses an array of NumPy's. Ask the array for its module, and use that. (The checker has
no GPU: it hands in a stand-in for an array of CuPy's, and the `array_module` that knows it. np.exp
does not know it, and gives NaN.)
"""


def softmax(x, array_module):
    """x (..., D), an array of NumPy or CuPy; array_module, as in ldm_numpy.backend: of an array,
    the module whose functions it needs; returns an array of the same kind and shape."""
    # About 4 lines, of which the first is xp = array_module(x).
    raise NotImplementedError
