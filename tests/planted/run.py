"""Plant each bug in memory, run the likeliest tests on it, and say which one noticed.

The parent imports what is slow to import and never the library. Each mutant is a fork of it, in
which the library's one module is compiled from the mutated source; no file is changed.
"""

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

import hypothesis
import numpy as np  # noqa: F401  imported once, for all forks
import pytest

from .rules import Mutant

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIMEOUT = 300  # seconds a test file; one that hangs has noticed
KNOWN_TO_HANG = 60  # seconds for one that did before: without the bug it takes less than 20
STRICT = "strict:"  # before a test's name: on the stand-in for CuPy

# Module -> test files, the likeliest killers first. The first prefix that fits counts.
LIKELY = {
    "ops/winograd": "ops gradients references memory",
    "ops/": "gradients ops attention extremes scipy layer_references primitives models",
    "primitives": "primitives gradients ops extremes nn",
    "optim": "optim stability training",
    "tensor": "ops primitives function nn",
    "function": "function ops primitives",
    "gradcheck": "gradcheck",
    "backend": "backend strict_backend parallel training pipeline",
    "nn": "nn layer_references models model_gradients training",
    "diffusion/samplers": "samplers pipeline editing_oracle oracle",
    "diffusion/guidance": "guidance noisy pipeline",
    "diffusion/schedules": "schedules samplers",
    "diffusion/process": "process schedules objectives samplers likelihood",
    "diffusion/objectives": "objectives denoiser training",
    "diffusion/denoiser": "denoiser objectives samplers training",
    "diffusion/likelihood": "likelihood evaluation",
    "diffusion/ode": "likelihood samplers",
    "diffusion/oracle": "oracle samplers likelihood",
    "models/classifier": "models noisy model_gradients training metrics",
    "models/autoencoder": "models pixel references model_gradients",
    "models/unet": "models references model_gradients pixel training",
    "models/": "models references model_gradients attention_maps training pipeline",
    "training/log": "log training",
    "training/noisy": "noisy training",
    "training/export": "hostile_runs noisy training pipeline",
    "training/pixel": "pixel training",
    "training/stop": "stopping training",
    "training/folder": "stopping training",
    "training/": "training pixel overfit noisy stopping pipeline evaluation",
    "text": "text text_properties references",
    "data/captions": "captions mnist text training",
    "checkpoint": "checkpoint hostile training",
    "files": "checkpoint text hostile hostile_models faults",
    "data/mnist": "mnist training",
    "pipeline": "pipeline editing evaluation",
    "images": "images pipeline editing mnist",
    "model_folder": "hostile_models hostile_runs pipeline hostile models training",
    "evaluation": "evaluation pipeline metrics",
    "commands": "command_line command_line_properties evaluation pipeline",
    "__main__": "command_line command_line_properties",
    "checks": "pipeline samplers command_line images",
    "attention_maps": "attention_maps",
    "pixel_likelihood": "pixel evaluation",
    "processes": "processes training",
    "editing": "editing editing_oracle",
    "metrics": "metrics evaluation",
    "parallel": "parallel training",
}


def likely(file: str) -> list[str]:
    """The test files for a module of the library, in order."""
    words = next(words for prefix, words in LIKELY.items() if file.startswith(prefix))
    paths = [f"tests/test_{word}.py" for word in words.split()]
    return [path for path in paths if (ROOT / path).exists()]


