"""The operators that plant a bug, and the statements they are applied to.

All work on the syntax tree, so they survive edits. Each statement in scope has many mutations; one
of them is chosen by a hash of where it stands and what it says: the same in every run, and
unmoved by edits elsewhere.
"""

import ast
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[2] / "ldm_numpy"

# Every statement of these is in scope; of the other files one statement a function.
DENSE = ("ops/", "primitives.py", "optim.py", "diffusion/guidance.py", "diffusion/samplers.py")
SPARSE = ("diffusion/", "models/", "training/", "nn.py", "text.py", "data/", "checkpoint.py",
          "files.py", "pipeline.py", "editing.py", "attention_maps.py", "metrics.py",
          "parallel.py")  # fmt: skip
STEP_METHODS = {"backward", "step"}

SWAPPED_OPERATOR = {ast.Add: ast.Sub, ast.Sub: ast.Add}
SWAPPED_COMPARISON = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SWAPPED_NAME = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "ones": "zeros",
    "zeros": "ones", "floor": "ceil", "ceil": "floor", "sin": "cos", "cos": "sin",
    "zeros_like": "ones_like", "ones_like": "zeros_like",
}  # fmt: skip
DROPPED_CALL = {"sqrt", "exp", "log", "abs", "square", "tanh", "copy", "transpose", "swapaxes"}
TEXT_CALLS = {"replace", "split", "join", "encode", "decode", "isinstance", "getattr", "range",
              "zip", "cls", "apply"}  # fmt: skip


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


