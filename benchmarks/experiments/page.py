"""The page of the experiments: their numbers as tables and figures. See `text.py` for its words."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ldm_numpy.files import write_atomically
from lessons.plots import COLOURS

from .text import FIGURES as SHOWN
from .text import HEAD, WORDS

COMMAND = "python -m benchmarks.experiments"


def percent(value) -> str:
    return f"{100 * value:.1f}%"


def floors(row: dict) -> str:
    return f"{row['frechet'] / row['floor']:.2f}"


# A column: its title, and what of a row stands in it.
ACCURACY = (
    ("digit", lambda r: percent(r["digit"])),
    ("slant", lambda r: percent(r["slant"])),
    ("stroke", lambda r: percent(r["stroke"])),
    ("all three", lambda r: percent(r["all"])),
)
QUALITY = (*ACCURACY, ("distance", lambda r: f"{r['frechet']:.2f}"), ("in floors", floors))
THOROUGH = (
    *QUALITY,
    ("kernel distance",
     lambda r: f"{r['kernel']:.2f} ({r['kernel_low']:.2f} ... {r['kernel_high']:.2f})"),
    ("precision", lambda r: f"{r['precision']:.2f}"),
    ("recall", lambda r: f"{r['recall']:.2f}"),
    ("CLIP score", lambda r: f"{r['clip_score']:.3f}"),
)  # fmt: skip
COLUMNS = {
    "samplers": (("evaluations", lambda r: str(r["evaluations"])), *QUALITY),
    "guidance": THOROUGH,
    "classifier": THOROUGH,
    "parts": (
        *QUALITY,
        ("autoencoder: squared error", lambda r: shown(r.get("autoencoder_mse"))),
        ("digits still read", lambda r: shown(r.get("autoencoder_digit"), True)),
    ),
    "spaces": (
        ("parameters", lambda r: f"{r['parameters']:,}"),
        ("steps", lambda r: str(r["training_steps"])),
        ("s a step", lambda r: f"{r['seconds_a_step']:.2f}"),
        ("images a second", lambda r: f"{r['images_a_second']:.1f}"),
        *THOROUGH,
    ),
}  # fmt: skip


def table(columns, rows: dict[str, dict], experiment: str) -> list[str]:
    """A table with a line a row; the row's name is what its command ends with."""
    lines = [f"| {experiment}/ | {' | '.join(title for title, _ in columns)} |"]
    lines.append("|" + "---|" * (len(columns) + 1))
    for name, row in rows.items():
        cells = [cell(row) for _, cell in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def plain_table(rows: dict[str, dict], experiment: str) -> list[str]:
    """A table of whatever numbers the rows have."""
    titles = list(dict.fromkeys(key for row in rows.values() for key in row))
    shares = ACCURACIES if experiment != "words" else ()
    columns = [
        (key.replace("_", " "), lambda r, key=key: shown(r.get(key), key in shares))
        for key in titles
    ]
    return table(columns, rows, experiment)


ACCURACIES = ("digit", "slant", "stroke", "all", "held_out", "rest")


def shown(value, share: bool = False) -> str:
    if value is None:
        return ""
    if share:
        return percent(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# Figures -----------------------------------------------------------------------------------


def by_sampler(rows: dict) -> dict[str, list[dict]]:
    grouped = {}
    for name, row in rows.items():
        grouped.setdefault(name.rsplit("-", 1)[0] if "e-" not in name else name.split("-")[0],
                           []).append(row)  # fmt: skip
    return {name: sorted(group, key=lambda r: r["evaluations"]) for name, group in grouped.items()}


def samplers_figure(rows: dict) -> Figure:
    """Distance and accuracy against evaluations, a line a sampler."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, group) in enumerate(by_sampler(rows).items()):
        x = [r["evaluations"] for r in group]
        style = {"marker": "os^vD"[i % 5], "markersize": 4, "label": name,
                 "color": COLOURS[i % 5], "linestyle": ("-", "--")[i // 5]}  # fmt: skip
        left.plot(x, [r["frechet"] / r["floor"] for r in group], **style)
        right.plot(x, [100 * r["all"] for r in group], **style)
    left.axhline(1, color="grey", linestyle=":")
    left.set(xscale="log", yscale="log", xlabel="evaluations of the denoiser",
             title="Fréchet distance, in floors")  # fmt: skip
    right.set(xscale="log", xlabel="evaluations of the denoiser",
              title="digit, slant and stroke as asked, %")  # fmt: skip
    for axes in (left, right):
        axes.set_xticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
        axes.xaxis.set_minor_locator(NullLocator())
    left.set_yticks([1, 2, 3, 5, 10, 30, 100], ["1", "2", "3", "5", "10", "30", "100"])
    left.yaxis.set_minor_locator(NullLocator())
    right.legend(fontsize="small", loc="lower right")
    return figure


def guidance_figure(rows: dict) -> Figure:
    """Accuracy against distance: each scale a point, each way of guiding a line."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for where, label, side in (("interval", "at 0.3 < sigma <= 5", (-9, 7)),
                               ("everywhere", "at all levels", (3, -13))):  # fmt: skip
        points = {name.split("-")[0]: row for name, row in rows.items() if name.endswith(where)}
        x = [row["frechet"] / row["floor"] for row in points.values()]
        y = [100 * row["all"] for row in points.values()]
        axes.plot(x, y, "o-", label=label)
        for scale, *at in zip(points, x, y):
            axes.annotate(scale, at, textcoords="offset points", xytext=side, fontsize="small")
    axes.set(xlabel="Fréchet distance, in floors (1 is perfect)",
             ylabel="digit, slant and stroke as asked, %")  # fmt: skip
    axes.legend(title="guidance")
    return figure


FIGURES = {"samplers": samplers_figure, "guidance": guidance_figure}
PICTURES = {
    "editing": ("inpaint", "slant"),
    "words": ("words",),
    "memory": ("memory",),
    "spaces": ("space_pixel", "space_latent"),
}


def write(results: dict, folder: Path) -> None:
    """experiments.md and the figures drawn from numbers, of what has been measured so far."""
    lines = [HEAD]
    for experiment, (title, words) in WORDS.items():
        rows = results.get(experiment)
        if not rows:
            continue
        lines += [f"## {title}", "", words(rows), ""]
        if experiment in FIGURES:
            path = f"figures/experiments_{experiment}.png"
            FIGURES[experiment](rows).savefig(folder / path, dpi=80)
            lines += figure(experiment)
        lines += tables(experiment, rows)
        for name in PICTURES.get(experiment, ()):
            if (folder / f"figures/experiments_{name}.png").is_file():
                lines += figure(name)
    write_atomically(folder / "experiments.md", ("\n".join(lines).rstrip() + "\n").encode())


def figure(name: str) -> list[str]:
    """A figure of the page, and below it what it shows."""
    alternative, caption = SHOWN[name]
    return [f"![{alternative}](figures/experiments_{name}.png)", "", f"*{caption}*", ""]


def tables(experiment: str, rows: dict) -> list[str]:
    """The experiment's numbers; rows of another kind in a table of their own."""
    if experiment == "composition":
        return [*plain_table(rows["held-out"], "composition/held-out"), ""]
    if experiment == "memory":
        return [*plain_table(rows["nearest"], "memory/nearest"), ""]
    columns = COLUMNS.get(experiment)
    lines = []
    if "models" in rows:
        rows = {f"models, {name}": row for name, row in rows["models"].items()} | rows
        del rows["models"]
    if columns:
        known = {name: row for name, row in rows.items() if "frechet" in row}
        if known:
            lines += [*table(columns, known, experiment), ""]
        rows = {name: row for name, row in rows.items() if name not in known}
    groups = {}
    for name, row in rows.items():
        groups.setdefault(tuple(row), {})[name] = row
    for group in groups.values():
        lines += [*plain_table(group, experiment), ""]
    return lines
