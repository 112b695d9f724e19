"""Random weights that two programs can draw alike, so that they need not be committed.

Built on the raw stream of NumPy's PCG64, which NumPy promises never to change (the distributions of
Generator carry no such promise).
"""

import math

import numpy as np


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform float64 numbers of mean 0 and variance 1, fixed by the name alone."""
    bits = np.random.PCG64(list(name.encode())).random_raw(math.prod(shape))
    uniform = (bits >> np.uint64(11)) * 2.0**-53
    return ((uniform - 0.5) * math.sqrt(12)).reshape(shape)


def random_weights(network: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights in PyTorch's layout (output axis first), none of them zero or one.

    Matrices have variance 1 / fan-in, gains spread around 1, all other vectors around 0.
    """
    weights = {}
    for name, shape in shapes.items():
        value = noise(f"{network} {name}", shape)
        if len(shape) > 1:
            weights[name] = value / math.sqrt(math.prod(shape[1:]))
        else:
            is_gain = name.endswith("weight") or name == "logit_scale"
            weights[name] = np.asarray(0.2 * value + (1.0 if is_gain else 0.0))
    return weights


def projections(name: str, gradient: np.ndarray) -> np.ndarray:
    """A gradient in five numbers: its norm, then its products with four random directions."""
    directions = noise(f"projections {name}", (4, gradient.size))
    return np.concatenate([[np.linalg.norm(gradient)], directions @ gradient.ravel()])
