"""Exercises of lesson 01: a scalar engine."""

from collections import deque
from functools import partial

import numpy as np

from ldm_numpy.tensor import Tensor

from ..check import Exercise
from ..solutions.lesson_01 import order, run, walk

TAPE = [("mul", 0, 1), ("add", 3, 0), ("tanh", 4), ("mul", 5, 5), ("exp", 2), ("mul", 6, 7),
        ("add", 8, 3)]  # fmt: skip


def numbers(rng):
    gy, a, b, c = rng.standard_normal((4, 5))
    return {"gy": gy, "a": a, "b": b, "c": c + np.copysign(0.5, c)}


def deep_graph(rng):
    """A knot of ten nodes, and a chain of two thousand that begins and ends in it."""
    graph = {0: (), 1: (0,), 2: (0, 1), 3: (1, 2)}
    for node in range(4, 10):
        graph[node] = tuple(int(i) for i in rng.choice(node, 2, replace=False))
    graph |= {node: (node - 1,) for node in range(10, 2010)}
    return {"graph": graph | {2010: (5, 2009, 9)}, "y": 2010}


def tape(rng):
    return {"gy": rng.standard_normal(), "tape": TAPE, "x": rng.standard_normal(3)}


def points(rng):
    x, w, b = rng.standard_normal((4, 3)), rng.standard_normal(3), np.array(rng.standard_normal())
    t = np.array([1.0, -1.0, -1.0, 1.0])
    return {"gy": rng.standard_normal(4), "x": x, "w": w, "b": b, "t": t}


def gradients(function, gy, *arrays):
    inputs = [Tensor(a, requires_grad=True) for a in arrays]
    function(*inputs).backward(gy)
    return tuple(t.grad for t in inputs)


def backward_rules(gy, a, b, c):
    return gradients(lambda a, b, c: a * b / c, gy, a, b, c)


def loss(x, w, b, t):
    return (1 + (-t * ((x * w).sum(axis=1) + b)).exp()).log()


def neuron_backward(gy, x, w, b, t):
    return gradients(lambda x, w, b: loss(x, w, b, t), gy, x, w, b)


# Wrong answers ------------------------------------------------------------------------------


def depth_first(graph, y, once=True, forward=True, first_met=False, early=False, turn=True):
    """Post-order with a stack, with one thing or another wrong; `early`: what was put there once is
    not put there again; `first_met`: pre-order, which `turn` reverses."""
    nodes, seen, put, stack = [], set(), {y}, [(y, False)]
    while stack:
        node, done = stack.pop()
        if done:
            nodes.append(node)
        elif node not in seen:
            if once:
                seen.add(node)
            if first_met:
                nodes.append(node)
            else:
                stack.append((node, True))
            inputs = [i for i in graph[node] if not early or i not in put]
            put |= set(inputs)
            stack.extend((i, False) for i in (inputs[::-1] if forward else inputs))
    return np.array(nodes[::-1] if first_met and turn else nodes)


def breadth_first(graph, y):
    nodes, queue = [y], deque([y])
    while queue:
        for parent in graph[queue.popleft()]:
            if parent not in nodes:
                nodes.append(parent)
                queue.append(parent)
    return np.array(nodes[::-1])


def walk_with(gy, tape, x, adds=True, backward=True, own=False, of_input=False):
    """A backward walk with one thing or another wrong."""
    values = run(tape, x)
    gradient = [0.0] * len(values)
    gradient[-1] = gy
    places = range(len(tape))
    for k in places[::-1] if backward else places:
        name, *inputs = tape[k]
        u = [values[i] for i in inputs]
        y = u[0] if of_input else values[len(x) + k]
        factors = {"add": [1.0, 1.0], "mul": u if own else u[::-1], "exp": [values[len(x) + k]],
                   "tanh": [1 - y * y]}[name]  # fmt: skip
        g = gradient[len(x) + k]
        for i, factor in zip(inputs, factors):
            gradient[i] = gradient[i] * adds + g * factor
    return np.array(gradient[: len(x)])


