"""Fixtures every test can use, and single-threaded linear algebra: the arrays here are tiny."""

import gc

import numpy as np
import pytest

from ldm_numpy.backend import blas_threads

from . import device, strict_backend


def pytest_addoption(parser):
    parser.addoption("--backend", choices=("numpy", "strict", "gpu"), default="numpy")


def pytest_configure(config):
    """Before any test module is imported: from then on they call the library across the border."""
    config.addinivalue_line("markers", "host: of the CPU alone, not run on a device")
    if config.getoption("--backend") == "strict":
        session = strict_backend.installed()
        session.__enter__()
        config.add_cleanup(lambda: session.__exit__(None, None, None))
        device.Border(strict_backend.cupy).close()


def pytest_collection_modifyitems(config, items):
    if config.getoption("--backend") != "numpy":
        for item in items:
            if item.get_closest_marker("host"):
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
