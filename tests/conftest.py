"""Fixtures every test can use, and single-threaded linear algebra: the arrays here are tiny."""

import gc
import importlib

import numpy as np
import pytest

from ldm_numpy.backend import blas_threads, gpu_problem

from . import device, hypothesis_profile, strict_backend  # noqa: F401  (settings for all)

# Nothing in them is computed on a device, or only by a process of its own.
OF_THE_HOST = {"benchmarks", "faults", "kills", "lessons", "planted", "processes", "readme", "slow"}


def pytest_addoption(parser):
    parser.addoption("--backend", choices=("numpy", "strict", "gpu"), default="numpy")


def pytest_configure(config):
    """Before any test module is imported: from then on they call the library across the border."""
    config.addinivalue_line("markers", "host: of the CPU alone, not run on a device")
    backend = config.getoption("--backend")
    if backend == "strict":
        session = strict_backend.installed()
        session.__enter__()
        config.add_cleanup(lambda: session.__exit__(None, None, None))
        device.Border(strict_backend.cupy).close()
    elif backend == "gpu":
        problem = gpu_problem()
        if problem is not None:
            pytest.exit(f"--backend gpu: {problem}", returncode=2)
        device.Border(importlib.import_module("cupy")).close()


def pytest_collection_modifyitems(config, items):
    if config.getoption("--backend") != "numpy":
        for item in items:
            name = item.path.stem.removeprefix("test_")
            if item.get_closest_marker("host") or name in OF_THE_HOST:
                item.add_marker(pytest.mark.skip(reason="of the CPU alone"))


@pytest.fixture(scope="session", autouse=True)
def _one_blas_thread():
    with blas_threads(1):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """A fresh generator, the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def no_collector():
    """The garbage collector off: only reference counting frees memory inside the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
