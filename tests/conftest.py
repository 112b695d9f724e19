"""Fixtures every test can use, and single-threaded linear algebra: the arrays here are tiny."""

import gc

import numpy as np
import pytest

from ldm_numpy.backend import blas_threads


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
