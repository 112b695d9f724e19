"""float32 throughout: one float64 number upcasts all that it meets, which is then twice as slow."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from ldm_numpy import images
from ldm_numpy.diffusion.samplers import SAMPLERS
from ldm_numpy.function import Function
from ldm_numpy.parallel import Shards
from ldm_numpy.tensor import Tensor
from ldm_numpy.training.loop import prepare

from . import tiny
from .test_gradients import subclasses
from .tiny import KINDS


def is_double(x) -> bool:
    """Whether `x` is, or holds, a float64 array or NumPy number. (A Python number adapts.)"""
    if isinstance(x, Tensor):
        return is_double(x.data)
    if isinstance(x, list | tuple | dict):
        return any(is_double(item) for item in (x.values() if isinstance(x, dict) else x))
    return getattr(x, "dtype", None) == np.float64


class Watch:
    """Notes every operation that runs, and what of it is float64."""

    def __init__(self, monkeypatch):
        self.seen, self.doubles = set(), set()
        for cls in set(subclasses(Function)):
            for name in ("forward", "backward"):
                if name in vars(cls):
                    monkeypatch.setattr(cls, name, self.watched(cls, name))

    def watched(self, cls, name: str):
        method = getattr(cls, name)

        def run(op, *arrays, **options):
            y = method(op, *arrays, **options)
            self.seen.add(f"{cls.__name__}.{name}")
            for what, x in {"input": arrays, "output": y, **options, **vars(op)}.items():
                if is_double(x):
                    self.doubles.add(f"{cls.__name__}.{name}: {what}")
            return y

        return run


@pytest.fixture
def watch(monkeypatch) -> Watch:
    return Watch(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step(kind, watch):
    """The real loss of each stage, its gradients, and the update: all arrays of all operations."""
    stage, shards = tiny.stage(kind), Shards(8, 1)
    optimizer, ema = prepare(stage, shards)
    values = stage.gradients(0, shards, optimizer.parameters)
    norm = optimizer.clip_gradient(0.1)
    optimizer.step(1e-3)
    stage.after_step()
    ema.update()
    assert len(watch.seen) > 12 and not watch.doubles
    buffers = [optimizer.weights, optimizer.gradient, optimizer.m, optimizer.v, ema.average]
    assert not is_double([*values, norm, *buffers])
    assert not is_double([p.grad for p in optimizer.parameters])


class Recorded(np.ndarray):
    """An array that notes in which type elementwise operations compute with it."""

    types: set

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [x.view(np.ndarray) if isinstance(x, Recorded) else x for x in inputs]
        self.types.add(np.result_type(*plain))
        if out is not None:
            getattr(ufunc, method)(*plain, out=tuple(x.view(np.ndarray) for x in out), **options)
            return out[0]
        return np.asarray(getattr(ufunc, method)(*plain, **options)).view(Recorded)


@pytest.mark.host  # it watches NumPy
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_update_computes_in_float32(kind, monkeypatch):
    """Its results are stored in float32 whatever they were computed in: look at the computing."""
    stage = tiny.stage("classifier")
    stage.config = dataclasses.replace(stage.config, optimizer=kind)
    optimizer, ema = prepare(stage, Shards(8, 1))
    monkeypatch.setattr(Recorded, "types", set(), raising=False)
    for name in ("weights", "gradient", "m", "v"):
        setattr(optimizer, name, getattr(optimizer, name).view(Recorded))
    ema.average = ema.average.view(Recorded)
    optimizer.gradient.fill(1)
    optimizer.clip_gradient(0.1)
    optimizer.step(1e-3)
    ema.update()
    assert Recorded.types == {np.dtype(np.float32)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_and_decoding(sampler, watch, monkeypatch):
    quick = partial(SAMPLERS["probability_flow"], rtol=0.1, atol=0.1)  # random weights: no curves
    monkeypatch.setitem(SAMPLERS, "probability_flow", quick)
    pipe, steps = tiny.text_to_image(), []
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "sampler": sampler}
    latents = pipe.sample(
        ["a thin 3", "seven"], callback=lambda *step: steps.append(step), **options
    )
    pixels = pipe.decode(latents)
    assert len(watch.seen) > 10 and not watch.doubles
    assert len(steps) == 3 and not is_double([x for _, _, x in steps])
    assert latents.dtype == pixels.dtype == np.float32


def test_encoding(watch):
    pipe = tiny.text_to_image()
    pixels = images.pad_to(tiny.digits("test").pixels(slice(0, 4)), 32)
    mean, logvar = pipe.autoencoder.encode(pixels)
    assert len(watch.seen) > 5 and not watch.doubles
    assert mean.dtype == logvar.dtype == np.float32


def test_the_watch_sees_a_double(watch):
    """In an input, in what is saved, in a gradient; or the tests above would test nothing."""
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    (x * 2.0).sum().backward()
    assert watch.seen and not watch.doubles  # Python's numbers are no float64
    (x * np.float64(2)).sum().backward()
    assert {"Mul.forward: output", "Mul.forward: saved", "Mul.backward: output"} <= watch.doubles
