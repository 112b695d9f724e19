"""What turns gradients into better weights: AdamW, clipping, weight averages, learning rates.

All parameters of an optimizer are views into one flat buffer, and so are their gradients. An update
is then a few passes over one array instead of a loop over hundreds of small ones.
"""

import math
from contextlib import contextmanager

from .backend import array_module


class AdamW:
    """Adam with decoupled weight decay.

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)

    Matrices, kernels and tables decay; biases, norms and other vectors do not.
    (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2)

    Attributes:
        weights, gradient: flat buffers; every parameter's .data and .grad are views into them
        m, v: running moments, flat
        step_count: number of updates made
    """

    def __init__(
        self, parameters, betas=(0.9, 0.99), eps: float = 1e-8, weight_decay: float = 0.0
    ):
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.parameters = sorted(parameters, key=lambda p: p.ndim < 2)  # stable: decaying first
        if not self.parameters:
            raise ValueError("AdamW was given no parameters")
        self.decaying = sum(p.size for p in self.parameters if p.ndim >= 2)
        xp = array_module(self.parameters[0].data)
        self.weights = xp.concatenate([p.data.ravel() for p in self.parameters])
        self.gradient = xp.zeros_like(self.weights)
        self.m = xp.zeros_like(self.weights)
        self.v = xp.zeros_like(self.weights)
        self.scratch = xp.empty_like(self.weights)
        self.step_count = 0
        start = 0
        for p in self.parameters:
            end = start + p.size
            p.data = self.weights[start:end].reshape(p.shape)
            p.grad = self.gradient[start:end].reshape(p.shape)
            start = end

    def zero_grad(self) -> None:
        """Set every gradient to zero, in place."""
        self.gradient.fill(0)

    def clip_gradient(self, max_norm: float):
        """Scale the whole gradient down to norm `max_norm` where it is larger; returns the norm.

        The norm stays on the device: nothing waits for it. (Pascanu et al. 2013, algorithm 1)
        """
        xp = array_module(self.gradient)
        norm = xp.sqrt(self.gradient @ self.gradient)
        self.gradient *= xp.minimum(1, max_norm / (norm + 1e-6)).astype(self.gradient.dtype)
        return norm

    def step(self, lr: float) -> None:
        """One update with learning rate `lr`, from the gradients as they stand."""
        self.step_count += 1
        b1, b2 = self.betas
        xp, t = array_module(self.weights), self.scratch
        xp.multiply(self.gradient, 1 - b1, out=t)
        self.m *= b1
        self.m += t
        xp.multiply(self.gradient, self.gradient, out=t)
        t *= 1 - b2
        self.v *= b2
        self.v += t
        xp.sqrt(self.v, out=t)
        t *= 1 / math.sqrt(1 - b2**self.step_count)
        t += self.eps
        xp.divide(self.m, t, out=t)
        t *= lr / (1 - b1**self.step_count)
        self.weights[: self.decaying] *= 1 - lr * self.weight_decay
        self.weights -= t

    def state_dict(self) -> dict:
        """The moments and the step count; the weights belong to the networks."""
        return {"m": self.m, "v": self.v, "step_count": self.step_count}

    def load_state_dict(self, state: dict) -> None:
        """Copy a state saved by `state_dict` back in."""
        for name in ("m", "v"):
            if state[name].shape != self.weights.shape:
                raise ValueError(
                    f"optimizer state {name!r} has {state[name].size} numbers, "
                    f"the networks have {self.weights.size}"
                )
        xp = array_module(self.weights)
        self.m[...] = xp.asarray(state["m"])
        self.v[...] = xp.asarray(state["v"])
        self.step_count = int(state["step_count"])


class EMA:
    """Exponential moving average of an optimizer's weights: a <- d a + (1 - d) w.

    The decay warms up, d_t = min(decay, (1 + t) / (10 + t)), so that an average over few steps is
    not dominated by the initial weights. Diffusion models are sampled with these averages.
    """

    def __init__(self, optimizer: AdamW, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA: decay {decay} must be in [0, 1)")
        self.optimizer, self.decay = optimizer, decay
        self.average = optimizer.weights.copy()

    def update(self) -> None:
        """Take in the weights as they stand; call it after each optimizer step."""
        t = self.optimizer.step_count
        d = min(self.decay, (1 + t) / (10 + t))
        scratch = self.optimizer.scratch
        array_module(scratch).subtract(self.optimizer.weights, self.average, out=scratch)
        scratch *= 1 - d
        self.average += scratch

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
