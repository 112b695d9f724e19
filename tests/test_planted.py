"""The rules that plant bugs, and a sample of the bugs: each turns a test red."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ldm_numpy import nn, training
from ldm_numpy.diffusion import PROCESSES, SAMPLERS, SCHEDULES
from ldm_numpy.function import Function

from .planted import operators, rules
from .planted.run import load

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutants():
    return rules.generated()


def changes(statement: str) -> set[tuple[str, str]]:
    """All that the rules make of a statement: (operator, what it becomes)."""
    (node,) = ast.parse(statement).body
    found = [*operators.of_statement(node), *operators.of_structure("A.forward", node, {"x"})]
    return {(operator, ast.unparse(new)) for operator, new in found}


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
        ("y = f(1, x)", "integer", "y = f(2, x)"),
        ("y = f(x, keep=True)", "flag", "y = f(x, keep=False)"),
        ("y = a / b", "root-of-divisor", "y = a / b ** 0.5"),
        ("y = f(x, padding=p)", "pad", "y = f(x, padding=p + 1)"),
        ("y = lambda a, b: a + b", "sign", "y = lambda a, b: a - b"),
        ("y = x * b", "in-place", "y = x.__imul__(b)"),
        ("y = (x + b) / 2", "in-place", "y = x.__iadd__(b) / 2"),
        ("return a", "negated", "return -a"),
        ("return (None, a, b)", "negated", "return (None, -a, b)"),
        ("ema.update(x)", "drop-call", "pass"),
        ("weights[...] = x", "drop-write", "pass"),
        ("if a < b:\n    f()", "comparison", "if a >= b:\n    f()"),
        ("if a:\n    f()", "condition", "if not a:\n    f()"),
        ("if a:\n    raise E", "never-raises", "if False:\n    raise E"),
        ("while a and b:\n    f()", "swap-logic", "while a or b:\n    f()"),
        ("for a in range(1, b):\n    f()", "integer", "for a in range(2, b):\n    f()"),
    ],
)
def test_an_operator(statement, operator, becomes):
    assert (operator, becomes) in changes(statement)


@pytest.mark.parametrize("statement", ["y = f'{a + 1}'", "y = x", "y = 'a'", "for a in b: c = d"])
def test_what_no_operator_touches(statement):
    assert not changes(statement)


def test_what_is_caught_is_thrown_on():
    (node,) = ast.parse("try:\n    a = 1\nexcept E:\n    b = 2").body
    ((operator, new),) = operators.of_structure("f", node.handlers[0], set())
    assert (operator, ast.unparse(new)) == ("not-caught", "except E:\n    raise")


def test_only_what_must_not_be_written_is_written():
    """`a * b` is written over a where the array is an argument or was saved, nowhere else."""
    text = """
class A:
    def backward(self, gy):
        (x,) = self.saved
        a = 2 * x
        return [x * gy, gy * x, a * x]
"""
    found = set()
    for function, statements, arguments in rules.functions(ast.parse(text)):
        kept = arguments | rules.saved(statements)
        for node in statements:
            made = operators.of_structure(function, node, kept)
            found |= {ast.unparse(new) for operator, new in made if operator == "in-place"}
    assert found == {
        "return [x.__imul__(gy), gy * x, a * x]", "return [x * gy, gy.__imul__(x), a * x]"
    }  # fmt: skip


TWO = """
LIMIT = 3.0

def one(a, b):
    c = a * b
    if c > 2:
        c += b
    return c - a

def two(a, b):
    return a @ b

def three(self):
    return self.d
"""


def test_mutants_of_a_module():
    """One statement is changed, the rest of the source is not; edits elsewhere move no mutant."""
    dense = rules.of_file("ops/x.py", TWO, dense=True)
    assert {(m.before, m.line) for m in dense} == {
        ("LIMIT = 3.0", 2), ("c = a * b", 5), ("if c > 2:", 6), ("c += b", 7),
        ("return c - a", 8), ("return a @ b", 11), ("return self.d", 14),
    }  # fmt: skip
    for mutant in dense:
        lines = ast.unparse(ast.parse(TWO)).splitlines()
        different = [pair for pair in zip(lines, mutant.source.splitlines()) if len(set(pair)) > 1]
        assert [(a.strip(), b.strip()) for a, b in different] == [(mutant.before, mutant.after)]
    sparse = rules.of_file("ops/x.py", TWO, dense=False)
    counts = Counter(m.id.split("::")[1] for m in sparse)
    assert counts == {"<constants>": 1, "one": 2, "two": 1, "three": 1}  # one's: of each group
    assert not [m for m in rules.of_file("nn.py", TWO, dense=False) if "constants" in m.id]
    edited = rules.of_file("ops/x.py", "import math\n" + TWO.replace("a @ b", "b @ a"), dense=True)
    moved = {m.id for m in dense} ^ {m.id for m in edited}
    assert len(moved) == 2 and all("::two::" in name for name in moved)


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
    """In the forward and the backward pass of every operation, in every layer, sampler, schedule,
    process, guidance rule, optimiser and stage of training, and nearly every function there is."""
    inside = {tuple(m.id.split("::")[:2]) for m in mutants}
    passes = {(f.__module__, f"{f.__qualname__}.{name}")
              for f in descendants(Function) for name in ("forward", "backward")
              if name in vars(f)}  # fmt: skip
    assert ("ldm_numpy.ops.conv", "Conv2d.backward") in passes and len(passes) > 60
    passes = {(name.removeprefix("ldm_numpy.").replace(".", "/") + ".py", f) for name, f in passes}
    assert sorted(passes - inside) == []
    words = {word for _, function in inside for word in function.split(".")}
    stages = {kind.__name__ for kind in descendants(training.loop.Stage)}
    layers = {kind.__name__ for kind in descendants(nn.Module)} - {"ModuleList"}
    named = {f.__name__ for f in [*SCHEDULES.values(), *PROCESSES.values(), *SAMPLERS.values()]}
    rest = {"guide", "AdamW", "Muon", "EMA", "warmup_cosine", "log_likelihood"}
    assert sorted((stages | layers | named | rest) - words) == []
    without = []
    for path in rules.LIBRARY.rglob("*.py"):
        file = path.relative_to(rules.LIBRARY).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        without += [name for name, *_ in rules.functions(tree)
                    if name != "<constants>" and (file, name) not in inside]  # fmt: skip
    assert len(without) < 30, without  # they only name a type, raise, yield or keep an argument


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
