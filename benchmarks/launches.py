"""Kernel launches and bytes of a U-Net training step on a GPU, counted without a GPU.

    python -m benchmarks.launches          # prints the numbers; --write puts them into README.md

The library runs as it would with CuPy, on a stand-in for CuPy: arrays that compute with NumPy and
count. Whatever makes or writes an array is one launch; a view is none. Bytes are those of the
arrays that a launch reads and writes. Both are what the source asks for: CuPy's reductions and
strided copies may take more than one kernel, caches save some of the bytes.
"""

import argparse
import sys
import types
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ldm_numpy import backend
from ldm_numpy.training import UNET

LAUNCH = 5e-6  # seconds, the usual order: Python and driver, while the GPU waits
GPUS = {"a desktop card": (0.45e12, 20e12), "a data centre's": (3.3e12, 60e12)}  # bytes/s, flop/s
BATCH = UNET.batch_size
README = Path(__file__).with_name("README.md")
MARKS = "<!-- launches -->", "<!-- /launches -->"

launched, moved = Counter(), Counter()


def record(name: str, *arrays) -> None:
    launched[name] += 1
    moved[name] += sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))


def host(x):
    """`x` with every Array in it replaced by the NumPy array inside."""
    if isinstance(x, Array):
        return x.host
    return type(x)(host(i) for i in x) if isinstance(x, tuple | list) else x


def device(x):
    return Array(np.asarray(x)) if isinstance(x, np.ndarray | np.generic) else x


class Array(NDArrayOperatorsMixin):
    """A NumPy array that counts what is done to it."""

    __array_priority__ = 100

    def __init__(self, array: np.ndarray):
        self.host = array

    def __len__(self) -> int:
        return len(self.host)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        arrays = host(inputs)
        if out is not None:
            options["out"] = host(out)
        y = getattr(ufunc, method)(*arrays, **options)
        record(ufunc.__name__, *arrays, y if y is not None else arrays[0])
        return device(y) if out is None else out[0]

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        return counted(name, value, self.host) if callable(value) else device(value)

    def __getitem__(self, index):
        return counted("getitem", self.host.__getitem__, self.host)(index)

    def __setitem__(self, index, value):
        self.host[host(index)] = host(value)
        record("setitem", self.host[host(index)], host(value))


def counted(name: str, function, *owner):
    """`function` on host arrays, for Arrays: a launch unless its result is a view."""

    def call(*inputs, **options):
        arrays = [host(i) for i in inputs]
        y = function(*arrays, **{key: host(value) for key, value in options.items()})
        sources = [*owner, *(a for i in arrays for a in (i if isinstance(i, list) else [i]))]
        sources = [a for a in sources if isinstance(a, np.ndarray)]
        if not isinstance(y, np.ndarray | np.generic | None):
            return y
        fresh = y is not None and not any(np.may_share_memory(y, a) for a in sources)
        if (fresh and name not in ("empty", "empty_like")) or y is None:
            record(name, *sources, y)
        return device(y)

    return call


class Module(types.ModuleType):
    """NumPy's functions under the name of CuPy."""

    def __init__(self, wrapped=np):
        super().__init__("cupy")
        self.wrapped = wrapped

    def __getattr__(self, name):
        value = getattr(self.wrapped, name)
        if isinstance(value, types.ModuleType):
            return Module(value)
        if isinstance(value, np.ufunc):  # its own `reduce`, `at`; Arrays dispatch to themselves
            return value
        return counted(name, value) if callable(value) and not isinstance(value, type) else value

    def asnumpy(self, array):
        return host(array)

    def asarray(self, array, dtype=None):
        source = np.asarray(host(array))
        y = source if dtype is None else source.astype(dtype, copy=False)
        if isinstance(array, Array) and y is not source:
            record("asarray", source, y)
        return array if isinstance(array, Array) and y is source else Array(y)


def count(batch: int = BATCH) -> dict:
    """Launches, bytes and operations of one training step, as it is trained; and the launches of
    the update with AdamW in Muon's place."""
    found = count_with(UNET.optimizer, batch)
    return found | {"with AdamW": count_with("adamw", batch)["of the update"]}


def count_with(optimizer: str, batch: int) -> dict:
    """The counts of the second step with an optimizer."""
    from . import counting, ours
    from . import workloads as w

    spec = {"kind": "unet", "batch": batch, "optimizer": optimizer}
    cupy = Module()  # one, as there is one CuPy: what is kept for it is found again
    erf = types.ModuleType("cupyx.scipy.special")
    erf.erf = lambda x: counted("erf", backend._host_erf)(x)
    with (
        mock.patch.object(backend, "_cupy", lambda: cupy),
        mock.patch.dict(sys.modules, {"cupyx.scipy.special": erf}),
        mock.patch.object(w, "shard_size", lambda spec: None),  # a GPU takes the batch whole
    ):
        job = ours.Step(spec | {"threads": 1})
        job.network.to("gpu")
        job.inputs = {name: Array(a) for name, a in job.inputs.items()}
        job.start()
        job.run()
        launched.clear()
        moved.clear()
        job.gradients()
        inside = launched.total()
        job.update()
    products = {"matmul", "dot"}
    return {
        "batch": batch,
        "launches": launched.total(),
        "of the update": launched.total() - inside,
        "matrix products": sum(launched[name] for name in products),
        "bytes": moved.total(),
        "operations": counting.of_spec(spec).step * batch,
        "most": dict(launched.most_common(8)),
    }


def table(numbers: dict) -> str:
    """The counts and what they would bound, as Markdown. An estimate: nothing of it is measured."""
    launch_ms = 1e3 * LAUNCH * numbers["launches"]
    lines = [
        f"A step of {numbers['batch']} images asks for {numbers['launches']:,} launches "
        f"({numbers['matrix products']:,} of them matrix products; {numbers['of the update']:,} "
        f"for clipping, Muon and EMA, where AdamW would ask for {numbers['with AdamW']}), moves "
        f"{numbers['bytes'] / 1e9:.2f} GB and computes "
        f"{numbers['operations'] / 1e9:.0f} Gflop in products.",
        "",
        "| estimate for | launches | bytes | arithmetic | bound by |",
        "|---|---|---|---|---|",
    ]
    for name, (bandwidth, rate) in GPUS.items():
        costs = {
            "launches": launch_ms,
            "bytes": 1e3 * numbers["bytes"] / bandwidth,
            "arithmetic": 1e3 * numbers["operations"] / rate,
        }
        cells = " | ".join(f"{ms:.1f} ms" for ms in costs.values())
        speeds = f"{bandwidth / 1e12:.2g} TB/s, {rate / 1e12:.0f} Tflop/s"
        lines.append(f"| {name} ({speeds}) | {cells} | {max(costs, key=costs.get)} |")
    most = ", ".join(f"{name} {n}" for name, n in numbers["most"].items())
    return "\n".join([*lines, "", f"Most frequent: {most}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the numbers into README.md")
    options = parser.parse_args()
    text = table(count())
    if options.write:
        before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        README.write_text(f"{before}{MARKS[0]}\n{text}{MARKS[1]}{after}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
