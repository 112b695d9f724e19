"""Exercise 01.3: a backward walk over a list of operations.

The list says how numbers are made, in order; numbers are counted from the n leaves on. With leaves
0, 1, 2 the list

    [("mul", 0, 1), ("add", 3, 2), ("tanh", 4)]

makes number 3 = x0 x1, number 4 = number 3 + x2, and number 5 = tanh(number 4), the result.
"""

import numpy as np

FORWARD = {"add": lambda u, v: u + v, "mul": lambda u, v: u * v, "tanh": np.tanh, "exp": np.exp}


def run(tape, x):
    """All numbers: the leaves, and what each operation makes."""
    values = list(x)
    for name, *inputs in tape:
        values.append(FORWARD[name](*[values[i] for i in inputs]))
    return values


def walk(gy, tape, x):
    """gy: gradient of the last number; x (n,): the leaves; returns their gradients gx (n,)."""
    values = run(tape, x)
    gradient = [0.0] * len(values)
    gradient[-1] = gy
    # About 12 lines: from the last operation to the first, hand on what has arrived at its result.
    raise NotImplementedError
    return np.array(gradient[: len(x)])
