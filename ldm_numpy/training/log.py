"""The log of a training: a CSV file, and a picture of the loss."""

import io
import math
import time
from pathlib import Path

from ..files import write_atomically

MAX_FILE = 64 << 20  # bytes: a million rows; a larger file is none of ours


class Log:
    """A stage's CSV file. Rows after the checkpoint that a run resumes from are dropped.

    Args:
        path: of the file
        report: names of the numbers of a row
        baselines: for some of them, the value that an answer of zero would have
        start: step of that checkpoint, or 0
    """

    def __init__(
        self, path: Path, report: tuple[str, ...], baselines: dict[str, float], start: int
    ):
        self.path, self.report, self.baselines = path, report, baselines
        self.began = time.perf_counter()
        self.header = ["step", *report]
        self.header += [f"{name}_zero" for name in report if name in baselines]
        self.header += ["gradient_norm", "learning_rate", "seconds"]
        self.rows: list[list] = []
        self.seconds = 0.0  # spent by the runs before this one
        if start and path.is_file() and path.stat().st_size <= MAX_FILE:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
            rows = [row for row in (line.split(",") for line in lines) if self.is_whole(row)]
            by_step = {int(row[0]): row for row in rows}
            self.rows = [by_step[step] for step in sorted(by_step) if step <= start]
            self.seconds = float(self.rows[-1][-1]) if self.rows else 0.0
            if len(self.rows) < len(lines):
                self.flush()

    def add(self, step: int, numbers: list[float], learning_rate: float) -> None:
        zeros = [self.baselines[name] for name in self.report if name in self.baselines]
        seconds = self.seconds + time.perf_counter() - self.began
        *values, norm = [f"{v:.6g}" for v in numbers]
        self.rows.append([step, *values, *zeros, norm, f"{learning_rate:.4g}", f"{seconds:.1f}"])

    def is_whole(self, row: list[str]) -> bool:
        """Whether a row is one of ours; a log that was edited must not stop a training."""
        try:
            step, numbers = int(row[0]), [float(cell) for cell in row[1:]]
        except ValueError:
            return False
        return len(row) == len(self.header) and step > 0 and all(map(math.isfinite, numbers))

    def flush(self) -> None:
        lines = [",".join(str(cell) for cell in row) for row in [self.header, *self.rows]]
        write_atomically(self.path, ("\n".join(lines) + "\n").encode())

    def plot(self) -> None:
        """A picture of the loss, where matplotlib is installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps = [int(row[0]) for row in self.rows]
        for i, name in enumerate(self.report):
            axes.plot(steps, [float(row[1 + i]) for row in self.rows], label=name)
            if name in self.baselines:
                zero = self.baselines[name]
                axes.axhline(zero, linestyle=":", color="grey", label=f"{name} of zero")
        axes.set(xlabel="step", yscale="log", title=self.path.stem)
        axes.legend()
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        write_atomically(self.path.with_name(f"{self.path.stem}_loss.png"), content.getvalue())
