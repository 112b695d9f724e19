"""python -m lessons.run [LESSON ...] [--check]: run the lessons' code.

A lesson is a Markdown page. Its `python` fences run in order, in one namespace, each lesson in a
process of its own; the `output` fence after one holds what it prints, the figures it saves lie in
lessons/figures/. A run brings both up to date. With --check nothing is written: what is not up to
date is an error. Words, whole numbers and code must agree; other numbers may differ by 1%, numbers
like 1e-9 by a factor of 30; or by the tolerance of the fence, written behind its name, as in
`output rtol=0.2`, or `output any` for times. Ends with a table of times: a lesson may take 60
seconds of processors (half a minute of two), all of them together 480 (four minutes of two).
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence
from scipy.ndimage import maximum_filter, minimum_filter

from ldm_numpy.backend import tune_cpu
from lessons import plots

LESSONS = Path(__file__).resolve().parent
ROOT = LESSONS.parent
FENCE = re.compile(r"^```(\w*)[ \t]*([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")
RTOL = 1e-2  # of numbers with a decimal point
ANY = float("inf")  # the tolerance of times
FACTOR = 30  # between numbers with an exponent: errors, of which the size counts
LEVELS = 40.0  # grey levels (of 255) from which on a pixel is another
SHARE = 0.004  # of a figure's pixels that may be others
# A figure that shows times or a training comes out somewhat different each time. In it a pixel is
# another if nothing like it is within REACH pixels, and the share is one of what is not background
# (of a plot of lines that is 2% to 6% of all pixels). Run again, also with another machine's
# rounding, trainings reach 0.15 and times on a busy machine 0.25. A training's plot without its
# lines has 0.37 or more, a picture of nothing 1.
REACH = 8
SHARE_OF_RUN = 0.35
# Time is counted in seconds of processors, which other work on the machine changes little.
SECONDS = 60.0  # that a lesson may take: 30 seconds of two processors
SECONDS_OF_ALL = 480.0  # that the course may take: 4 minutes of two processors


@dataclass
class Fence:
    """A fenced block: its language, the words behind it, its text; where it begins and ends."""

    language: str
    options: str
    text: str
    start: int
    end: int
    line: int  # of its first line of text, counted from 1


def fences(page: str) -> list[Fence]:
    return [
        Fence(*match.groups(), *match.span(), page.count("\n", 0, match.start(3)) + 1)
        for match in FENCE.finditer(page)
    ]


def pages() -> dict[str, Path]:
    """The lessons by their two digits, in order."""
    return {path.name[:2]: path for path in sorted(LESSONS.glob("[0-9][0-9]_*.md"))}


def differs(expected: str, found: str, rtol: float | None = None) -> bool:
    """Whether two outputs differ: in words or code, or in numbers by more than they may.

    Without `rtol` whole numbers must be equal, numbers like 1e-9 within a factor of 30, others
    within 1% or one unit of the last decimal shown. With it, all within `rtol` or that unit.
    """
    (code, expected), (printed, found) = (apart(text.rstrip()) for text in (expected, found))
    if code != printed:
        return True
    if [t.split() for t in NUMBER.split(expected)] != [t.split() for t in NUMBER.split(found)]:
        return True
    return any(
        not close(a, b, rtol) for a, b in zip(NUMBER.findall(expected), NUMBER.findall(found))
    )


def apart(text: str) -> tuple[str, str]:
    """The lines of an output that are code, a function with what is indented under it; the rest."""
    code, rest, inside = [], [], False
    for line in text.split("\n"):
        inside = line.startswith("def ") or (inside and line[:1] in ("", " "))
        (code if inside else rest).append(line)
    return "\n".join(code), "\n".join(rest)


def close(a: str, b: str, rtol: float | None) -> bool:
    x, y = float(a), float(b)
    if rtol is None and "e" in (a + b).lower():
        return x == y or (x * y > 0 and max(x / y, y / x) <= FACTOR)
    decimals = re.search(r"\.(\d+)", a)
    unit = 1.01 * 10.0 ** -len(decimals[1]) if decimals else 0.0
    if rtol is None:
        rtol = RTOL if decimals or "." in a + b else 0.0
    return abs(x - y) <= unit + rtol * max(abs(x), abs(y))


def tolerance(fence: Fence) -> float | None:
    """Of an output fence; ValueError for another than None, 0 < rtol < 1 or infinity ("any")."""
    option = fence.options.strip()
    if not option:
        return None
    if option == "any":
        return ANY
    found = re.fullmatch(r"rtol=(0\.\d+)", option)
    if not found:
        raise ValueError(f"line {fence.line - 1}: output {option}; write rtol=0.2, say, or any")
    return float(found[1])


def execute(path: Path, figures: Path, check: bool) -> tuple[str, list[str]]:
    """Run a page; figures go to `figures`. Returns the page with outputs that are up to date, and
    what differed. Raises ValueError where its code does."""
    plots.folder = figures
    plots.of_runs.clear()
    page = path.read_text(encoding="utf-8")
    blocks = fences(page)
    namespace = {"__name__": "__main__"}
    renewed, at, stale = [], 0, []
    for i, block in enumerate(blocks):
        if block.language == "output" and (i == 0 or blocks[i - 1].language != "python"):
            stale.append(f"{path.name}:{block.line}: no code stands before this output")
        if block.language != "python":
            continue
        printed = io.StringIO()
        code = "\n" * (block.line - 1) + block.text
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, str(path), "exec"), namespace)
        except Exception as error:
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                     if f.filename == str(path)]  # fmt: skip
            line = lines[-1] if lines else getattr(error, "lineno", block.line)
            name = type(error).__name__
            raise ValueError(f"{path.name}:{line}: {name}: {error}") from error
        found = printed.getvalue().rstrip("\n")
        found = "\n".join(line.rstrip() for line in found.split("\n"))
        follows = blocks[i + 1] if i + 1 < len(blocks) else None
        shown = follows if follows is not None and follows.language == "output" else None
        if shown is None and not found:
            continue
        rtol = tolerance(shown) if shown else None
        if shown and found and not differs(
            shown.text, found, rtol if check or rtol == ANY else None
        ):
            continue
        stale.append(f"{path.name}:{block.line}: the output of this code is not what the page says")
        fresh = f"```output {shown.options}".rstrip() if shown else "```output"
        fresh = f"{fresh}\n{found}\n```" if found else ""
        before = page[at : shown.start if shown else block.end]
        renewed += [before, fresh if shown else f"\n\n{fresh}"]
        at = shown.end if shown else block.end
    return "".join(renewed) + page[at:], stale


def alike(a: Path, b: Path, of_run: bool = False, share: float = SHARE) -> bool:
    """Whether two pictures or animations show the same: at most such a share of the pixels is
    other; or `of_run`, at most SHARE_OF_RUN of those that show anything, with REACH."""
    first, second = frames(a), frames(b)
    if len(first) != len(second) or first[0].shape != second[0].shape:
        return False
    return all(
        same_run(one, other) if of_run
        else (np.abs(one - other).max(axis=-1) > LEVELS).mean() <= share
        for one, other in zip(first, second)
    )  # fmt: skip


def same_run(one: np.ndarray, other: np.ndarray) -> bool:
    shows = ink(one) | ink(other)
    strange = unlike_near(one, other) | unlike_near(other, one)
    return bool(strange.sum() <= SHARE_OF_RUN * shows.sum())


def ink(pixels: np.ndarray) -> np.ndarray:
    """Where a picture is not background, its most frequent colour."""
    colours, counts = np.unique(pixels @ [1, 256, 65536], return_counts=True)
    background = colours[counts.argmax()] // [1, 256, 65536] % 256
    return np.abs(pixels - background).max(axis=-1) > LEVELS


def unlike_near(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where `one` is outside the range that `other` has within REACH, in any channel."""
    window = (2 * REACH + 1, 2 * REACH + 1, 1)
    low, high = minimum_filter(other, window), maximum_filter(other, window)
    return ((one < low - LEVELS) | (one > high + LEVELS)).any(axis=-1)


