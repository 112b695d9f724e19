"""python -m benchmarks: measure, and write results.md, results.json and results.png."""

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from ldm_numpy.backend import cpu_count

from . import report, sections
from .turns import ROOT, Neighbours, Turns


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="ldm_numpy side by side with PyTorch."
    )
    parser.add_argument("--quick", action="store_true", help="few short turns: to see that it runs")
    parser.add_argument("--only", nargs="+", metavar="NAME",
                        help=f"some of: {', '.join(sections.NAMES)}")  # fmt: skip
    parser.add_argument(
        "--out",
        help="folder for results.md, .json and .png (default: benchmarks for a full run; a quick "
        "or partial one is only printed)",
    )
    return parser


def machine() -> dict:
    """What the numbers depend on."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = named[0].split(":")[1].strip() if named else processor
    libraries = [i for i in threadpool_info() if i["user_api"] == "blas"]
    libraries.sort(key=lambda i: "numpy" not in i["filepath"])  # SciPy brings another
    blas = next(
        (f"{i['internal_api']} {i['version']}, {i.get('architecture', 'unknown')} kernels"
         for i in libraries), "unknown BLAS",
    )  # fmt: skip
    return {
        "processor": processor,
        "cores": cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas,
        "torch": torch.__version__,
    }


def measure(names: list[str], quick: bool) -> dict:
    """Results of the workloads and sections asked for."""
    results = {"machine": machine(), "quick": quick}
    pace = (2, 0.1) if quick else (7, 0.5)
    with Neighbours() as neighbours, Turns(*pace) as turns:
        workloads = [name for name in names if name not in sections.SECTIONS]
        if workloads:
            results["timed"] = sections.timed(turns, workloads)
        for name in names:
            if name in sections.SECTIONS:
                print(f"{name} ...", flush=True)
                results[name] = sections.SECTIONS[name](turns, quick)
    results["others"] = neighbours.share
    if neighbours.share > 0.05:
        print("warning: the machine was busy with other work; measure again", file=sys.stderr)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 2, with one line, for a mistake, a missing PyTorch, or results that differ."""
    options = build_parser().parse_args(arguments)
    try:
        names = sections.chosen(options.only)
        try:
            import torch  # noqa: F401 - here for an early, clear answer
        except ImportError:
            raise ValueError("PyTorch is missing: run `make bench`, which installs it") from None
        whole = not (options.quick or options.only)
        folder = Path(options.out) if options.out else ROOT / "benchmarks" if whole else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        results = measure(names, options.quick)
        text = report.page(results)
        if folder:
            (folder / "results.md").write_text(text, encoding="utf-8")
            (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            report.picture(results, folder / "results.png")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