class Planted(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds and loads the one module, from the mutated source."""

    def __init__(self, mutant: Mutant):
        path = ROOT / "ldm_numpy" / mutant.file
        dotted = "ldm_numpy/" + mutant.file.removesuffix(".py").removesuffix("/__init__")
        super().__init__(dotted.replace("/", "."), str(path))
        self.mutant = mutant

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname):
        return compile(self.mutant.source, self.path, "exec", dont_inherit=True)


class FirstFailure:
    """A plugin that remembers the first test that failed."""

    def __init__(self):
        self.name = None

    def pytest_runtest_logreport(self, report):
        if report.failed and self.name is None:
            self.name = report.nodeid

    def pytest_collectreport(self, report):
        if report.failed and self.name is None:
            self.name = report.nodeid


def in_child(mutant: Mutant | None, tests: list[str], write: int) -> None:
    """Run tests on a mutant (None: on the library as it is), write what the first failure was."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.dont_write_bytecode = True
    if mutant is not None:
        sys.meta_path.insert(0, Planted(mutant))
    from .. import hypothesis_profile  # noqa: F401  loads the profile that the next line narrows

    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # a failure is not shrunk
    hypothesis.settings.register_profile("planted", hypothesis.settings(), phases=phases)
    hypothesis.settings.load_profile("planted")
    first, strict = FirstFailure(), tests[0].startswith(STRICT)
    tests = [test.removeprefix(STRICT) for test in tests]
    options = ["--backend", "strict"] if strict else []
    options += ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the parent has imported it
    code = int(pytest.main([*options, *tests], plugins=[first]))
    if first.name is None and code == 2:
        return  # the bug interrupted pytest itself: a crash
    if first.name is None and code not in (0, 4, 5):
        raise RuntimeError(f"pytest's exit code {code} and no test failed")
    # 4: a test that is no more, or a library that cannot be imported; 5: nothing to run.
    found = first.name or ("" if code in (0, 5) else "import")
    if first.name and strict:
        found = STRICT + found
    os.write(write, b"done:" + found.encode())


def killer(mutant: Mutant | None, tests: list[str], timeout: float = TIMEOUT) -> str | None:
    """The name of the first test that fails; None where all pass. A hang and a crash count."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()  # its own group, so that a hang ends with all the processes it started
            os.close(read)
            in_child(mutant, tests, write)
        except BaseException as error:  # of this file, not of the mutant: never a kill
            os.write(write, f"failed:{error!r}".encode())
        finally:
            os._exit(0)
    os.close(write)
    ends = time.monotonic() + timeout
    hangs, ended = False, (0, 0)
    while ended == (0, 0):
        time.sleep(0.02)
        ended = os.waitpid(child, os.WNOHANG)
        if ended == (0, 0) and time.monotonic() > ends:
            hangs = True
            os.killpg(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):  # what it started and left would hold the pipe
        os.killpg(child, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    if hangs:
        return f"{tests[0]} hangs"
    if said.startswith("failed:"):
        raise RuntimeError(f"{tests[0]}, {mutant and mutant.id}: {said.removeprefix('failed:')}")
    if not said.startswith("done:"):
        out_of_memory = os.waitstatus_to_exitcode(ended[1]) == -signal.SIGKILL  # says nothing
        return None if out_of_memory else f"{tests[0]} crashes"
    found = said.removeprefix("done:") or None
    return f"{tests[0]} cannot be imported" if found == "import" else found


@functools.cache
def green(test: str, limit: float) -> bool:
    """Whether a test passes on the library as it is, in the same time: only then does its failure
    say anything."""
    return killer(None, [test], limit) is None


def others(tests: list[str]) -> list[str]:
    """The likeliest files on the stand-in for CuPy, then the rest of the fast test files: nothing
    survives that any of them notices."""
    slow = {"benchmarks", "faults", "kills", "lessons", "planted", "readme", "slow"}
    everything = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").glob("test_*.py"))
    fast = [str(path) for path in everything if path.stem.removeprefix("test_") not in slow]
    on_device = [STRICT + test for test in tests[:3]]
    return on_device + [test for test in fast if test not in tests]


def judge(mutant: Mutant, remembered: str | None) -> str | None:
    """The test that kills a mutant: the remembered one, else the first that does of the likely
    files, else of all.

    Raises RuntimeError where that test fails without the mutant too.
    """
    tests, limits = likely(mutant.file), {}
    tests += others(tests)
    if remembered:
        hung = remembered.endswith(" hangs")
        for ending in (" hangs", " crashes", " cannot be imported"):
            remembered = remembered.removesuffix(ending)
        tests.insert(0, remembered)
        limits[remembered] = KNOWN_TO_HANG if hung else TIMEOUT
    for test in tests:
        limit = limits.get(test, TIMEOUT)
        found = killer(mutant, [test], limit)
        if found == f"{test} cannot be imported" and not green(test, limit):
            continue  # a remembered test that is no more
        if found:
            blamed = found if "::" in found else test
            if not green(blamed, limit):
                raise RuntimeError(f"{blamed} fails without any mutant")
            return found
    return None


def load(name: str, otherwise):
    path = HERE / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise


def save(name: str, value) -> None:
    text = json.dumps(value, indent=0, ensure_ascii=False, sort_keys=True)
    (HERE / name).write_text(text + "\n", encoding="utf-8")
