"""The results as a Markdown page and as a picture."""

from matplotlib.figure import Figure

from .launches import table as launch_table

LABELS = {
    "unet": "U-Net training step, batch 128",
    "autoencoder": "autoencoder training step, batch 128",
    "clip": "CLIP training step, batch 128",
    "sample-64": "sampling 64 images, 20 steps",
    "sample-1": "one image, 20 steps",
}
SETTINGS = {"torch": "contiguous", "torch-last": "channels last, tuned"}

# What to reach: label, where the value is found, must, aim. Ratios and memory: lower is better.
TARGETS = [
    ("U-Net training step, batch 128", ("timed", "unet"), 1.15, 0.85),
    ("autoencoder training step", ("timed", "autoencoder"), 1.20, 0.90),
    ("CLIP training step", ("timed", "clip"), 1.20, 0.90),
    ("sampling 64 images", ("timed", "sample-64"), 1.15, 0.85),
    ("one image, 20 steps", ("timed", "sample-1"), 1.0, 0.7),
    ("peak memory of the U-Net training step, above import", ("memory",), 0.8, 0.5),
    ("share of the sgemm limit in the U-Net training step", ("limit", "share"), 0.60, 0.80),
    ("all processors against one, as a share of sgemm's gain", ("limit", "gain share"), 0.93, 0.98),
    ("import ldm_numpy, beyond NumPy and SciPy, seconds", ("start", "import ldm_numpy"), 0.3, None),
]  # fmt: skip

# Said where a measured slope is off the counted one: (below it, above it).
REASONS = {
    "batch": (
        "A batch of one shard keeps one processor busy, and what a step costs whatever its batch "
        "(the update, Python) weighs more in small ones.",
        "Large batches leave the caches.",
    ),
    "threads": (
        "More processors have more caches, in which shards find more of their data.",
        "Processors share memory and its bandwidth, and at the end of each part of a step the "
        "first to be done waits for the last.",
    ),
    "image side": (
        "Small images leave Python and the update their share, and a matrix product of few rows is "
        "slower.",
        "Attention's weights, (heads, T, T), grow with the fourth power of the side, and their "
        "softmax is not among the operations counted.",
    ),
    "channels": (
        "Norms, activations and copies grow with the channels, only matrix products with their "
        "square, and those are faster the larger they are.",
        "Wide layers leave the caches.",
    ),
    "tokens": (
        "Few tokens make small matrices, which the library multiplies at less than its full rate.",
        "The matrix of weights, (T, T) a head, outgrows the cache: softmax then waits for memory.",
    ),
}


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def band(entry: dict, form: str = ".2f") -> str:
    return f"{entry['median']:{form}} ({entry['low']:{form}} ... {entry['high']:{form}})"


def target_value(results: dict, path: tuple[str, ...]) -> float | None:
    """The measured value of a target; None where that part was not run."""
    part = results.get(path[0])
    if part is None:
        return None
    if path == ("memory",):
        return part["ours"] / min(part[side] for side in SETTINGS)
    entry = part.get(path[1])
    if entry is None:
        return None
    return entry["ratio"]["median"] if path[0] == "timed" else entry["median"]


def verdict(value: float, must: float, aim: float | None) -> str:
    """Whether a target is met; shares (must below aim) want to be large, all else small."""
    sign = -1 if aim is not None and aim > must else 1
    if aim is not None and sign * value <= sign * aim:
        return "aim reached"
    return "met" if sign * value <= sign * must else "**missed**"


def targets(results: dict) -> list[str]:
    lines = ["| target | must | aim | measured | |", "|---|---|---|---|---|"]
    for label, path, must, aim in TARGETS:
        value = target_value(results, path)
        if value is None:
            continue
        bound = ">=" if aim is not None and aim > must else "<="
        percent = path[0] == "limit"
        form = (lambda v: f"{100 * v:.0f}%") if percent else (lambda v: f"{v:.2f}")
        aimed = "" if aim is None else f"{bound} {form(aim)}"
        met = verdict(value, must, aim)
        lines.append(f"| {label} | {bound} {form(must)} | {aimed} | {form(value)} | {met} |")
    lines.append("| `make train-mnist`, minutes | <= 20 | <= 8 | in [README](../README.md) | |")
    return lines


