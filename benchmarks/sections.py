"""The sections of the benchmark: each measures one thing and returns what JSON can hold."""

import tempfile
import time

import numpy as np

from ldm_numpy.backend import cpu_count

from . import counting, launches
from . import workloads as w
from .turns import FIRST_STEP, Turns, import_time, peak_memory, ratios, run_python, spread
from .worker import SIDES

CUBE = [(2048, 2048, 2048)]


def timed(turns: Turns, names: list[str]) -> dict:
    """Ratios of the workloads, after their parity."""
    result = {}
    for name in names:
        times, errors = turns.measure({name: w.TIMED[name]})
        result[name] = ratios(times[name]) | {"parity": errors[name]}
        turns.log(f"{name}: {result[name]['ratio']['median']:.2f}")
    return result


def limit(turns: Turns) -> dict:
    """The U-Net step against matrix products alone, and all processors against one; and PyTorch's.

    `share`: operations counted / time / what sgemm reaches, all processors at work, for the step's
    own matrix shapes (one shard's) and for a large cube. `gain share`: the gain of all processors
    over one, as a share of sgemm's.
    """
    step, threads = w.STEPS["unet"], cpu_count()
    counts = counting.of_spec(step, w.shard_size(step))
    operations = counts.step / w.shard_size(step) * step["batch"]
    shapes = {"shapes": counts.products, "cube": CUBE}
    jobs = {f"step {t}": step | {"threads": t} for t in (1, threads)}
    products = {
        f"{name} {t}": {"kind": "sgemm", "shapes": list, "threads": t}
        for name, list in shapes.items()
        for t in (1, threads)
    }
    ours, _ = turns.measure(jobs | products, ["ours"], check=False)
    torch, _ = turns.measure(jobs, ["torch-last"], check=False, turns=3)
    seconds = {name: np.array(times["ours"]) for name, times in ours.items()}
    flops = {name: sum(2 * m * k * n for m, k, n in list) for name, list in shapes.items()}
    rates = {
        f"{name} {t}": t * flops[name] / seconds[f"{name} {t}"]
        for name in shapes
        for t in (1, threads)
    }
    rate = operations / seconds[f"step {threads}"]
    gain = seconds["step 1"] / seconds[f"step {threads}"]
    gemm_gain = rates[f"shapes {threads}"] / rates["shapes 1"]
    torch_times = {name: np.array(times["torch-last"]) for name, times in torch.items()}
    return {
        "operations": operations,
        "threads": threads,
        "sgemm": {name: spread(list(r / 1e9)) for name, r in rates.items()},
        "step": spread(list(rate / 1e9)),
        "share": spread(list(rate / rates[f"shapes {threads}"])),
        "share of the cube": spread(list(rate / rates[f"cube {threads}"])),
        "gain": spread(list(gain)),
        "sgemm gain": spread(list(gemm_gain)),
        "gain share": spread(list(gain / gemm_gain)),
        "torch gain": spread(list(torch_times["step 1"] / torch_times[f"step {threads}"])),
    }


def slope(points: dict[str, float]) -> dict:
    """Least squares of ln time on ln value: slope, and the largest factor a point is off by."""
    x, y = np.log([float(v) for v in points]), np.log(list(points.values()))
    slope, intercept = np.polyfit(x, y, 1)
    off = np.exp(np.abs(y - slope * x - intercept).max())
    return {"slope": float(slope), "off": float(off)}


def scaling(turns: Turns, quick: bool) -> dict:
    """Times and slopes of each sweep, beside the slope of the operations counted, a thread."""
    result = {}
    for sweep, specs in w.scaling(quick).items():
        if len(specs) < 2:
            continue
        points: dict[str, dict] = {side: {} for side in SIDES}
        for value, spec in specs.items():
            # Short: what is fitted averages over the points.
            times, _ = turns.measure(
                {"point": spec}, check=False, turns=min(3, turns.turns), seconds=turns.seconds / 4
            )
            for side, values in times["point"].items():
                points[side][str(value)] = float(np.median(values))
        counts = {
            str(value): counting.of_spec(spec).step * spec["batch"] / spec.get("threads", 1)
            for value, spec in specs.items()
        }
        result[sweep] = {
            "seconds": points,
            "fits": {side: slope(p) for side, p in points.items()},
            "counted": slope(counts)["slope"],
        }
        turns.log(f"scaling, {sweep}: slope {result[sweep]['fits']['ours']['slope']:.2f}")
    return result


def overhead(turns: Turns) -> dict:
    """Microseconds an operation: forward, and forward with backward."""
    jobs = {name: {"kind": "overhead", "backward": name == "both"} for name in ("forward", "both")}
    times, _ = turns.measure(jobs, check=False, turns=min(5, turns.turns))
    return {side: {name: 1e6 * min(times[name][side]) / w.CHAIN for name in jobs} for side in SIDES}


def start(turns: Turns, repeats: int) -> dict:
    """Import, and from the command to the end of the first training step (the classifier's, with
    which every training begins: 60,000 images are read first)."""
    first = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            assert run_python("-c", FIRST_STEP, folder).strip().endswith("perceptual")
            first.append(time.perf_counter() - began)
    return {
        "import ldm_numpy": import_time("ldm_numpy", 2 * repeats),
        "import torch": import_time("torch", repeats),
        "first step": spread(first),
    }


SECTIONS = {
    "limit": lambda turns, quick: limit(turns),
    "memory": lambda turns, quick: peak_memory(w.STEPS["unet"]),
    "start": lambda turns, quick: start(turns, 2 if quick else 5),
    "overhead": lambda turns, quick: overhead(turns),
    "scaling": scaling,
    "gpu": lambda turns, quick: launches.count(),
}
GROUPS = {"steps": list(w.STEPS), "sampling": list(w.SAMPLING), "ops": list(w.OPS)}
NAMES = [*GROUPS, *w.TIMED, *SECTIONS]


def chosen(only: list[str] | None) -> list[str]:
    """Workloads and sections by name or group, in order; ValueError for an unknown name."""
    asked = only or [*GROUPS, *SECTIONS]
    unknown = [name for name in asked if name not in NAMES]
    if unknown:
        raise ValueError(f"unknown name {unknown[0]!r}: use some of {', '.join(NAMES)}")
    wanted = {part for name in asked for part in GROUPS.get(name, [name])}
    return [name for name in (*w.TIMED, *SECTIONS) if name in wanted]
