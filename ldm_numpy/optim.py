"""What turns gradients into better weights: AdamW, clipping, weight averages, learning rates.

All parameters of an optimizer are views into one flat buffer, and so are their gradients. An update
is then a few passes over one array instead of a loop over hundreds of small ones; on a CPU, over
pieces of it that stay in cache from the first pass to the last, and that threads can share.
"""

import math
from contextlib import contextmanager
from itertools import groupby

import numpy as np

from .backend import array_module
from .parallel import Shards

PIECE = 1 << 17  # numbers: few enough for the cache, enough to outweigh the call of a function


class AdamW:
    """Adam with decoupled weight decay.

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)

    Matrices, kernels and tables decay; biases, norms and other vectors do not.
    (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2)

    Args:
        shards: who works on the pieces of the buffers, and where these lie; by default this thread

    Attributes:
        weights, gradient: flat buffers; every parameter's .data and .grad are views into them
        m, v: running moments, flat
        step_count: number of updates made
    """

    def __init__(
        self,
        parameters,
        betas=(0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        shards: Shards | None = None,
    ):
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.shards = shards or Shards(threads=1)
        shared = self.shards.shared
        self.parameters = sorted(parameters, key=lambda p: p.ndim < 2)  # stable: decaying first
        if not self.parameters:
            raise ValueError("AdamW was given no parameters")
        self.decaying = sum(p.size for p in self.parameters if p.ndim >= 2)
        xp = array_module(self.parameters[0].data)
        self.weights = shared(xp.concatenate([p.data.ravel() for p in self.parameters]))
        self.gradient, self.m, self.v = (shared(xp.zeros_like(self.weights)) for _ in range(3))
        self.step_count = 0
        start = 0
        for p in self.parameters:
            end = start + p.size
            p.data = self.weights[start:end].reshape(p.shape)
            p.grad = self.gradient[start:end].reshape(p.shape)
            start = end

    def each_piece(self, work, first: int = 0) -> None:
        """Call work(slice) on all pieces of the buffers from element `first` on: those of a CPU's
        cache, or one on a GPU.

        What is elementwise has the same result however the buffers are cut and shared out.
        """
        n = self.weights.size
        size = PIECE if array_module(self.weights) is np else n
        self.shards.each(work, [slice(i, min(i + size, n)) for i in range(first, n, size)])

    def zero_grad(self) -> None:
        """Set every gradient to zero, in place."""
        self.each_piece(lambda piece: self.gradient[piece].fill(0))

    def clip_gradient(self, max_norm: float):
        """Scale the whole gradient down to norm `max_norm` where it is larger; returns the norm.

        The norm stays on the device: nothing waits for it. (Pascanu et al. 2013, algorithm 1)
        On the host it is right even where squares are beyond float32's range; a GPU then makes the
        gradient zero.
        """
        xp = array_module(self.gradient)
        with np.errstate(over="ignore"):
            norm = xp.sqrt(self.gradient @ self.gradient)
        if xp is np and norm == math.inf:
            norm = self.gradient.dtype.type(np.linalg.norm(self.gradient.astype(np.float64)))
        factor = xp.minimum(1, max_norm / (norm + 1e-6)).astype(self.gradient.dtype)
        self.shards.barrier()  # other ranks may still read what is scaled now

        def scale(piece):
            self.gradient[piece] *= factor

        self.each_piece(scale)
        return norm

    def step(self, lr: float, first: int = 0) -> None:
        """One update with learning rate `lr`, from the gradients as they stand, of the weights from
        element `first` of the buffers on."""
        self.step_count += 1
        b1, b2 = self.betas
        xp = array_module(self.weights)
        # Both bias corrections as two numbers, not two passes (Kingma and Ba 2015, section 2):
        # (m / c1) / (sqrt(v / c2) + eps) = (sqrt(c2) / c1) m / (sqrt(v) + sqrt(c2) eps).
        c1, root_c2 = 1 - b1**self.step_count, math.sqrt(1 - b2**self.step_count)
        rate, eps = lr * root_c2 / c1, self.eps * root_c2

        def update(piece):
            w, g, m = (buffer[piece] for buffer in (self.weights, self.gradient, self.m))
            v = self.v[piece.start - first : piece.stop - first]
            t = (1 - b1) * g
            m *= b1
            m += t
            with squares_in_range(g.dtype):
                xp.multiply(g, g, out=t)
            t *= 1 - b2
            v *= b2
            v += t
            xp.sqrt(v, out=t)
            t += eps
            xp.divide(m, t, out=t)
            t *= rate
            w[: max(0, self.decaying - piece.start)] *= 1 - lr * self.weight_decay
            w -= t

        self.each_piece(update, first)

    def state_dict(self) -> dict:
        """The moments and the step count; the weights belong to the networks."""
        return {"m": self.m, "v": self.v, "step_count": self.step_count}

    def load_state_dict(self, state: dict) -> None:
        """Copy a state saved by `state_dict` back in."""
        for name in ("m", "v"):
            own = getattr(self, name)
            if state[name].shape != own.shape:
                raise ValueError(
                    f"optimizer state {name!r} has {state[name].size} numbers, "
                    f"the networks have {own.size}"
                )
        xp = array_module(self.weights)
        self.m[...] = xp.asarray(state["m"])
        self.v[...] = xp.asarray(state["v"])
        self.step_count = int(state["step_count"])


class Muon(AdamW):
    """Momentum whose update of a matrix is made orthogonal; AdamW for all that is no matrix.

        m <- mu m + g,   u = g + mu m  (Nesterov's momentum),   u = U S V^T  (singular values)
        w <- w - lr (0.2 sqrt(max(rows, columns)) U V^T + decay w)

    A gradient's few large singular values drown the others; with all of them made 1, the rare
    directions are learned as fast as the common ones, and a training needs about half the steps.
    U V^T has the mean square 1 / max(rows, columns), so the factor gives updates a size of 0.2, as
    AdamW's have, and one learning rate serves both. A convolution's kernel is the matrix of its
    im2col, (KH KW Cin, Cout).
    (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025,
    "Muon is scalable for LLM training", equation 4)

    Attributes, besides AdamW's:
        v: of what is no matrix only
        stacks: (slice of the buffers, number, rows, columns) of matrices of one shape, which lie
            side by side and are worked on as one stack; the largest come first, and a stack of
            several is no larger than a piece, so that threads end together (on a GPU, all of them)
    """

    def __init__(self, parameters, momentum: float = 0.95, **options):
        super().__init__(sorted(parameters, key=as_matrix), **options)
        self.momentum = momentum
        self.v = self.shards.shared(self.v[self.decaying :].copy())
        self.stacks, start = [], 0
        piece = PIECE if array_module(self.weights) is np else self.decaying
        matrices = [p for p in self.parameters if p.ndim >= 2]
        for (rows, columns), group in groupby(matrices, as_matrix):
            count, most = len(list(group)), max(1, piece // (rows * columns))
            for i in range(0, count, most):
                number = min(most, count - i)
                end = start + number * rows * columns
                self.stacks.append((slice(start, end), number, rows, columns))
                start = end
        self.stacks.sort(key=lambda stack: math.prod(stack[1:]), reverse=True)

    def step(self, lr: float) -> None:
        """One update with learning rate `lr`, from the gradients as they stand."""

        def update(stack):
            place, *shape = stack
            buffers = self.weights, self.gradient, self.m
            w, g, m = (buffer[place].reshape(shape) for buffer in buffers)  # (B, rows, columns)
            m *= self.momentum
            m += g
            u = orthogonal(g + self.momentum * m)
            w *= 1 - lr * self.weight_decay
            u *= 0.2 * lr * math.sqrt(max(shape[1:]))
            w -= u

        self.shards.each(update, self.stacks)
        super().step(lr, first=self.decaying)


@contextmanager
def squares_in_range(dtype):
    """ValueError for squares in the block that are beyond the range of `dtype`. (Not on a GPU.)

    A second moment that is infinite once stays so, and its weight would never move again.
    """
    try:
        with np.errstate(over="raise"):
            yield
    except FloatingPointError:
        raise ValueError(
            f"the square of a gradient is beyond {dtype}: clip_gradient before the step"
        ) from None


def as_matrix(parameter) -> tuple[int, int]:
    """(rows, columns) of a kernel or matrix whose last axis is the columns; (0, 0) of a vector."""
    if parameter.ndim < 2:
        return 0, 0
    columns = parameter.shape[-1]
    return parameter.size // columns, columns


def polynomial(gram):
    """a + b G + c G^2 for each matrix of a stack; see `orthogonal`."""
    one = array_module(gram).eye(gram.shape[1], dtype=gram.dtype)
    return 3.4445 * one - 4.7750 * gram + 2.0315 * (gram @ gram)


def orthogonal(x):
    """U V^T of each matrix x = U S V^T of a stack (B, rows, columns), roughly.

    An odd polynomial of a matrix, x (a + b G + c G^2) with the Gram matrix G = x^T x, acts on its
    singular values and leaves U and V alone. Five times this one takes whatever lies between 0.01
    and 1 to between 0.7 and 1.2, in nothing but matrix products (a Newton-Schulz iteration whose
    coefficients were chosen for speed rather than for a limit of exactly 1: Jordan et al. 2024).

    With P = a + b G + c G^2, the next x is x P and the next G is P G P. So the five P are found
    from G alone, the smaller of the two products of x with itself, and x meets their product once.

    A matrix of norm 1e-7 or less stays small, lest a gradient of mere rounding become a full step.
    """
    xp = array_module(x)
    with squares_in_range(x.dtype):
        norm = xp.sqrt((x * x).sum((1, 2), keepdims=True))
    x = x / (norm + 1e-7)  # no singular value above 1
    wide = x.shape[1] < x.shape[2]
    x = x.swapaxes(1, 2) if wide else x
    gram = x.swapaxes(1, 2) @ x
    p = total = polynomial(gram)
    for _ in range(4):
        gram = p @ gram @ p
        p = polynomial(gram)
        total = total @ p
    x = x @ total
    return x.swapaxes(1, 2) if wide else x


class EMA:
    """Exponential moving average of an optimizer's weights: a <- d a + (1 - d) w.

    The decay warms up, d_t = min(decay, (1 + t) / (10 + t)), so that an average over few steps is
    not dominated by the initial weights. Diffusion models are sampled with these averages.
    """

    def __init__(self, optimizer: AdamW, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay {decay} must be in [0, 1)")
        self.optimizer, self.decay = optimizer, decay
        self.average = optimizer.shards.shared(optimizer.weights.copy())

    def update(self) -> None:
        """Take in the weights as they stand; call it after each optimizer step."""
        t = self.optimizer.step_count
        d = min(self.decay, (1 + t) / (10 + t))

        def take_in(piece):
            average = self.average[piece]
            difference = self.optimizer.weights[piece] - average
            difference *= 1 - d
            average += difference

        self.optimizer.each_piece(take_in)

    @contextmanager
    def applied(self):
        """Inside the block the networks hold the averaged weights."""
        trained = self.optimizer.weights.copy()
        self.optimizer.weights[...] = self.average
        try:
            yield
        finally:
            self.optimizer.weights[...] = trained


def warmup_cosine(step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """Factor on the learning rate: linear up to 1 over `warmup`, then a half cosine to `floor`.

    (Loshchilov and Hutter 2017, equation 5, without restarts)
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
