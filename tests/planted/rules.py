"""The statements that bugs are planted in, and which bug in each.

All works on the syntax tree, so it survives edits. A statement in scope has many mutations in each
group of operators; one of each group is chosen by a hash of where it stands and what it says: the
same in every run, and unmoved by edits elsewhere.
"""

import ast
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .operators import STEP_METHODS, changed, of_statement, of_structure

LIBRARY = Path(__file__).resolve().parents[2] / "ldm_numpy"

# Every statement of these is in scope; of the rest of the library one in six of each function.
DENSE = ("ops/", "primitives.py", "optim.py", "diffusion/guidance.py", "diffusion/samplers.py")
# Of these the module's constants too. Elsewhere they are choices: a batch size, a limit.
CONSTANTS = (*DENSE, "diffusion/", "data/captions.py")
HEADED = (ast.If, ast.While, ast.For, ast.ExceptHandler)
CRUDE = ("integer", "skip-call", "swap-arguments")  # mostly a crash: where nothing subtler applies


@dataclass(frozen=True)
class Mutant:
    """One planted bug. `id` is file::function::operator::hash of the statement and the change."""

    id: str
    file: str
    line: int
    before: str
    after: str
    make: Callable[[], str]

    @property
    def source(self) -> str:
        """Of the whole module, mutated; made when asked for, for that is what takes long."""
        return self.make()


def said(node: ast.AST) -> str:
    """The statement as one reads it; of one with a body its first line."""
    text = ast.unparse(node)
    return text.splitlines()[0] if isinstance(node, HEADED) else text


def digest(*words: str) -> int:
    return int(hashlib.sha256("\0".join(words).encode()).hexdigest()[:12], 16)


def functions(tree: ast.Module) -> Iterator[tuple[str, list[ast.AST], set[str]]]:
    """(qualified name, its own statements in order, its arguments), nested functions apart.

    The constants of the module count as a function without arguments.
    """

    def visit(body, name):
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{name}.{node.name}".removeprefix("."))
            elif isinstance(node, ast.FunctionDef):
                yield from inside(node, f"{name}.{node.name}".removeprefix("."))

    def inside(function, name):
        arguments = {a.arg for a in [*function.args.args, *function.args.kwonlyargs]}
        yield name, list(own(function.body)), arguments - {"self"}
        for node in own(function.body, nested=True):
            if isinstance(node, ast.FunctionDef):
                yield from inside(node, f"{name}.{node.name}")

    def own(body, nested=False):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                if nested:
                    yield node
                continue
            yield node
            for field in ("body", "handlers", "orelse", "finalbody"):
                yield from own(getattr(node, field, []), nested)

    yield from visit(tree.body, "")
    yield "<constants>", [n for n in tree.body if isinstance(n, (ast.Assign, ast.AnnAssign))], set()


def choice(key: int, mutations: list[tuple[str, ast.AST]]) -> tuple[str, ast.AST] | None:
    """One of them: first of the operators, then of what the operator makes."""
    by_operator: dict[str, list[ast.AST]] = {}
    for operator, new in mutations:
        by_operator.setdefault(operator, []).append(new)
    for crude in CRUDE:
        if len(by_operator) > 1:
            by_operator.pop(crude, None)
    if not by_operator:
        return None
    operator = sorted(by_operator)[key % len(by_operator)]
    several = by_operator[operator]
    return operator, several[key // 97 % len(several)]


def chosen(function: str, node: ast.AST, kept: set[str], key: int) -> tuple:
    """The mutation of each group, None where no operator applies or an error is put into words."""
    before = said(node)
    if "Error(" in before or "warn" in before:
        return None, None
    simple = isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    computed = of_statement(node) if simple else ()
    done = of_structure(function, node, kept) if simple or isinstance(node, HEADED) else ()
    return tuple(
        choice(key, [m for m in group if said(m[1]) != before]) for group in (computed, done)
    )


def with_statement(tree: ast.Module, old: ast.AST, new: ast.AST) -> str:
    """The module's source with one statement replaced."""

    class Replace(ast.NodeTransformer):
        def visit(self, node):
            return new if node is old else self.generic_visit(node)

    whole = copy.deepcopy(tree, {id(old): old})  # all but the one statement is a copy
    return ast.unparse(ast.fix_missing_locations(Replace().visit(whole)))


def saved(statements: list[ast.AST]) -> set[str]:
    """Names that a backward pass takes from what was saved."""
    from_saved = [n for n in statements if isinstance(n, ast.Assign)
                  and "self.saved" in ast.unparse(n.value)]  # fmt: skip
    return {n.id for a in from_saved for n in ast.walk(a.targets[0]) if isinstance(n, ast.Name)}


def of_function(name: str, mutations: list[tuple], everything: bool) -> Iterator[tuple]:
    """(statement, operator, what it becomes), of every statement or of one in six in each group;
    where no operator applies at all, nothing is returned."""
    found = False
    for group in (1, 2):
        some = [(m[0], *m[group]) for m in mutations if m[group] is not None]
        if not everything:
            some.sort(key=lambda m: digest(name, said(m[0])))
            some = some[: 1 + len(some) // 6]
        yield from some
        found = found or bool(some)
    for node, *_ in mutations:
        nothing = ast.unparse(node) in ("return", "return None")
        if not found and isinstance(node, ast.Return) and not nothing:
            found = True
            yield node, "returns-nothing", changed(node, value=None)


def of_file(file: str, text: str, dense: bool) -> list[Mutant]:
    """The mutants of one module: of every statement, or of one in six of each function."""
    tree = ast.parse(text)
    found, seen = [], set()
    for function, statements, arguments in functions(tree):
        if function == "<constants>" and not file.startswith(CONSTANTS):
            continue
        kept = arguments | saved(statements) if dense else set()
        everything = dense or function.split(".")[-1] in STEP_METHODS | {"<constants>"}
        keys = [digest(file, function, said(node)) for node in statements]
        mutations = [(node, *chosen(function, node, kept, key))
                     for node, key in zip(statements, keys, strict=True)]  # fmt: skip
        for node, operator, new in of_function(function, mutations, everything):
            before, after = said(node), said(new)
            name = f"{file}::{function}::{operator}::{digest(before, after):012x}"
            if (function, before, after) not in seen:
                seen.add((function, before, after))
                make = partial(with_statement, tree, node, new)
                found.append(Mutant(name, file, node.lineno, before, after, make))
    return found


def generated() -> list[Mutant]:
    """Every generated mutant, in the order of the files."""
    result = []
    for path in sorted(LIBRARY.rglob("*.py")):
        file = path.relative_to(LIBRARY).as_posix()
        result += of_file(file, path.read_text(encoding="utf-8"), file.startswith(DENSE))
    return result


def blind(entries: list[dict]) -> list[Mutant]:
    """The mutants a reviewer wrote as exact text: old, which occurs once, becomes new."""
    result = []
    for entry in entries:
        file = entry["file"].removeprefix("ldm_numpy/")
        text = (LIBRARY / file).read_text(encoding="utf-8")
        if text.count(entry["old"]) != 1:
            raise ValueError(f"{entry['file']}: {entry['old']!r} occurs {text.count(entry['old'])} "
                             "times, not once")  # fmt: skip
        line = text[: text.index(entry["old"])].count("\n") + 1
        name = f"{file}::blind::{digest(entry['old'], entry['new']):012x}"
        make = partial(text.replace, entry["old"], entry["new"])
        result.append(Mutant(name, file, line, entry["old"], entry["new"], make))
    return result