def changed(node: ast.AST, **fields) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def binary(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    kind = type(node.op)
    if kind in SWAPPED_OPERATOR:
        yield "sign", changed(node, op=SWAPPED_OPERATOR[kind]())
        yield "drop-term", node.left
        yield "drop-term", node.right if kind is ast.Add else ast.UnaryOp(ast.USub(), node.right)
    elif kind is ast.Mult:
        yield "drop-factor", node.left
        yield "drop-factor", node.right
    elif kind in (ast.Div, ast.FloorDiv):
        yield "drop-divisor", node.left
    elif kind is ast.MatMult:
        yield "swap-matmul", changed(node, left=node.right, right=node.left)
    elif kind is ast.Pow:
        yield "drop-power", node.left
    elif kind in (ast.BitAnd, ast.BitOr):
        yield "swap-logic", changed(node, op=ast.BitOr() if kind is ast.BitAnd else ast.BitAnd())


def call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = called(node)
    method = isinstance(node.func, ast.Attribute)
    if name in DROPPED_CALL:
        of_module = method and isinstance(node.func.value, ast.Name) and (
            node.func.value.id in {"np", "xp", "math"})  # fmt: skip
        if of_module or not method:
            if node.args:
                yield f"drop-{name}", node.args[0]
        else:
            yield f"drop-{name}", node.func.value
    if name in SWAPPED_NAME:
        field = "attr" if method else "id"
        yield "swap-name", changed(node, func=changed(node.func, **{field: SWAPPED_NAME[name]}))
    if name == "where" and len(node.args) == 3:
        yield "swap-branches", changed(node, args=[node.args[0], node.args[2], node.args[1]])
    elif len(node.args) == 2 and name not in TEXT_CALLS | set(SWAPPED_NAME) | {"add", "multiply"}:
        yield "swap-arguments", changed(node, args=node.args[::-1])
    of = getattr(node.func, "value", None)
    of_network = isinstance(of, ast.Name) and of.id in {"self", "ops"} and name != "save"
    if of_network and len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
        yield "skip-call", node.args[0]
    for i, keyword in enumerate(node.keywords):
        value = keyword.value
        new = None
        if keyword.arg == "axis" and isinstance(value, ast.Constant) and value.value is not None:
            new = ast.Constant(0 if value.value else -1)
        elif keyword.arg == "axis" and isinstance(value, ast.UnaryOp):
            new = ast.Constant(0)
        elif keyword.arg == "keepdims" and isinstance(value, ast.Constant):
            new = ast.Constant(not value.value)
        if new is not None:
            keywords = list(node.keywords)
            keywords[i] = changed(keyword, value=new)
            yield keyword.arg, changed(node, keywords=keywords)


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(operator, what the node becomes) for every operator that applies to this one node."""
    if isinstance(node, ast.BinOp):
        yield from binary(node)
    elif isinstance(node, ast.Call):
        yield from call(node)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Invert, ast.Not)):
        name = {ast.USub: "drop-minus", ast.Invert: "drop-mask-not", ast.Not: "drop-not"}
        if not isinstance(node.operand, ast.Constant):
            yield name[type(node.op)], node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield "comparison", changed(node, ops=[SWAPPED_COMPARISON[type(node.ops[0])]()])
    elif isinstance(node, ast.IfExp):
        yield "swap-branches", changed(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield "drop-transpose", node.value
    elif isinstance(node, ast.Constant) and type(node.value) is float and node.value:
        yield "constant", ast.Constant(2 * node.value)
    elif isinstance(node, ast.Slice):
        for name in ("lower", "upper"):
            bound = getattr(node, name)
            if bound is not None:
                one_more = ast.BinOp(bound, ast.Add(), ast.Constant(1))
                yield "off-by-one", changed(node, **{name: one_more})
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "swap-logic", changed(node, op=other)


def everywhere(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """All mutations of a tree: the tree anew, with one node changed."""
    if isinstance(node, (ast.JoinedStr, ast.Lambda)):
        return
    yield from variants(node)
    for name, value in ast.iter_fields(node):
        if name in ("targets", "target", "annotation"):
            continue
        if isinstance(value, ast.AST):
            for operator, new in everywhere(value):
                yield operator, changed(node, **{name: new})
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, ast.AST):
                    for operator, new in everywhere(item):
                        yield operator, changed(node, **{name: [*value[:i], new, *value[i + 1 :]]})


def of_statement(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    """All mutations of one assignment, return or call."""
    if isinstance(node, ast.AugAssign):
        target = changed(node.target, ctx=ast.Load())
        if type(node.op) in SWAPPED_OPERATOR:
            yield "sign", changed(node, op=SWAPPED_OPERATOR[type(node.op)]())
        if isinstance(node.target, ast.Name):
            yield "not-in-place", ast.Assign([node.target], node.value, lineno=node.lineno)
        yield "drop-update", ast.Expr(target)
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        first, *rest = node.value.elts
        if rest:
            swapped = changed(node.value, elts=[rest[0], first, *rest[1:]])
            yield "swap-returned", changed(node, value=swapped)
    yield from everywhere(node)


def digest(*words: str) -> int:
    return int(hashlib.sha256("\0".join(words).encode()).hexdigest()[:12], 16)


def functions(tree: ast.Module) -> Iterator[tuple[str, list[ast.stmt]]]:
    """(qualified name, its own statements in order), nested functions apart."""

    def visit(body, name):
        for node in body:
            if isinstance(node, ast.FunctionDef):
                inner = f"{name}.{node.name}" if name else node.name
                yield inner, list(own(node.body))
                yield from visit(node.body, inner)
            elif isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{name}.{node.name}" if name else node.name)
            else:
                for field in ("body", "orelse"):
                    inside = getattr(node, field, None)
                    if isinstance(inside, list):
                        yield from visit(inside, name)

    def own(body):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            yield node
            for field in ("body", "orelse", "finalbody"):
                yield from own(getattr(node, field, []))

    yield from visit(tree.body, "")


def chosen(file: str, function: str, node: ast.stmt) -> tuple[str, ast.stmt] | None:
    """The one mutation of a statement, None where no operator applies."""
    before = ast.unparse(node)
    if "Error(" in before or "warn" in before:
        return None
    by_operator: dict[str, list[ast.stmt]] = {}
    for operator, new in of_statement(node):
        if ast.unparse(new) != before:
            by_operator.setdefault(operator, []).append(new)
    if not by_operator:
        return None
    for crude in ("skip-call", "swap-arguments"):  # mostly a crash: where nothing subtler applies
        if len(by_operator) > 1:
            by_operator.pop(crude, None)
    key = digest(file, function, before)
    operator = sorted(by_operator)[key % len(by_operator)]
    several = by_operator[operator]
    return operator, several[key // 97 % len(several)]


def with_statement(tree: ast.Module, old: ast.stmt, new: ast.stmt) -> str:
    """The module's source with one statement replaced."""

    class Replace(ast.NodeTransformer):
        def visit(self, node):
            return new if node is old else self.generic_visit(node)

    whole = copy.deepcopy(tree, {id(old): old})  # all but the one statement is a copy
    return ast.unparse(ast.fix_missing_locations(Replace().visit(whole)))


def of_file(file: str, text: str, dense: bool) -> list[Mutant]:
    """The mutants of one module: of every statement, or of one in every function."""
    tree = ast.parse(text)
    found, seen = [], set()
    for function, statements in functions(tree):
        everything = dense or function.split(".")[-1] in STEP_METHODS
        candidates = []
        for node in statements:
            simple = isinstance(node, (ast.Assign, ast.AugAssign, ast.Return)) or (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            )
            choice = chosen(file, function, node) if simple else None
            if choice is not None:
                candidates.append((node, *choice))
        if not everything and candidates:
            candidates = [min(candidates, key=lambda c: digest(function, ast.unparse(c[0])))]
        for node, operator, new in candidates:
            before, after = ast.unparse(node), ast.unparse(new)
            name = f"{file}::{function}::{operator}::{digest(before, after):012x}"
            if name not in seen:
                seen.add(name)
                make = partial(with_statement, tree, node, new)
                found.append(Mutant(name, file, node.lineno, before, after, make))
    return found


def generated() -> list[Mutant]:
    """Every generated mutant, in the order of the files."""
    result = []
    for path in sorted(LIBRARY.rglob("*.py")):
        file = path.relative_to(LIBRARY).as_posix()
        if path.name != "__init__.py" or file == "training/__init__.py":
            dense, sparse = file.startswith(DENSE), file.startswith(SPARSE)
            if dense or sparse:
                result += of_file(file, path.read_text(encoding="utf-8"), dense)
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