def neuron_with(gy, x, w, b, t, sign=-1.0, turned=1.0, use_t=True, use_gy=True, add=np.sum):
    u = -t * (x @ w + b)
    slope = 1 / (1 + np.exp(-turned * u))
    gz = (gy if use_gy else 1.0) * slope * sign * (t if use_t else 1.0)
    return gz[:, None] * w, add(gz[:, None] * x, axis=0), add(gz)


EXERCISES = [
    Exercise(
        "01_1_backward_rules",
        "backward_rules",
        solution=backward_rules,
        inputs=numbers,
        results=("ga", "gb", "gc"),
        wrong={
            "the derivative of 1/c is -1/c^2: the minus is missing in gc":
                lambda gy, a, b, c: (gy * b / c, gy * a / c, gy * a * b / c**2),
            "the derivative of 1/c is -1/c^2: gc divides by c only once":
                lambda gy, a, b, c: (gy * b / c, gy * a / c, -gy * a * b / c),
            "all three start from gy, what has arrived at y":
                lambda gy, a, b, c: (b / c, a / c, -a * b / c**2),
            "the factor of a has b in it, and that of b has a: the other number, not itself":
                lambda gy, a, b, c: (gy * a / c, gy * b / c, -gy * a * b / c**2),
        },
        forward=lambda a, b, c: a * b / c,
        wanted=("a", "b", "c"),
    ),
    Exercise(
        "01_2_order",
        "order",
        solution=order,
        inputs=deep_graph,
        results=("nodes",),
        wrong={
            "a node that several others are made of must come once":
                partial(depth_first, once=False),
            "a topological order, but with the inputs from last to first":
                partial(depth_first, forward=False),
            "write a node down after its inputs: the reverse of the order of first meeting fails "
            "where two paths differ in length": partial(depth_first, first_met=True),
            "pre-order reversed is no topological order: write a node down after its inputs":
                partial(depth_first, first_met=True, forward=False),
            "pre-order reversed is no topological order, each node on the stack once or not":
                partial(depth_first, first_met=True, forward=False, early=True),
            "that is pre-order: a node is written down after its inputs, not when it is met":
                partial(depth_first, first_met=True, turn=False),
            "that is pre-order, from last to first: a node is written down after its inputs":
                partial(depth_first, first_met=True, turn=False, forward=False),
            "a node is seen when it is taken from the stack, not yet when it is put there":
                partial(depth_first, early=True),
            "breadth first, reversed, fails where two paths differ in length": breadth_first,
            "inputs come before what is made of them; the walk reverses it later":
                lambda graph, y: order(graph, y)[::-1],
        },
    ),
    Exercise(
        "01_3_walk",
        "walk",
        solution=walk,
        inputs=tape,
        results=("gx",),
        wrong={
            "a number that is used twice adds up what it receives: += and not =":
                partial(walk_with, adds=False),
            "go from the last operation to the first": partial(walk_with, backward=False),
            "mul: each factor receives g times the other one": partial(walk_with, own=True),
            "tanh: 1 - y^2 with y its result, not its input": partial(walk_with, of_input=True),
        },
        forward=lambda tape, x: run(tape, x)[-1],
        wanted=("x",),
    ),
    Exercise(
        "01_4_neuron",
        "neuron_backward",
        solution=neuron_backward,
        inputs=points,
        results=("gx", "gw", "gb"),
        wrong={
            "u = -t z: the minus is missing": partial(neuron_with, sign=1.0),
            "u = -t z: the factor t is missing": partial(neuron_with, use_t=False),
            "gz = gu du/dz, and u = -t z: the factor -t is missing":
                partial(neuron_with, sign=1.0, use_t=False),
            "d ln(1 + e^u)/du = e^u / (1 + e^u) = 1 / (1 + e^-u)":
                partial(neuron_with, turned=-1.0),
            "start from gy, what has arrived at y": partial(neuron_with, use_gy=False),
            "w and b are used by all points: their gradients add up, no mean":
                partial(neuron_with, add=np.mean),
        },
        forward=lambda x, w, b, t: np.log1p(np.exp(-t * (x @ w + b))),
        wanted=("x", "w", "b"),
    ),
]  # fmt: skip
