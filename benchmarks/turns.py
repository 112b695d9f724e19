"""Worker processes, alive together and running in turns; what is measured in fresh processes."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ldm_numpy.backend import cpu_count

from .worker import SIDES

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-4


class Mismatch(ValueError):
    """The two sides do not compute the same."""


class Process:
    """A worker process of one side."""

    def __init__(self, side: str):
        self.side = side
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", side],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(cpu_count())},
        )  # fmt: skip

    def __call__(self, *request):
        """Ask, wait, and return the answer; ValueError where the worker failed."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"the {self.side} worker ended while asked to {request[0]}")
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(f"{self.side}, {request[0]} {request[1]}: {reply['error']}")
        return reply["result"]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.__exit__(*exception)  # closes its input, which ends it, and waits


def compare(ours: dict, theirs: dict, name: str) -> float:
    """The largest distance of two results, relative to the norm; Mismatch beyond TOLERANCE.

    All gradients together are one vector, and so are the weights after two steps: single ones may
    be zero but for rounding (a key's bias under softmax), and have no size to be compared with.
    """
    if ours.keys() != theirs.keys():
        raise Mismatch(f"{name}: the sides differ in {sorted(ours.keys() ^ theirs.keys())}")
    groups: dict[str, list] = {}
    for key in ours:
        if ours[key].shape != theirs[key].shape:
            raise Mismatch(f"{name}: {key} is {ours[key].shape}, PyTorch's {theirs[key].shape}")
        groups.setdefault(key.split("/")[0], []).append((ours[key].ravel(), theirs[key].ravel()))
    worst = 0.0
    for group, pairs in groups.items():
        a, b = (np.concatenate(arrays).astype(np.float64) for arrays in zip(*pairs))
        error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
        if not error <= TOLERANCE:
            raise Mismatch(f"{name}: {group} differs from PyTorch's by {error:.2g} of its norm")
        worst = max(worst, error)
    return worst


def spread(values) -> dict:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(times: dict[str, list[float]]) -> dict:
    """Summary of {side: seconds a turn}. The ratio is taken turn by turn, against the setting of
    PyTorch whose median is the lower."""
    result = {side: spread(values) for side, values in times.items()}
    settings = [side for side in times if side != "ours"]
    if settings:
        best = min(settings, key=lambda side: result[side]["median"])
        result["better"] = best
        result["ratio"] = spread([a / b for a, b in zip(times["ours"], times[best])])
    return result


class Turns:
    """The three workers, and how often and how long each has its turn."""

    def __init__(self, turns: int, seconds: float, log=print):
        self.turns, self.seconds, self.log = turns, seconds, log
        self.workers = {side: Process(side) for side in SIDES}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for worker in self.workers.values():
            worker.__exit__(*exception)

    def parity(self, name: str) -> float:
        """What the sides compute for a prepared job, compared."""
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for side, worker in self.workers.items():
                file = str(Path(folder) / f"{side}.npz")
                worker("check", name, file)
                with np.load(file) as arrays:
                    found[side] = dict(arrays)
        others = [side for side in found if side != "ours"]
        return max(compare(found["ours"], found[o], f"{name} ({o})") for o in others)

    def measure(self, jobs: dict[str, dict], sides=SIDES, *, check=True, turns=None, seconds=None):
        """Time jobs {name: specification} on some sides: prepare, compare, warm up, take turns.

        Returns {name: {side: [seconds, one a turn]}} and {name: parity, if checked}.
        """
        workers = {side: self.workers[side] for side in sides}
        errors = {}
        for name, spec in jobs.items():
            for worker in workers.values():
                worker("prepare", name, spec)
            if check:
                errors[name] = self.parity(name)
        times = {name: {side: [] for side in sides} for name in jobs}
        order = list(sides)
        for turn in range(-1, turns or self.turns):  # the first turn warms up
            for name in jobs:
                for side in order:
                    taken = workers[side]("time", name, seconds or self.seconds)
                    if turn >= 0:
                        times[name][side].append(taken)
            order.append(order.pop(0))  # nobody is always the first
        for name in jobs:
            for worker in workers.values():
                worker("drop", name)
        return times, errors


class Neighbours:
    """Inside the block, how busy others kept the machine: `share` of all processors' time.

    Threads that meet at barriers, as PyTorch's do, suffer more from company than those that do not:
    ratios taken on a busy machine flatter us. (Linux; elsewhere the share is not known, NaN.)
    """

    STAT = Path("/proc/stat")

    def __enter__(self):
        self.before = self.counters()
        return self

    def __exit__(self, *exception):
        busy, total, own = (b - a for a, b in zip(self.before, self.counters()))
        self.share = max(0.0, busy - own) / total if self.STAT.exists() else float("nan")

    def counters(self) -> tuple[float, float, float]:
        """Seconds: of all processors busy (taken by other machines, too), of all, of our own."""
        own = sum(os.times()[:4])  # the workers count once they have ended
        if not self.STAT.exists():
            return 0.0, 0.0, own
        ticks = [int(n) for n in self.STAT.read_text().split("\n")[0].split()[1:9]]
        total = sum(ticks) / os.sysconf("SC_CLK_TCK")
        idle = (ticks[3] + ticks[4]) / os.sysconf("SC_CLK_TCK")
        return total - idle, total, own


# Fresh processes ---------------------------------------------------------------------------


def run_python(*arguments: str) -> str:
    """Standard output of a fresh Python."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise ValueError(f"a fresh process failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def peak_memory(spec: dict) -> dict[str, int]:
    """Bytes above the built networks, of three training steps, each side in a fresh process."""
    result = {}
    for side in SIDES:
        with Process(side) as worker:
            result[side] = worker("memory", spec)
    return result


IMPORTED = """
import sys, {first}
print(*[m for m in sys.modules if m.split(".")[0] in ("numpy", "scipy") and "._" not in m])
"""
IMPORT_TIME = """
import importlib, sys, time
for name in sys.argv[2:]:
    importlib.import_module(name)
start = time.perf_counter()
importlib.import_module(sys.argv[1])
print(time.perf_counter() - start)
"""


def import_time(module: str, repeats: int) -> dict:
    """Seconds of `import module`, where those parts of NumPy and SciPy that it needs are there."""
    before = run_python("-c", IMPORTED.format(first=module)).split()
    return spread([float(run_python("-c", IMPORT_TIME, module, *before)) for _ in range(repeats)])


# The real command, ended by the hook that every stage has after a step.
FIRST_STEP = """
import os, sys
from ldm_numpy.__main__ import main
from ldm_numpy.training.loop import Stage
def end(stage):
    print(stage.name, flush=True)
    os._exit(0)
Stage.after_step = end
main(["train", "autoencoder", "--out", sys.argv[1], "--device", "cpu"])
"""