def frames(path: Path) -> list[np.ndarray]:
    """The pixels of a picture, or of each frame of an animation."""
    with Image.open(path) as picture:
        return [np.asarray(frame.convert("RGB"), np.float32)
                for frame in ImageSequence.Iterator(picture)]  # fmt: skip


def run(path: Path, check: bool) -> list[str]:
    """Run a lesson; returns what was not up to date. Unless `check`, it is then."""
    kept = LESSONS / "figures"
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder)
        page, stale = execute(path, drawn, check)
        if stale and not check:
            path.write_text(page, encoding="utf-8")
        fresh = {file.name for file in drawn.iterdir()}
        for name in sorted(fresh):
            old = kept / name
            if not old.is_file():
                same = False
            elif name in plots.of_runs and not check:  # its title may be new: write it in any case
                same = old.read_bytes() == (drawn / name).read_bytes()
            else:
                share = SHARE if check else SHARE / 10
                same = alike(drawn / name, old, name in plots.of_runs, share)
            if not same:
                stale.append(f"figures/{name} is not what {path.name} draws")
                if not check:
                    old.write_bytes((drawn / name).read_bytes())
    for name in sorted(f.name for f in kept.glob(f"{path.name[:2]}_*")):
        if name not in fresh:
            stale.append(f"figures/{name}: no code of {path.name} draws it")
    return stale


def alone(path: Path, check: bool) -> int:
    """Run one lesson in this process, with warnings as errors."""
    warnings.simplefilter("error")
    tune_cpu()
    try:
        stale = run(path, check)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for line in stale:
        print(line if check else f"renewed: {line}", file=sys.stderr)
    return int(check and bool(stale))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lessons.run", description=__doc__)
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="05, say; without: all")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    known = pages()
    unknown = [name for name in options.lessons if name not in known]
    if unknown:
        print(f"error: no lesson {unknown[0]}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = options.lessons or list(known)
    if options.alone:
        return alone(known[chosen[0]], options.check)
    failed, total, total_used = 0, 0.0, 0.0
    for name in chosen:
        began, used = time.perf_counter(), processor_seconds()
        command = [sys.executable, "-m", "lessons.run", name, "--alone"]
        code = subprocess.run(command + ["--check"] * options.check, cwd=ROOT).returncode
        seconds, used = time.perf_counter() - began, processor_seconds() - used
        slow = used > SECONDS
        failed += bool(code) or slow
        total, total_used = total + seconds, total_used + used
        verdict = "failed" if code else too_slow(SECONDS) if slow else "ok"
        print(f"{known[name].stem:28} {seconds:6.1f} s, of processors {used:6.1f} s  {verdict}")
        sys.stdout.flush()
    slow = total_used > SECONDS_OF_ALL
    if len(chosen) > 1:
        verdict = f"{failed} failed" + f", and {too_slow(SECONDS_OF_ALL)}" * slow
        print(f"{'all':28} {total:6.1f} s, of processors {total_used:6.1f} s  {verdict}")
    return int(failed > 0 or slow)


def too_slow(limit: float) -> str:
    return f"too slow: at most {limit:.0f} s of processors"


def processor_seconds() -> float:
    """Of the lessons run so far."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())
