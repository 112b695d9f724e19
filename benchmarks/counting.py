"""How many operations a network asks for, counted from the shapes its layers meet.

A multiplication and an addition are two operations; a convolution is counted as the direct sum over
its window, however it is computed. Norms, activations and additions are not counted.
"""

from contextlib import ExitStack
from unittest import mock

import numpy as np

from ldm_numpy import ops
from ldm_numpy.tensor import Tensor

from . import workloads as w


class Count:
    """Operations of one forward pass (`forward`) and of the training step that contains it
    (`step`): the gradient of the weight costs as much again, and so does that of the input where
    somebody asks for it. `products`: (m, k, n) of every matrix product of linears and convolutions
    in the step.
    """

    def __init__(self):
        self.forward = self.step = 0
        self.products: list[tuple[int, int, int]] = []

    def product(self, m: int, k: int, n: int, input_gradient: bool) -> None:
        operations = 2 * m * k * n
        self.forward += operations
        self.step += operations * (3 if input_gradient else 2)
        self.products += [(m, k, n), (k, m, n)] + [(m, n, k)] * input_gradient

    def linear(self, function, x, weight, b=None):
        rows, (k, n) = int(np.prod(x.shape[:-1])), weight.shape
        self.product(rows, k, n, wants_gradient(x))
        return function(x, weight, b)

    def conv2d(self, function, x, weight, b=None, **options):
        y = function(x, weight, b, **options)
        kernel_h, kernel_w, cin, cout = weight.shape
        rows = int(np.prod(y.shape[:-1]))
        self.product(rows, kernel_h * kernel_w * cin, cout, wants_gradient(x))
        return y

    def attention(self, function, q, k, v, **options):
        n, t, d = q.shape
        operations = 2 * 2 * n * t * k.shape[1] * d  # q k^T, and the weights times v
        self.forward += operations
        self.step += operations * 3
        return function(q, k, v, **options)


def wants_gradient(x) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def counted(run) -> Count:
    """Run `run()` and count what `ops` was asked for meanwhile."""
    count = Count()
    with ExitStack() as stack:
        for name in ("linear", "conv2d", "attention"):
            function = getattr(ops, name)

            def replacement(*inputs, _name=name, _function=function, **options):
                return getattr(count, _name)(_function, *inputs, **options)

            stack.enter_context(mock.patch.object(ops, name, replacement))
        run()
    return count


def of_spec(spec: dict, images: int = 1) -> Count:
    """Of a workload's U-Net or operation, with so many images in the place of its batch."""
    spec = spec | {"batch": images}
    a = w.inputs(spec)
    if spec["kind"] == "unet":
        network = w.network("unet", spec)
        return counted(lambda: network(a["clean"], a["sigma"], a["cond"]))
    if spec["kind"] == "attention":
        return counted(lambda: ops.attention(a["q"], a["k"], a["v"], heads=w.HEADS))
    raise ValueError(f"{spec['kind']!r} is not counted")
