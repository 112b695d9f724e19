"""The rules that plant bugs, and a sample of the bugs: each turns a test red."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from ldm_numpy import nn, training
from ldm_numpy.diffusion import PROCESSES, SAMPLERS, SCHEDULES
from ldm_numpy.function import Function

from .planted import rules
from .planted.run import load

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutants():
    return rules.generated()


def changes(statement: str) -> set[tuple[str, str]]:
    """All that the rules make of a statement: (operator, what it becomes)."""
    (node,) = ast.parse(statement).body
    return {(operator, ast.unparse(new)) for operator, new in rules.of_statement(node)}


@pytest.mark.parametrize(
    ("statement", "operator", "becomes"),
    [
        ("y = a + b", "sign", "y = a - b"),
        ("y = a - b", "drop-term", "y = -b"),
        ("y = a * b", "drop-factor", "y = b"),
        ("y = a / b", "drop-divisor", "y = a"),
        ("y = a @ b", "swap-matmul", "y = b @ a"),
        ("y = a ** 2", "drop-power", "y = a"),
        ("y = a & b", "swap-logic", "y = a | b"),
        ("y = a and b", "swap-logic", "y = a or b"),
        ("y = np.sqrt(v)", "drop-sqrt", "y = v"),
        ("y = v.copy()", "drop-copy", "y = v"),
        ("y = x.max(axis=-1)", "swap-name", "y = x.min(axis=-1)"),
        ("y = x.max(axis=-1)", "axis", "y = x.max(axis=0)"),
        ("y = x.sum(axis=0)", "axis", "y = x.sum(axis=-1)"),
        ("y = x.sum(keepdims=True)", "keepdims", "y = x.sum(keepdims=False)"),
        ("y = xp.where(mask, a, b)", "swap-branches", "y = xp.where(mask, b, a)"),
        ("y = f(a, b)", "swap-arguments", "y = f(b, a)"),
        ("y = self.norm(x)", "skip-call", "y = x"),
        ("y = -a", "drop-minus", "y = a"),
        ("y = ~mask", "drop-mask-not", "y = mask"),
        ("y = not a", "drop-not", "y = a"),
        ("y = a < b", "comparison", "y = a >= b"),
        ("y = a if c else b", "swap-branches", "y = b if c else a"),
        ("y = w.T", "drop-transpose", "y = w"),
        ("y = 0.5 * a", "constant", "y = 1.0 * a"),
        ("y = a[1:n]", "off-by-one", "y = a[1:n + 1]"),
        ("y += a", "sign", "y -= a"),
        ("y += a", "not-in-place", "y = a"),
        ("y *= a", "drop-update", "y"),
        ("return (ga, gb)", "swap-returned", "return (gb, ga)"),
    ],
)
def test_an_operator(statement, operator, becomes):
    assert (operator, becomes) in changes(statement)


@pytest.mark.parametrize("statement", ["y = f'{a + b}'", "y = lambda: a + b", "y = x", "y = 'a'"])
def test_what_no_operator_touches(statement):
    assert not changes(statement)


TWO = """
def one(a, b):
    c = a * b
    return c - a

def two(a, b):
    return a @ b
"""


def test_mutants_of_a_module():
    """One statement is changed, the rest of the source is not; edits elsewhere move no mutant."""
    dense = rules.of_file("ops/x.py", TWO, dense=True)
    assert [(m.before, m.line) for m in dense] == [
        ("c = a * b", 3), ("return c - a", 4), ("return a @ b", 7)
    ]  # fmt: skip
    for mutant in dense:
        lines = ast.unparse(ast.parse(TWO)).splitlines()
        different = [pair for pair in zip(lines, mutant.source.splitlines()) if len(set(pair)) > 1]
        assert [(a.strip(), b.strip()) for a, b in different] == [(mutant.before, mutant.after)]
    sparse = rules.of_file("ops/x.py", TWO, dense=False)
    assert [m.id.split("::")[1] for m in sparse] == ["one", "two"]
    edited = rules.of_file("ops/x.py", "import math\n" + TWO.replace("a @ b", "b @ a"), dense=True)
    assert [m.id for m in edited[:2]] == [m.id for m in dense[:2]]
    assert edited[2].id != dense[2].id


def test_errors_raised_are_left_alone():
    text = "def f(a):\n    raise ValueError(str(a + 1))\n\ndef g(a):\n    warn(str(a - 1))\n"
    assert not rules.of_file("ops/x.py", text, dense=True)


def test_every_mutant_is_another_program(mutants):
    assert len(mutants) >= 300
    assert len({m.id for m in mutants}) == len(mutants)
    plain = {}
    for mutant in mutants[::5]:
        source = mutant.source
        compile(source, mutant.file, "exec")
        if mutant.file not in plain:
            text = (rules.LIBRARY / mutant.file).read_text(encoding="utf-8")
            plain[mutant.file] = ast.unparse(ast.parse(text))
        assert source != plain[mutant.file]


def test_they_are_everywhere(mutants):
    """In every operation, layer, sampler, schedule, process, guidance rule, optimiser and stage of
    training: a bug in one of its methods at least."""
    inside = defaultdict(set)
    for mutant in mutants:
        file, function, *_ = mutant.id.split("::")
        for name in function.split("."):
            inside[file].add(name)
    everywhere = set().union(*inside.values())
    functions = {kind.__name__ for kind in descendants(Function) if "ldm_numpy" in kind.__module__}
    assert functions > {"Conv2d", "Attention", "GroupNorm", "MatMul"}
    stages = {kind.__name__ for kind in descendants(training.loop.Stage)}
    layers = {kind.__name__ for kind in descendants(nn.Module)} - {"ModuleList"}
    named = {f.__name__ for f in [*SCHEDULES.values(), *PROCESSES.values(), *SAMPLERS.values()]}
    rest = {"guide", "classifier_guide", "AdamW", "Muon", "EMA", "warmup_cosine", "log_likelihood"}
    # These only call others: a step that two samplers share, another sampler or schedule.
    calls = {"Reshape", "euler", "heun", "ddpm", "linear_sigmas"}
    wanted = (functions | layers | stages | named | rest) - calls
    assert sorted(wanted - everywhere) == []


def descendants(kind) -> set[type]:
    """All classes below one, of the library."""
    below = {sub for sub in kind.__subclasses__() if sub.__module__.startswith("ldm_numpy")}
    return below.union(*(descendants(sub) for sub in below))


def test_blind_ones_still_fit():
    """They are exact text: an edit of the library must take them along."""
    entries = load("blind.json", [])
    assert len(rules.blind(entries)) == len(entries) >= 30
    with pytest.raises(ValueError, match="occurs 0 times, not once"):
        rules.blind([{"file": "nn.py", "old": "no such line", "new": ""}])


def test_what_is_equivalent_is_said_why(mutants):
    """At most 3% of all, each with a reason, each still there."""
    equivalent = load("equivalent.json", {})
    assert equivalent.keys() <= {m.id for m in mutants}
    assert len(equivalent) <= 0.03 * len(mutants)
    assert all(len(reason) > 20 for reason in equivalent.values())


def test_a_sample_is_killed():
    """The whole run is `make test-planted`; these are the same mutants in every run."""
    command = [sys.executable, "-m", "tests.planted", "--sample", "12", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "12 of 12 killed" in done.stdout
