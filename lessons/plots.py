"""One style for the figures of all lessons, and the one way to save them."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from ldm_numpy import images

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#222222"
COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK)
SIGNED, HEAT = "RdBu_r", "magma"  # colour maps: of values around 0, of values from 0 up
WIDTH = 8.0  # inches, as wide as a page
LARGEST_PNG, LARGEST_GIF = 150_000, 1_000_000  # bytes

matplotlib.use("agg")  # no screen is needed
STYLE = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.grid": False,
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
}
pyplot.rcParams.update(STYLE)

folder: Path | None = None  # where figures go; the runner sets it
of_runs: set[str] = set()  # files of figures that show times or a training


def panels(rows: int = 1, columns: int = 1, height: float = 3.0, **options):
    """A figure as wide as the page and its axes, as `pyplot.subplots` gives them."""
    return pyplot.subplots(rows, columns, figsize=(WIDTH, height), **options)


def curves(ax, lines: dict, x=None, colours=COLOURS, **settings) -> None:
    """Draw lines, {label: values}, over `x` (or 1, 2, ...); `settings` go to `ax.set`."""
    for (label, values), colour in zip(lines.items(), colours):
        ax.plot(range(1, len(values) + 1) if x is None else x, values, color=colour, label=label)
    ax.set(**settings)
    ax.legend(fontsize=8)


def save(
    figure: Figure | Image.Image | Sequence[Image.Image], name: str, of_run: bool = False, **options
) -> None:
    """Write a figure or a picture as `name`.png, frames of an animation as `name`.gif.

    `of_run`: it shows times, or a training made here, and may look somewhat different elsewhere.
    In a notebook it is shown instead. `options` go to `images.save_gif`. Raises ValueError for a
    file above 150 kB (1 MB for an animation).
    """
    moving = isinstance(figure, list | tuple)
    data = io.BytesIO()
    if moving:
        images.save_gif(figure, data, **options)
    elif isinstance(figure, Image.Image):
        figure.save(data, format="PNG", optimize=True)
    else:
        figure.savefig(data, format="png")
        pyplot.close(figure)
    size, largest = data.tell(), LARGEST_GIF if moving else LARGEST_PNG
    if size > largest:
        raise ValueError(f"figure {name} has {size:,} bytes; at most {largest:,} are allowed")
    if folder is not None:
        if of_run:
            of_runs.add(f"{name}.{'gif' if moving else 'png'}")
        (folder / f"{name}.{'gif' if moving else 'png'}").write_bytes(data.getvalue())
    elif "ipykernel" in sys.modules:
        from IPython.display import Image as Shown
        from IPython.display import display

        display(Shown(data=data.getvalue(), format="gif" if moving else "png"))
