"""Function: one differentiable operation, as a forward and a backward pass on raw arrays.

An operation is a class; an *instance* of it is one application, and its own context:

    class Mul(Function):
        def forward(self, a, b):
            self.save(a, b)
            return a * b

        def backward(self, gy):
            a, b = self.saved
            return gy * b, gy * a

    y = Mul.apply(x1, x2)

No Tensor appears inside forward or backward. There is no double backward: gradients are arrays,
not graphs.
"""

import threading


class _Mode(threading.local):
    """Whether operations are being recorded, separately for each thread."""

    recording = True


_mode = _Mode()


class no_grad:
    """Context manager: operations inside record no graph and save nothing."""

    def __enter__(self):
        self.previous, _mode.recording = _mode.recording, False

    def __exit__(self, *exception):
        _mode.recording = self.previous


def raw(x):
    """The array of a Tensor; anything else as it is."""
    return x.data if isinstance(x, Function.tensor_type) else x


class Function:
    """Base class of all operations.

    Attributes of an instance:
        needs:  one bool an input: must backward return its gradient?
        saved:  the arrays forward kept for backward
        inputs: the edges of the graph, one an input: the Function that made it, the Tensor itself
            where it is a leaf, or None where it needs no gradient. No edge leads to the Tensor that
            a Function made, so an array that nobody saved is freed as soon as the code that
            computed it lets go.
        shape:  of the output, set by apply when forward has returned
    """

    tensor_type: type = type(None)  # tensor.py sets it: imports point one way
    needs: tuple[bool, ...] = ()
    saved: tuple = ()
    inputs: tuple | None = None
    shape: tuple[int, ...] = ()

    def forward(self, *arrays, **options):
        """Arrays in, one array out. Options have no gradient."""
        raise NotImplementedError

    def backward(self, gy):
        """The gradient of the output in, one gradient (array or None) an input out, in order."""
        raise NotImplementedError

    def save(self, *arrays) -> None:
        """Keep `arrays` for backward, unless nobody will ask for it."""
        if True in self.needs:
            self.saved = arrays

    @classmethod
    def apply(cls, *inputs, **options):
        """Run forward; the only way to use an operation.

        `inputs` are positional: Tensors, raw arrays, or None for an absent one. With no Tensor
        among them the result is a raw array; otherwise it is a Tensor, and the operation joins
        the graph when recording is on and some input requires a gradient.
        """
        tensor = Function.tensor_type
        are_tensors = [isinstance(x, tensor) for x in inputs]
        arrays = [x.data if is_tensor else x for x, is_tensor in zip(inputs, are_tensors)]
        op = cls()
        recording = _mode.recording
        op.needs = tuple([recording and t and x.requires_grad for x, t in zip(inputs, are_tensors)])
        y = op.forward(*arrays, **options)
        if True not in are_tensors:
            return y
        if True not in op.needs:
            return tensor(y)
        op.inputs = tuple([x.node if need else None for x, need in zip(inputs, op.needs)])
        op.shape = y.shape
        return tensor(y, requires_grad=True, op=op)
