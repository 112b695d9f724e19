"""python -m benchmarks.experiments [EXPERIMENT[/ROW] ...]: measure what is not yet measured.

Numbers go to lessons/experiments.json, row by row, so that an interrupted run continues; then the
page is written. A row that is named is measured again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from ldm_numpy.backend import tune_cpu
from ldm_numpy.files import write_atomically

from . import page
from .rows import EXPERIMENTS, Context

LESSONS = Path(__file__).parents[2] / "lessons"


def chosen(names: list[str]) -> list[tuple[str, str]]:
    """(experiment, row) of the names; ValueError for an unknown one."""
    pairs = []
    for name in names:
        experiment, _, row = name.partition("/")
        if experiment not in EXPERIMENTS:
            raise ValueError(f"unknown experiment {experiment!r}: use {', '.join(EXPERIMENTS)}")
        rows = EXPERIMENTS[experiment]
        if row and row not in rows:
            raise ValueError(f"{experiment} has no row {row!r}, but {', '.join(rows)}")
        pairs += [(experiment, r) for r in ([row] if row else rows)]
    return pairs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="EXPERIMENT[/ROW]")
    parser.add_argument("--base", type=Path, default=Path("runs/mnist"), help="finished training")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--out", type=Path, default=LESSONS)
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    options = parser.parse_args(arguments)
    path = options.out / "experiments.json"
    try:
        named = chosen(options.rows)
        results = json.loads(path.read_text()) if path.is_file() else {}
        figures = options.out / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        if not options.page:
            tune_cpu()
            context = Context(options.base, options.runs, figures)
            for experiment, row in named or chosen(list(EXPERIMENTS)):
                rows = results.setdefault(experiment, {})
                if row in rows and not named:
                    continue
                print(f"{experiment}/{row} ...", flush=True)
                began = time.perf_counter()
                rows[row] = EXPERIMENTS[experiment][row](context)
                print(f"  {time.perf_counter() - began:.0f} s: {rows[row]}", flush=True)
                write_atomically(path, (json.dumps(results, indent=1) + "\n").encode())
        page.write(results, options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out / 'experiments.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
