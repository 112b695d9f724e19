"""python -m lessons.check LESSON [NUMBER]: check what you wrote into lessons/exercises/.

For each exercise: is it written, does it run, have its results the right shapes; then each result
apart, by relative error; then, for gradients, the vector-Jacobian check <gy, J v> = <J^T gy, v>.
Wrong answers that many people give are recognised.
"""

import argparse
import copy
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm_numpy.tensor import Tensor

EXERCISES = Path(__file__).resolve().parent / "exercises"
SEEDS = (0, 1, 2)
STEP = 1e-6  # of central differences, relative to the size of the input


@dataclass
class Exercise:
    """One function to write, in the file lessons/exercises/<file>.py, and how it is checked.

    function: its name, and the name of the solution
    solution: the right function, of the library where it has one
    inputs:   of a generator, the arguments by name; called with several seeds
    results:  names of what it returns: one, or as many as the tuple has
    wrong:    answers known to be wrong: hint -> function
    forward:  for a backward pass: the function of the same arguments but gy (and whatever
              `results` do not need) that it is the gradient of
    wanted:   the arguments that the results are the gradients for, in order
    """

    file: str
    function: str
    solution: Callable
    inputs: Callable[[np.random.Generator], dict]
    results: tuple[str, ...]
    wrong: dict[str, Callable]
    forward: Callable | None = None
    wanted: tuple[str, ...] = ()
    tolerance: float = 1e-6


