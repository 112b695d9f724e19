"""Exercise 14.3: the trace of a Jacobian by probes (Skilling, Hutchinson).

With J = dD/dx, of each sample by itself, and K probes v_1 ... v_K:

    tr J is about 1/K sum_k v_k^T J v_k

One backward pass gives J^T v for all samples: gradients(y, [x], v) is a list with one array.
"""

from ldm_numpy.tensor import Tensor, gradients


def trace(D, x, sigma, probes):
    """D(x, sigma) takes a Tensor x (N, d) and gives a Tensor (N, d); x is an array (N, d), probes
    (K, N, d) an array. Returns the estimate for each sample, (N,).
    """
    # About 5 lines: a graph and a backward pass for each probe.
    raise NotImplementedError
