"""Where arrays live: NumPy on the CPU, CuPy on a GPU. The only file that imports CuPy.

Everywhere else `xp = array_module(x)` asks an array which module it belongs to, and the same code
then runs on both. Random numbers are always drawn on the host (`generator`), so that both devices
see the same noise.
"""

import ctypes
import hashlib
import os
import sys
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from scipy.special import erf as _host_erf
from threadpoolctl import threadpool_limits

GPU_HINT = "install it with `pip install -r requirements-gpu.txt`"


@lru_cache(maxsize=1)
def _cupy():
    """The CuPy module, or None where it is not installed or its libraries do not load."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy


def array_module(x):
    """The module whose functions accept `x`: numpy for host arrays and scalars, else cupy."""
    if isinstance(x, np.ndarray | np.generic | int | float):
        return np
    if _cupy() is None:
        raise TypeError(f"an array is needed, not {type(x).__name__}")
    return _cupy()


def cupy_is_installed() -> bool:
    """Whether CuPy can be imported; a GPU may still be missing."""
    return _cupy() is not None


def gpu_problem() -> str | None:
    """Why the GPU cannot be used, in one clause; None when it can.

    Counting devices is not enough: without CUDA's compiler or cuBLAS the first kernel fails. So
    one kernel and one matrix product are tried, and whatever they raise is the reason.
    """
    cupy = _cupy()
    if cupy is None:
        return f"CuPy is not installed; {GPU_HINT}"
    try:
        ones = cupy.ones((2, 2), "float32")
        float((ones @ ones + 1).sum())
    except Exception as error:
        reason = str(error).splitlines() or [type(error).__name__]
        return f"CuPy finds no usable GPU ({reason[0]})"
    return None


def choose_device(name: str = "auto") -> str:
    """Resolve "auto" | "cpu" | "gpu" to "cpu" or "gpu"; auto takes the GPU when CuPy sees one.

    Raises ValueError for another name, or for "gpu" where there is none.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"unknown device {name!r}: use 'auto', 'cpu' or 'gpu'")
    if name == "cpu":
        return "cpu"
    problem = gpu_problem()
    if problem is None:
        return "gpu"
    if name == "gpu":
        raise ValueError(f"device 'gpu' was asked for, but {problem}; use --device cpu")
    return "cpu"


def to_device(array, device: str):
    """`array` (on the host or already there) as an array of `device`; no copy where none is due."""
    return to_host(array) if device == "cpu" else _cupy().asarray(array)


def to_host(array) -> np.ndarray:
    """`array` as a NumPy array; a GPU array is copied (and waited for)."""
    if array_module(array) is np:
        return np.asarray(array)
    return _cupy().asnumpy(array)


def erf(x):
    """Error function 2/sqrt(pi) * integral_0^x exp(-t^2) dt, elementwise."""
    if array_module(x) is np:
        return _host_erf(x)
    from cupyx.scipy.special import erf as device_erf

    return device_erf(x)


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A random generator for one purpose: the same seed and purpose always give the same numbers.

    `purpose` is any path such as ("unet", step, "noise"). The path is hashed into the key of a
    counter-based generator (Philox; Salmon et al. 2011, "Parallel random numbers: as easy as
    1, 2, 3"), so no state has to be carried from step to step: a resumed run draws what the
    undisturbed one would have drawn.
    """
    path = [part if isinstance(part, str) else int(part) for part in (seed, *purpose)]
    digest = hashlib.sha256(repr(path).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def tune_cpu() -> None:
    """Let glibc keep freed memory instead of returning it to the system after each large array.

    Every large temporary is otherwise mapped afresh, and its page faults cost more than the
    arithmetic. Call it once, before the work; elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_* constants of glibc's malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)


def cpu_count() -> int:
    """Number of processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def blas_threads(count: int):
    """Limit the matrix-multiplication library to `count` threads inside the block."""
    with threadpool_limits(limits=count, user_api="blas"):
        yield