def timed_table(timed: dict) -> list[str]:
    lines = [
        "| | ratio (lowest ... highest turn) | ldm_numpy | PyTorch, contiguous "
        "| PyTorch, channels last, tuned | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in timed.items():
        times = " | ".join(seconds(row[side]["median"]) for side in ("ours", *SETTINGS))
        label = LABELS.get(name, name)
        lines.append(f"| {label} | {band(row['ratio'])} | {times} | {row['parity']:.0e} |")
    return lines


def limit_lines(limit: dict) -> list[str]:
    n = limit["threads"]
    lines = [
        f"The U-Net's training step at batch 128 is {limit['operations'] / 1e9:.1f} Gflop of "
        "convolutions (counted as direct), linear layers and attention.",
        "",
        "| | Gflop/s |",
        "|---|---|",
        f"| the training step, {n} processors | {band(limit['step'], '.0f')} |",
    ]
    for name, text in (("shapes", "the step's own matrix shapes"), ("cube", "2048 x 2048 x 2048")):
        for threads in dict.fromkeys((n, 1)):
            noun = "processors" if threads > 1 else "processor"
            rate = band(limit["sgemm"][f"{name} {threads}"], ".0f")
            lines.append(f"| sgemm, {text}, {threads} {noun} | {rate} |")
    shares = {
        name: band({key: 100 * value for key, value in limit[name].items()}, ".0f")
        for name in ("share", "share of the cube", "gain share")
    }
    return [
        *lines,
        "",
        f"Share of the limit, in percent: {shares['share']} of what sgemm reaches on the step's "
        f"shapes, {shares['share of the cube']} of the large cube's.",
        f"From 1 processor to {n} the step gains {band(limit['gain'])}, sgemm "
        f"{band(limit['sgemm gain'])}, PyTorch's step {band(limit['torch gain'])}: we keep "
        f"{shares['gain share']} percent of sgemm's gain.",
    ]


def scaling_lines(scaling: dict) -> list[str]:
    lines = [
        "| time against | slope of ours | PyTorch's | slope of the operations counted | off by |",
        "|---|---|---|---|---|",
    ]
    said = []
    for sweep, entry in scaling.items():
        fits, counted = entry["fits"], entry["counted"]
        ours, theirs = fits["ours"]["slope"], fits["torch-last"]["slope"]
        values = list(entry["seconds"]["ours"])
        lines.append(
            f"| {sweep}, {values[0]} to {values[-1]} | {ours:.2f} | {theirs:.2f} | {counted:.2f} "
            f"| {100 * (fits['ours']['off'] - 1):.0f}% |"
        )
        if abs(ours - counted) > 0.1:
            said.append(f"- {sweep}: {REASONS[sweep][ours > counted]}")
    return [*lines, "", *said]


def page(results: dict) -> str:
    """results.md of what was run."""
    machine = results["machine"]
    lines = [
        "# ldm_numpy and PyTorch on the same CPU",
        "",
        f"{machine['processor']}, {machine['cores']} cores; Python {machine['python']}, NumPy "
        f"{machine['numpy']} ({machine['blas']}), PyTorch {machine['torch']}. Ratio: our time over "
        "PyTorch's, in the better of its two settings; below 1 we are faster. How each number is "
        "measured: [README](README.md). Written by `make bench`; meanwhile, other work on the "
        f"machine took {100 * results['others']:.1f}% of its processors.",
    ]

    def section(title: str, key: str, content) -> None:
        if results.get(key):
            lines.extend(["", f"## {title}", "", *content(results[key])])

    lines += ["", "## Targets", "", *targets(results)]
    section("Times", "timed", timed_table)
    section("The limit", "limit", limit_lines)
    section(
        "Memory",
        "memory",
        lambda m: [
            "Peak of the U-Net's training step at batch 128, above the imports and the weights, in "
            f"fresh processes: ours {m['ours'] / 1e6:.0f} MB, PyTorch {m['torch'] / 1e6:.0f} MB "
            f"(contiguous), {m['torch-last'] / 1e6:.0f} MB (channels last, tuned)."
        ],
    )
    section(
        "Start",
        "start",
        lambda s: [
            f"`import ldm_numpy`, NumPy and SciPy being there: {band(s['import ldm_numpy'])} s; "
            f"`import torch`: {band(s['import torch'])} s. From `python -m ldm_numpy train "
            "autoencoder` to the end of its first training step, imports and the reading of 70,000 "
            f"images included: {band(s['first step'], '.1f')} s.",
        ],
    )
    section(
        "Python's share",
        "overhead",
        lambda o: [
            "Microseconds an operation on one number, forward, and forward with backward: "
            + "; ".join(
                f"{name} {o[side]['forward']:.1f} and {o[side]['both']:.1f}"
                for side, name in (("ours", "ours"), ("torch", "PyTorch"))
            )
            + "."
        ],
    )
    section("Scaling", "scaling", scaling_lines)
    section(
        "On a GPU: counted, not measured", "gpu", lambda g: launch_table(g).strip().splitlines()
    )
    return "\n".join(lines) + "\n"


def picture(results: dict, path) -> None:
    """Ratios as bars with the spread of the turns, and the sweeps, ours and PyTorch's."""
    scaling, timed = results.get("scaling") or {}, results.get("timed") or {}
    figure = Figure(figsize=(12, 9), layout="constrained")
    grid = figure.add_gridspec(3, 4)
    axes = figure.add_subplot(grid[:, :2])
    for i, row in enumerate(reversed(timed.values())):
        ratio = row["ratio"]
        color = "tab:green" if ratio["median"] <= 1 else "tab:orange"
        axes.barh(i, ratio["median"], color=color)
        axes.plot([ratio["low"], ratio["high"]], [i, i], color="black", linewidth=1)
    axes.set_yticks(range(len(timed)), [LABELS.get(n, n) for n in reversed(timed)])
    axes.axvline(1, color="grey", linestyle=":")
    axes.set(xlabel="our time / PyTorch's better setting", title="below 1: ldm_numpy is faster")
    for i, (sweep, entry) in enumerate(scaling.items()):
        axes = figure.add_subplot(grid[i // 2, 2 + i % 2])
        for side, label in (("ours", "ldm_numpy"), ("torch", "PyTorch"),
                            ("torch-last", "channels last")):  # fmt: skip
            points = entry["seconds"][side]
            fit = f"{label}, slope {entry['fits'][side]['slope']:.2f}"
            axes.plot([float(v) for v in points], list(points.values()), "o-", ms=3, label=fit)
        axes.set(xscale="log", yscale="log", xlabel=sweep, ylabel="seconds")
        axes.set_xticks([float(v) for v in points], list(points), minor=False, fontsize="small")
        axes.minorticks_off()
        axes.set_ylim(top=axes.get_ylim()[1] * 4)  # room for the legend above the curves
        axes.legend(fontsize="x-small", loc="upper left", frameon=False)
    figure.savefig(path, dpi=80)
