"""Device choice, random numbers, and settings of the CPU."""

import sys
import types

import numpy as np
import pytest
import scipy.special
from threadpoolctl import threadpool_info

from ldm_numpy import backend


def fake_cupy(problem=None):
    """As much of CuPy as device choice uses: it works, or its first kernel raises `problem`."""

    def ones(shape, dtype):
        if problem is not None:
            raise problem
        return np.ones(shape, dtype)

    return types.SimpleNamespace(ones=ones)


@pytest.fixture
def cupy_is(monkeypatch):
    return lambda module: monkeypatch.setattr(backend, "_cupy", lambda: module)


@pytest.mark.host
@pytest.mark.parametrize("module", [fake_cupy(), None])
def test_cupy_is_asked_for_once(module, monkeypatch):
    """And is the module, or None where it cannot be imported."""
    backend._cupy.cache_clear()
    try:
        monkeypatch.setitem(sys.modules, "cupy", module)
        assert backend._cupy() is module
        monkeypatch.delitem(sys.modules, "cupy")
        assert backend._cupy() is module
    finally:
        backend._cupy.cache_clear()


PROBLEMS = {
    "not installed": (None, r"CuPy is not installed; install it with `pip install -r requirements"),
    "no driver": (
        fake_cupy(RuntimeError("no driver\nsecond line")),
        r"no usable GPU \(no driver\)",
    ),
    "no GPU": (fake_cupy(OSError()), r"no usable GPU \(OSError\)"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_without_a_gpu(cupy_is, problem):
    module, reason = PROBLEMS[problem]
    cupy_is(module)
    assert backend.cupy_is_installed() == (module is not None)
    assert backend.choose_device() == "cpu"
    assert backend.choose_device("auto") == "cpu"
    assert backend.choose_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=f"'gpu' was asked for, but .*{reason}.*--device cpu"):
        backend.choose_device("gpu")


def test_with_a_gpu(cupy_is):
    cupy_is(fake_cupy())
    assert backend.gpu_problem() is None
    assert backend.choose_device() == "gpu"
    assert backend.choose_device("gpu") == "gpu"
    assert backend.choose_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda", "GPU", "", None])
def test_unknown_device(name):
    with pytest.raises(ValueError, match=r"unknown device .*'auto', 'cpu' or 'gpu'"):
        backend.choose_device(name)


def test_array_module(cupy_is):
    for x in (np.ones(2), np.float32(1), np.int64(1), 1, 1.5):
        assert backend.array_module(x) is np
    stand_in = object()
    cupy_is(stand_in)
    assert backend.array_module(object()) is stand_in


def test_copies_between_host_and_device(cupy_is):
    x = np.arange(3.0)
    assert backend.to_host(x) is x
    assert backend.to_device(x, "cpu") is x
    assert isinstance(backend.to_host(2.5), np.ndarray)

    class OnDevice:
        def __init__(self, array):
            self.array = array

    cupy_is(types.SimpleNamespace(asarray=OnDevice, asnumpy=lambda y: y.array))
    y = backend.to_device(x, "gpu")
    assert isinstance(y, OnDevice)
    assert backend.to_host(y) is x
    assert backend.to_device(y, "cpu") is x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf(dtype):
    x = np.linspace(-3, 3, 13, dtype=dtype)
    assert backend.erf(x).dtype == dtype
    np.testing.assert_allclose(backend.erf(x), scipy.special.erf(x.astype(np.float64)), rtol=1e-6)


def test_generator_repeats():
    a = backend.generator(3, "unet", 17, "noise").standard_normal(8)
    b = backend.generator(3, "unet", 17, "noise").standard_normal(8)
    assert np.array_equal(a, b)


def test_generator_numbers_are_pinned():
    """A change of the stream would silently change every training run."""
    drawn = backend.generator(0, "test").integers(0, 2**32, 3)
    assert drawn.tolist() == [972180311, 1709214885, 3575268369]


def test_generator_is_independent_of_its_neighbours():
    streams = [
        backend.generator(*key).standard_normal(4000)
        for key in [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (1, "a", 1), (11,)]
    ]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 0.08  # 5 standard deviations of independent streams
    assert len({stream[0] for stream in streams}) == len(streams)


def test_generator_does_not_depend_on_what_was_drawn_before():
    expected = backend.generator(0, "b").random()
    np.random.default_rng(5).random(10)
    backend.generator(0, "a").random(100)
    assert backend.generator(0, "b").random() == expected


def test_tune_cpu_is_harmless(rng, monkeypatch):
    backend.tune_cpu()
    backend.tune_cpu()
    x = rng.standard_normal((300, 300))
    assert np.isfinite(x @ x).all()
    monkeypatch.setattr(backend.sys, "platform", "darwin")
    backend.tune_cpu()


def test_tune_cpu_keeps_freed_memory_in_one_arena(monkeypatch):
    """As malloc.h numbers them: no maps of their own (M_MMAP_MAX, -4), nothing is given back
    (M_TRIM_THRESHOLD, -1), and threads share one arena (M_ARENA_MAX, -8)."""
    asked = []
    glibc = types.SimpleNamespace(mallopt=lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda _: glibc)
    monkeypatch.setattr(backend.sys, "platform", "linux")
    backend.tune_cpu()
    assert sorted(asked) == [(-8, 1), (-4, 0), (-1, 2**31 - 1)]


def test_tune_cpu_without_glibc(monkeypatch):
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda _: object())
    monkeypatch.setattr(backend.sys, "platform", "linux")
    backend.tune_cpu()


def test_cpu_count(monkeypatch):
    assert backend.cpu_count() >= 1
    allowed = {0: {2, 3, 5}, 1: {2}}  # process 0 is the one that asks
    monkeypatch.setattr(backend.os, "sched_getaffinity", allowed.get, raising=False)
    assert backend.cpu_count() == 3
    monkeypatch.delattr(backend.os, "sched_getaffinity")
    monkeypatch.setattr(backend.os, "cpu_count", lambda: None)
    assert backend.cpu_count() == 1
    monkeypatch.setattr(backend.os, "cpu_count", lambda: 7)
    assert backend.cpu_count() == 7


def test_blas_threads_limits_and_restores():
    def counts():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with backend.blas_threads(2):
        before = counts()
        with backend.blas_threads(1):
            assert set(counts()) <= {1}
        assert counts() == before