def load(file: str):
    """The module of an exercise file."""
    spec = importlib.util.spec_from_file_location(f"exercise_{file}", EXERCISES / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exercises(lesson: str) -> list[Exercise]:
    """Those of a lesson, "05" say; ValueError where there are none."""
    path = Path(__file__).parent / "checks" / f"lesson_{lesson}.py"
    if not path.is_file():
        known = sorted(p.stem[-2:] for p in (EXERCISES.parent / "checks").glob("lesson_*.py"))
        raise ValueError(f"no exercises for lesson {lesson!r}: there are {', '.join(known)}")
    return importlib.import_module(f"lessons.checks.lesson_{lesson}").EXERCISES


def arrays(answer, count: int) -> list:
    """Results as arrays, in a list, `count` of them if it is right; Tensors give their data. Of a
    single result a list is an array."""
    one = count == 1 and not isinstance(answer, tuple)
    several = answer if isinstance(answer, tuple | list) and not one else (answer,)
    return [r.data if isinstance(r, Tensor) else None if r is None else np.asarray(r)
            for r in several]  # fmt: skip


def error(found, right) -> float:
    """|found - right| / |right|, of whole arrays; infinite where something is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    size = float(np.linalg.norm(right))
    return float(np.linalg.norm(found - right)) / (size or 1.0)


def check(exercise: Exercise, function: Callable) -> list[str]:
    """What is wrong with an answer, most basic first; nothing if it is right."""
    for seed in SEEDS:
        complaints = check_seed(exercise, function, seed)
        if complaints:
            return complaints
    return []


def check_seed(exercise: Exercise, function: Callable, seed: int) -> list[str]:
    given = exercise.inputs(np.random.default_rng(seed))
    names = exercise.results
    right = arrays(exercise.solution(**copy.deepcopy(given)), len(names))
    used = copy.deepcopy(given)
    try:
        found = arrays(function(**used), len(names))
    except NotImplementedError:
        return ["not written yet"]
    except (Exception, SystemExit) as problem:
        last = traceback.extract_tb(problem.__traceback__)[-1]
        place = f"{Path(last.filename).name}, line {last.lineno}"
        return [f"{type(problem).__name__} ({place}): {problem}"]
    if len(found) != len(names):
        return [f"{len(found)} results came, {len(names)} should: {', '.join(names)}"]
    missing = [name for name, result in zip(names, found) if result is None]
    if missing:
        return [f"{missing[0]} is None: is there a return?"]
    shapes = [
        f"{name} has shape {result.shape}; {wanted.shape} is right"
        for name, result, wanted in zip(names, found, right) if result.shape != wanted.shape
    ]  # fmt: skip
    kinds = [f"{name} holds {result.dtype}, not numbers"
             for name, result in zip(names, found) if result.dtype.kind not in "biuf"]  # fmt: skip
    numbers = all(result.dtype.kind in "biufc" for result in found)
    if shapes or kinds:
        return shapes + kinds + (hints(exercise, given, found, None) if numbers else [])
    wrong = {}
    for name, result, wanted in zip(names, found, right):
        result, wanted = result.astype(np.float64), wanted.astype(np.float64)
        if not error(result, wanted) <= exercise.tolerance:
            wrong[name] = error(result, wanted)
    if wrong:
        lines = [f"{name} is wrong: relative error {size:.1e}" for name, size in wrong.items()]
        fine = [name for name in names if name not in wrong]
        lines += [f"{', '.join(fine)}: right"] if fine else []
        return lines + hints(exercise, given, found, list(wrong))
    changed = [name for name, value in given.items() if not same(value, used[name])]
    if changed:
        return [f"the function changes its argument {changed[0]}: work on a copy"]
    if exercise.forward is not None:
        return vector_jacobian(exercise, given, found, seed)
    return []


def hints(exercise: Exercise, given: dict, found: list, wrong: list[str] | None) -> list[str]:
    """Hints of the known wrong answers that agree with this one where it is wrong."""
    told = []
    for hint, mistake in exercise.wrong.items():
        theirs = arrays(mistake(**copy.deepcopy(given)), len(found))
        if len(theirs) != len(found) or any(a.shape != b.shape for a, b in zip(theirs, found)):
            continue
        compared = [
            np.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
            for name, a, b in zip(exercise.results, theirs, found)
            if wrong is None or name in wrong
        ]
        if all(compared):
            told.append(f"hint: {hint}")
    return told[:1]


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, Tensor):
        return np.array_equal(a.data, b.data)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return not isinstance(a, int | float | str | bool) or a == b


def vector_jacobian(exercise: Exercise, given: dict, found: list, seed: int) -> list[str]:
    """Each gradient against central differences of the forward pass, along a random direction."""
    rng = np.random.default_rng(seed)
    rest = {name: value for name, value in given.items() if name != "gy"}
    lines = []
    for name, gradient in zip(exercise.wanted, found):
        v = rng.standard_normal(given[name].shape)
        h = STEP * max(1.0, float(np.abs(given[name]).max()))
        ahead = exercise.forward(**(rest | {name: given[name] + h * v}))
        behind = exercise.forward(**(rest | {name: given[name] - h * v}))
        jv = (ahead - behind) / (2 * h)
        left, right = float(np.vdot(given["gy"], jv)), float(np.vdot(gradient, v))
        size = float(np.linalg.norm(given["gy"]) * np.linalg.norm(jv)) or 1.0
        if not abs(left - right) <= 1e-5 * size:
            lines.append(f"g{name}: <gy, J v> = {left:.6g}, but <J^T gy, v> = {right:.6g}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lessons.check", description=__doc__)
    parser.add_argument("lesson", help="its two digits: 05, say")
    parser.add_argument("number", nargs="?", type=int, help="of one exercise")
    options = parser.parse_args(arguments)
    try:
        chosen = exercises(options.lesson)
        if options.number is not None:
            if not 1 <= options.number <= len(chosen):
                raise ValueError(f"lesson {options.lesson} has exercises 1 to {len(chosen)}")
            chosen = [chosen[options.number - 1]]
    except ValueError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    failed = False
    for exercise in chosen:
        try:
            complaints = check(exercise, getattr(load(exercise.file), exercise.function))
        except (Exception, SystemExit) as problem:  # whatever the file does when it is loaded
            complaints = [f"{type(problem).__name__}: {problem}"]
        failed |= bool(complaints)
        gradients = ", and the vector-Jacobian check agrees" if exercise.forward else ""
        print(f"{exercise.file}: {'' if complaints else f'right{gradients}'}".rstrip())
        for line in complaints:
            print(f"    {line}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
