"""README's table of files is right, and the library's size is known."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ldm_numpy"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def code_lines(path: Path) -> int:
    """Lines that hold code: without blank lines, comments and docstrings."""
    source = path.read_text(encoding="utf-8")
    lines = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            text = node.body[0]
            lines.difference_update(range(text.lineno, text.end_lineno + 1))
    return len(lines)


def library() -> dict[str, int]:
    """Code lines of every file of the library that holds any, by its path inside the package."""
    counts = {str(p.relative_to(PACKAGE)): code_lines(p) for p in sorted(PACKAGE.rglob("*.py"))}
    return {name: n for name, n in counts.items() if n}


def test_the_table_of_files_is_complete_and_counts_are_right():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([\w/]+\.py)`\]\(ldm_numpy/([\w/]+\.py)\) \| (\d+) \|", readme, re.M)
    assert all(shown == linked for shown, linked, _ in rows)
    assert {name: int(n) for name, _, n in rows} == library()


def test_imports_point_upward_in_the_table():
    """Each file imports only from files above it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| \[`([\w/]+\.py)`\]", readme, re.M)
    place = {name: i for i, name in enumerate(order)}
    for name in order:
        path = PACKAGE / name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
                for target in [base, *(base / alias.name for alias in node.names)]:
                    found = [target.with_suffix(".py"), target / "__init__.py"]
                    for file in (str(f.relative_to(PACKAGE)) for f in found if f.is_file()):
                        if file in place and not file.endswith("__init__.py"):
                            assert place[file] < place[name], f"{name} imports {file}"


def test_the_size_of_the_library_is_reported(capsys):
    total = sum(library().values())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{total:,} lines of code in all" in readme
    with capsys.disabled():
        print(f"\nthe library has {total:,} lines of code", end="")
    assert total > 0


def test_the_words_of_the_table_stay_true():
    """Everything README links to is there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links and all((ROOT / link).exists() for link in links)
