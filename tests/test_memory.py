"""Memory: a step's graph is freed by reference counting alone, and training does not pile it up."""

import gc
import time
import tracemalloc
import weakref

import numpy as np
import pytest

from ldm_numpy.function import Function
from ldm_numpy.parallel import Shards
from ldm_numpy.tensor import Tensor
from ldm_numpy.training import loop
from ldm_numpy.training.loop import run

from . import tiny
from .tiny import KINDS


def alive() -> int:
    """Tensors and operations in existence, garbage included that only a collector would find."""
    # Not isinstance: PyTorch, where installed, has objects that mind being asked their class.
    return sum(issubclass(type(x), Tensor | Function) for x in gc.get_objects())


@pytest.mark.host
@pytest.mark.parametrize("saves", [False, True])
def test_an_array_that_nobody_saved_is_freed_while_the_graph_lives(saves, no_collector):
    """A product keeps its factors; a sum needs nothing, and the graph holds no arrays by itself."""
    x = Tensor(np.full(5, 3.0), requires_grad=True)
    h = x + 1
    array = weakref.ref(h.data)
    y = (h * h if saves else h + 1).sum()
    del h
    assert (array() is not None) == saves
    op = y.op
    y.backward()
    assert array() is None and op.saved == () and op.inputs is None  # a node kept keeps nothing
    np.testing.assert_array_equal(x.grad, 8.0 if saves else 1.0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_step_is_freed_without_the_collector(kind, threads, no_collector):
    stage = tiny.stage(kind)
    shards = Shards(8, threads)
    parameters = [p for network in stage.networks.values() for p in network.parameters()]
    before = alive()
    stage.gradients(0, shards, parameters)
    deadline = time.monotonic() + 5  # a thread lets go of its last shard a moment later
    while alive() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() == before


@pytest.mark.parametrize("walk", [True, False])
def test_the_graph_of_the_unet_is_freed(walk, no_collector):
    """Walked or not: a loss that was only looked at frees its graph too."""
    stage = tiny.stage("unet-joint")
    losses = []

    class Kept(Shards):
        def backward(self, loss, n, parameters):
            losses.append(loss(slice(0, n))[0])
            return [losses[0].data]

    before = alive()
    stage.gradients(0, Kept(), [])
    assert alive() > before + 200  # the graph: without this, the test would test nothing
    if walk:
        losses[0].backward()
        assert alive() < before + 10  # freed by the walk already, but for the loss
    losses.clear()
    assert alive() == before


def test_sampling_leaves_nothing(no_collector):
    pipe = tiny.text_to_image()
    before = alive()
    pipe(["a thin 3", "seven"], num_inference_steps=3)
    assert alive() == before


@pytest.mark.host
def test_memory_does_not_grow_over_50_steps(tmp_path, monkeypatch, no_collector):
    """Through the loop itself, with its log and checkpoints; the collector is off."""
    monkeypatch.setattr(loop.Log, "plot", lambda self: None)
    stage = tiny.stage("unet-joint", steps=60, batch_size=8, checkpoint_every=25, sample_every=60)
    monkeypatch.setattr(stage, "draw", lambda path, shards: None)
    held, highest = [], []

    def measure():
        current, peak = tracemalloc.get_traced_memory()
        held.append(current)
        highest.append(peak - current)
        tracemalloc.reset_peak()

    monkeypatch.setattr(stage, "after_step", measure)
    tracemalloc.start()
    try:
        run(stage, tmp_path, 0, threads=1)
    finally:
        tracemalloc.stop()
    assert len(held) == 60
    a_step = max(highest[10:])
    assert a_step > 1_000_000  # bytes that come and go in a step
    assert held[59] - held[9] < 60_000  # rows of the log, names of tokens
    assert max(highest[50:]) < 1.2 * max(highest[5:15])
