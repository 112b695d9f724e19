"""The operators that plant a bug: each turns a node of the syntax tree into what it might have been
by mistake.

They are of two groups: what a statement computes (`of_statement`), and what it does and when
(`of_structure`).
"""

import ast
import copy
from collections.abc import Callable, Iterator

STEP_METHODS = {"forward", "backward", "step"}
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
IN_PLACE = {ast.Add: "__iadd__", ast.Sub: "__isub__", ast.Mult: "__imul__"}
DROPPED_CALL = {"sqrt", "exp", "log", "abs", "square", "tanh", "copy", "transpose", "swapaxes"}
TEXT_CALLS = {"replace", "split", "join", "encode", "decode", "isinstance", "getattr", "range",
              "zip", "cls", "apply"}  # fmt: skip


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


def minus_whole(node: ast.AST) -> bool:
    value = getattr(getattr(node, "operand", None), "value", None)
    return isinstance(node, ast.UnaryOp) and type(value) is int


def details(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """As `variants`: whole numbers, flags, padding, roots, and whatever a lambda computes."""
    if minus_whole(node):  # -2 means the same as -1 in many a place
        yield "integer", ast.Constant(0)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield "integer", ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield "flag", ast.Constant(not node.value)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        root = ast.BinOp(node.right, ast.Pow(), ast.Constant(0.5))
        yield "root-of-divisor", changed(node, right=root)
    elif isinstance(node, ast.keyword) and "pad" in (node.arg or ""):
        yield "pad", changed(node, value=ast.BinOp(node.value, ast.Add(), ast.Constant(1)))
    elif isinstance(node, ast.Lambda):
        for operator, new in everywhere(node.body, variants):
            yield operator, changed(node, body=new)


Rule = Callable[[ast.AST], Iterator[tuple[str, ast.AST]]]


def everywhere(node: ast.AST, rule: Rule) -> Iterator[tuple[str, ast.AST]]:
    """All mutations of a tree by a rule for one node: the tree anew, with that node changed."""
    yield from rule(node)
    if isinstance(node, (ast.JoinedStr, ast.Lambda)) or minus_whole(node):
        return
    if isinstance(node, ast.keyword) and node.arg == "flush":  # when a line is seen, not what
        return
    for name, value in ast.iter_fields(node):
        if name in ("targets", "target", "annotation"):
            continue
        if isinstance(value, ast.AST):
            for operator, new in everywhere(value, rule):
                yield operator, changed(node, **{name: new})
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, ast.AST):
                    for operator, new in everywhere(item, rule):
                        yield operator, changed(node, **{name: [*value[:i], new, *value[i + 1 :]]})


def of_statement(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    """What an assignment, a return or a call computes: all its mutations."""
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
    yield from everywhere(node, variants)


def negated(value: ast.expr) -> ast.expr:
    """The first result that is one with its sign flipped, the planted bug of planted bugs."""
    if isinstance(value, ast.Tuple):
        if not value.elts:
            return value
        first, *rest = value.elts
        if isinstance(first, ast.Constant):
            return changed(value, elts=[first, *negated(changed(value, elts=rest)).elts])
        return changed(value, elts=[negated(first), *rest])
    return ast.UnaryOp(ast.USub(), value)


def in_place(value: ast.expr, kept: set[str]) -> Iterator[ast.expr]:
    """`x * y` written over x, an array that is the caller's or saved for the backward pass."""

    def rule(node):
        name = IN_PLACE.get(type(getattr(node, "op", None)))
        if name and isinstance(node.left, ast.Name) and node.left.id in kept:
            yield "in-place", ast.Call(ast.Attribute(node.left, name, ast.Load()), [node.right], [])

    for _, new in everywhere(value, rule):
        yield new


def of_structure(function: str, node: ast.AST, kept: set[str]) -> Iterator[tuple[str, ast.AST]]:
    """What a statement does, and when: all its mutations of that kind.

    kept: names of arrays that the function may not write to.
    """
    if isinstance(node, (ast.If, ast.While)):
        if isinstance(node.body[0], ast.Raise):
            yield "never-raises", changed(node, test=ast.Constant(False))
            return
        yield "condition", changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        yield from headed(node, "test")
    elif isinstance(node, ast.For):
        yield from headed(node, "iter")
    elif isinstance(node, ast.ExceptHandler):
        yield "not-caught", changed(node, body=[ast.Raise()])
    else:
        if isinstance(node, ast.Expr):
            yield "drop-call", ast.Pass()
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            yield "drop-write", ast.Pass()
        value = getattr(node, "value", None)
        if function.split(".")[-1] in STEP_METHODS and value is not None:
            if isinstance(node, ast.Return):
                yield "negated", changed(node, value=negated(value))
            for new in in_place(value, kept):
                yield "in-place", changed(node, value=new)
        yield from everywhere(node, details)


def headed(node: ast.stmt, field: str) -> Iterator[tuple[str, ast.AST]]:
    for rule in (variants, details):
        for operator, new in everywhere(getattr(node, field), rule):
            yield operator, changed(node, **{field: new})
