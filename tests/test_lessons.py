"""The lessons: the form of each page, the runner, the exercises and their checker, the notebooks.

That each page's code runs and prints what the page says is for `python -m lessons.run --check`.
"""

import ast
import inspect
import itertools
import re
import sys
import textwrap
from types import SimpleNamespace

import nbclient
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ldm_numpy import optim
from lessons import check, notebook, plots, run
from lessons import source as show_source

PAGES = run.pages()
ALL = [(lesson, e) for lesson in PAGES for e in check.exercises(lesson)]
NAMES = [e.file for _, e in ALL]
SECTIONS = (
    "**Question.**", "## What goes wrong", "## What to remember", "## Exercises", "## Sources"
)  # fmt: skip


def text_of(lesson):
    return PAGES[lesson].read_text(encoding="utf-8")


def prose(page):
    """A page without its fences."""
    return run.FENCE.sub("", page)


@pytest.mark.parametrize("lesson", PAGES)
def test_a_page_has_every_part(lesson):
    page = text_of(lesson)
    places = [page.find(part) for part in SECTIONS]
    assert -1 not in places and places == sorted(places)
    assert 150 <= len(page.splitlines()) <= 300
    remember = page.split("## What to remember")[1].split("##")[0]
    assert re.findall(r"^(\d)\. ", remember, re.M) == ["1", "2", "3"]
    assert re.search(r"^ *source\(", page, re.M), "no source of the library is shown"
    drawn = set(re.findall(r"\]\((figures/[^)]+)\)", page))
    assert len(drawn) >= 2
    assert "!" not in re.sub(r"!\[|<!--|`[^`]*`|\$[^$]*\$", "", prose(page)), "an exclamation mark"


@pytest.mark.parametrize("lesson", PAGES)
def test_links_and_figures_exist(lesson):
    page = text_of(lesson)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", prose(page)):
        if not target.startswith("https://"):
            assert (run.LESSONS / target).resolve().exists(), target
    for name in (f.name for f in (run.LESSONS / "figures").glob(f"{lesson}_*")):
        assert f"](figures/{name})" in page, f"{name} is not shown"


@pytest.mark.parametrize("page", [*PAGES.values(), run.LESSONS / "experiments.md"],
                         ids=[*PAGES, "experiments"])  # fmt: skip
def test_each_figure_is_described_and_has_a_caption(page):
    """Under it, or under the figure that follows at once."""
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^!\[(.*)\]\(figures/.*\)\n\n(?=(\*[^*\s]|!\[))", text, re.M)
    assert len(shown) == text.count("](figures/")
    assert all(len(description.split()) >= 3 for description, _ in shown)


@pytest.mark.parametrize("lesson", PAGES)
def test_mathematics_survives_github(lesson):
    """Within $...$, Markdown takes a backslash before punctuation, and may take _ for emphasis."""
    page = re.sub(r"`[^`]*`", "", prose(text_of(lesson)))
    for formula in re.findall(r"(?<!\$)\$([^$\n]+)\$", page):
        assert not re.search(r"\\[^a-zA-Z]|[^\w\s]_|\*|^\s|\s$", formula), formula


@pytest.mark.parametrize("lesson", PAGES)
def test_no_private_name_is_used(lesson):
    for block in run.fences(text_of(lesson)):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            names = [node.attr] if isinstance(node, ast.Attribute) else []
            if isinstance(node, ast.Import | ast.ImportFrom):
                names += [part for alias in node.names for part in alias.name.split(".")]
                names += (getattr(node, "module", None) or "").split(".")
            assert not any(re.match(r"_[^_]", name) for name in names), names


def code_lines(text):
    """The lines of code, each statement's in one: without blank lines, comments, docstrings."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # an output of source(), say
        return []
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            node.body[:1] = [] if node.body[1:] else [ast.Pass()]
    return [line.strip() for line in ast.unparse(tree).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def library_runs():
    """All runs of eleven lines in the library, each with the files that hold it."""
    runs = {}
    for file in (run.ROOT / "ldm_numpy").rglob("*.py"):
        lines = code_lines(file.read_text(encoding="utf-8"))
        for i in range(len(lines) - 10):
            runs.setdefault(tuple(lines[i : i + 11]), file.name)
    return runs


def copied(text, runs):
    lines = code_lines(text)
    found = (runs.get(tuple(lines[i : i + 11])) for i in range(len(lines) - 10))
    return [name for name in found if name]


@pytest.mark.parametrize("lesson", PAGES)
def test_no_more_than_ten_lines_of_the_library_are_copied(lesson, library_runs):
    """Longer code is shown with source(), live."""
    for block in run.fences(text_of(lesson)):
        if block.language == "python":
            assert not copied(block.text, library_runs)


def test_a_copy_is_found_whatever_its_layout(library_runs):
    source = inspect.getsource(optim.AdamW)
    other = ast.unparse(ast.parse(source)).replace("\n", "  # no\n\n")
    assert copied(source, library_runs) == copied(f"x = 1\n{other}\ny = 2", library_runs)
    assert copied(source, library_runs)[0] == "optim.py"
    assert not copied("x = 1\n" * 12, library_runs)


def test_each_lesson_leads_to_its_neighbours():
    order = list(PAGES.values())
    for before, after in itertools.pairwise(order):
        assert f"({after.name})" in before.read_text(encoding="utf-8").split("**Question")[0]
        assert f"({before.name})" in after.read_text(encoding="utf-8").split("**Question")[0]


# The runner --------------------------------------------------------------------------------

LESSON = """# Title

```python
x = 3
print("x =", x / 7)
```

```output
x = 0.4286
```
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "LESSONS", tmp_path)
    (tmp_path / "figures").mkdir()
    path = tmp_path / "05_test.md"
    path.write_text(LESSON)
    yield path
    plots.folder = None


def test_a_page_that_is_up_to_date_stays_as_it_is(page):
    assert run.run(page, check=True) == [] == run.run(page, check=False)
    assert page.read_text() == LESSON


@pytest.mark.parametrize(("a", "b"), [("0.4286", "0.5286"), ('("x =', '("y ='), ("x = 3", "x = 4"),
                                      ("```output\nx = 0.4286\n```\n", "")])  # fmt: skip
def test_a_stale_output_is_found_and_renewed(page, a, b):
    page.write_text(LESSON.replace(a, b))
    stale = run.run(page, check=True)
    assert len(stale) == 1 and "05_test.md:4" in stale[0]
    assert page.read_text() == LESSON.replace(a, b)
    run.run(page, check=False)
    assert run.run(page, check=True) == []


def test_output_that_no_longer_comes_is_stale(page):
    page.write_text(LESSON.replace("print", "len"))
    with pytest.raises(ValueError, match="TypeError"):
        run.run(page, check=True)
    page.write_text(LESSON.replace('print("x =", x / 7)', "pass"))
    assert len(run.run(page, check=True)) == 1
    run.run(page, check=False)
    assert "```output" not in page.read_text()


def test_an_error_names_its_line(page):
    page.write_text(LESSON.replace("x / 7", "x / 0"))
    with pytest.raises(ValueError, match=r"05_test\.md:5: ZeroDivisionError"):
        run.run(page, check=True)


@pytest.mark.parametrize(("a", "b", "rtol", "expected"), [
    ("1.234 m", "1.235 m", None, False), ("1.234 m", "1.334 m", None, True),
    ("1.234 m", "1.334 m", 0.2, False), ("12 of 20", "13 of 20", None, True),
    ("12 of 20", "13 of 20", 0.2, False), ("1e-9", "2e-8", None, False),
    ("1e-9", "4e-8", None, True), ("4e-12", "9e-7", None, True), ("0e+00", "0.0e+00", None, False),
    ("a 1\ndef f(x):\n    return 2", "a 1\ndef f(x):\n    return 3", 0.9, True),
    ("a 1\ndef f(x):\n    return 2", "a 9\ndef f(x):\n    return 2", float("inf"), False),
    ("a  b", "a b", None, False), ("conv2d", "conv3d", None, True), ("-0.5", "0.5", None, True),
    ("1.0", "nan", None, True),
])  # fmt: skip
def test_outputs_are_compared_by_words_and_numbers(a, b, rtol, expected):
    assert run.differs(a, b, rtol) is expected


def test_figures_are_compared_by_their_looks(page):
    draw = LESSON.replace("x = 3", "from lessons import plots\nfrom PIL import Image\nx = 3\n"
                          'plots.save(Image.new("L", (8, 8), GREY), "05_x")')  # fmt: skip
    page.write_text(draw.replace("GREY", "100"))
    assert run.run(page, check=True) == ["figures/05_x.png is not what 05_test.md draws"]
    run.run(page, check=False)
    page.write_text(draw.replace("GREY", "101"))
    assert run.run(page, check=True) == []
    page.write_text(draw.replace("GREY", "150"))
    assert len(run.run(page, check=True)) == 1
    page.write_text(LESSON)
    assert run.run(page, check=True) == ["figures/05_x.png: no code of 05_test.md draws it"]


def test_a_line_that_has_gone_is_noticed(page):
    code = """from lessons import plots
figure, ax = plots.panels(height=2)
ax.plot([0, 1, 2], [1, 0, 2], alpha=1)
plots.save(figure, "05_x")"""
    page.write_text(LESSON.replace("x = 3", f"x = 3\n{code}"))
    run.run(page, check=False)
    assert run.run(page, check=True) == []
    page.write_text(page.read_text().replace("alpha=1", "alpha=0"))
    assert run.run(page, check=True) == ["figures/05_x.png is not what 05_test.md draws"]


def test_a_figure_of_a_training_may_look_a_little_different(page):
    code = """from lessons import plots
figure, ax = plots.panels(height=2)
ax.plot([0, 1, 2], [1, 0, 2.0])
plots.save(figure, "05_x", of_run=True)"""
    page.write_text(LESSON.replace("x = 3", f"x = 3\n{code}"))
    run.run(page, check=False)
    page.write_text(page.read_text().replace("0, 2.0", "0, 1.9"))
    assert run.run(page, check=True) == []
    drawn = page.read_text()
    page.write_text(drawn.replace(", of_run=True", ""))
    assert len(run.run(page, check=True)) == 1
    for change in ("2.0], alpha=0", "2.0], linestyle='none'", "2.0], color='#d55e00'"):
        page.write_text(drawn.replace("1.9]", change))
        assert "2.0]" in page.read_text() and len(run.run(page, check=True)) == 1, change


def test_a_new_title_is_written_also_of_a_training(page):
    code = """from lessons import plots
figure, ax = plots.panels(height=2)
ax.plot([0, 1, 2], [1, 0, 2])
ax.set_title("loss")
plots.save(figure, "05_x", of_run=True)"""
    page.write_text(LESSON.replace("x = 3", f"x = 3\n{code}"))
    assert len(run.run(page, check=False)) == 1 and run.run(page, check=False) == []
    before = (run.LESSONS / "figures" / "05_x.png").read_bytes()
    page.write_text(page.read_text().replace('"loss"', '"less"'))
    assert run.run(page, check=True) == []
    assert run.run(page, check=False) == ["figures/05_x.png is not what 05_test.md draws"]
    assert (run.LESSONS / "figures" / "05_x.png").read_bytes() != before


OF_RUN = [name for page in PAGES.values() for name in re.findall(
    r'"(\w+)", of_run=True', page.read_text(encoding="utf-8"))]  # fmt: skip


@pytest.mark.parametrize("name", OF_RUN)
@pytest.mark.parametrize("colour", ["white", "its own", "black"])
def test_a_figure_of_a_run_that_shows_nothing_is_noticed(tmp_path, name, colour):
    kept, empty = run.LESSONS / "figures" / f"{name}.png", tmp_path / "empty.png"
    with Image.open(kept) as picture:
        picture = picture.convert("RGB")
    most = max(picture.getcolors(2**20))[1]
    Image.new("RGB", picture.size, most if colour == "its own" else colour).save(empty)
    assert run.alike(kept, kept, of_run=True)
    assert not run.alike(empty, kept, of_run=True) and not run.alike(kept, empty, of_run=True)


def test_an_output_without_code_is_stale(page):
    page.write_text(LESSON + "\n```output\nThe loss is 17.3\n```\n")
    assert run.run(page, check=True) == ["05_test.md:13: no code stands before this output"]


@pytest.mark.parametrize("option", ["rtol=2", "rtol=1e9", "rtol", "loose", "rtol=0.2 any"])
def test_a_tolerance_that_makes_no_sense_is_refused(page, option):
    page.write_text(LESSON.replace("```output", f"```output {option}"))
    with pytest.raises(ValueError, match="write rtol="):
        run.run(page, check=True)


def test_large_figures_are_refused():
    noise = np.random.default_rng(0).integers(0, 256, (500, 500), dtype=np.uint8)
    with pytest.raises(ValueError, match="at most 150,000"):
        plots.save(Image.fromarray(noise), "05_x")


def test_a_figure_is_as_wide_as_the_page():
    figure, axes = plots.panels(1, 2)
    assert isinstance(figure, Figure) and len(axes) == 2
    assert figure.get_size_inches()[0] == plots.WIDTH


def test_source_leaves_out_the_docstring(capsys):
    show_source(run.tolerance)
    show_source(run.differs)
    printed = capsys.readouterr().out
    assert "def tolerance" in printed and "def differs" in printed and '"""' not in printed


@pytest.mark.parametrize("arguments", [["99"], ["05", "nothing"]])
def test_an_unknown_lesson_is_named(arguments, capsys):
    assert run.main(arguments) == 2
    assert f"no lesson {arguments[-1]}" in capsys.readouterr().err
    assert notebook.main(arguments) == 2


@pytest.mark.parametrize(("lesson", "course", "failed", "words"), [
    (20.0, 2, 0, "of processors   40.0 s  0 failed"),
    (61.0, 2, 1, "too slow: at most 60 s of processors"),
    (29.0, 17, 1, "of processors  493.0 s  0 failed, and too slow: at most 480 s of processors"),
])  # fmt: skip
def test_what_takes_too_long_fails(monkeypatch, capsys, lesson, course, failed, words):
    """By the processors' time of a lesson, and of the whole course."""
    clock = itertools.count()
    monkeypatch.setattr(run, "processor_seconds", lambda: (next(clock) + 1) // 2 * lesson)
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0))
    assert run.main(list(PAGES)[:course]) == failed
    assert words in capsys.readouterr().out


# Exercises ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", PAGES)
def test_a_lesson_has_two_to_four_exercises(lesson):
    files = [e.file for e in check.exercises(lesson)]
    assert 2 <= len(files) <= 4
    assert files == sorted(p.stem for p in check.EXERCISES.glob(f"{lesson}_*.py"))
    page = text_of(lesson)
    assert all(f"(exercises/{file}.py)" in page for file in files)
    assert "<details><summary>Answer</summary>" in page


@pytest.mark.parametrize(("lesson", "exercise"), ALL, ids=NAMES)
def test_the_solution_is_accepted(lesson, exercise):
    assert check.check(exercise, exercise.solution) == []


@pytest.mark.parametrize(("lesson", "exercise"), ALL, ids=NAMES)
def test_the_blank_raises(lesson, exercise):
    text = (check.EXERCISES / f"{exercise.file}.py").read_text(encoding="utf-8")
    assert text.count("raise NotImplementedError") == 1
    assert re.search(r"# About \d+ lines?\b", text)
    function = getattr(check.load(exercise.file), exercise.function)
    assert check.check(exercise, function) == ["not written yet"]


@pytest.mark.parametrize(("lesson", "exercise"), ALL, ids=NAMES)
def test_classic_wrong_answers_get_their_hint(lesson, exercise):
    assert len(exercise.wrong) >= 2
    for hint, mistake in exercise.wrong.items():
        assert check.check(exercise, mistake)[-1] == f"hint: {hint}"


DOUBLE = check.Exercise(
    "05_1", "double", lambda x, gy: (2 * x, 2 * gy), lambda rng: {"x": rng.random(3),
    "gy": rng.random(3)}, ("y", "gx"), {"twice, not squared": lambda x, gy: (x**2, 2 * gy)},
)  # fmt: skip


def in_place(x, gy):
    x *= 2
    return x, 2 * gy


@pytest.mark.parametrize(("answer", "complaint"), [
    (lambda x, gy: 2 * x, "1 results came, 2 should: y, gx"),
    (lambda x, gy: (2 * x, None), "gx is None"),
    (lambda x, gy: (2 * x[:2], 2 * gy), "y has shape (2,); (3,) is right"),
    (lambda x, gy: (2 * x, gy), "gx is wrong: relative error 5.0e-01"),
    (lambda x, gy: (2 * x, gy / 0), "gx is wrong: relative error inf"),
    (lambda x: x, "TypeError"),
    (in_place, "changes its argument x"),
    (lambda x, gy: ("a", "b"), "shape"),
    (lambda x, gy: (x, {"a": 1}), "shape"),
    (lambda x, gy: sys.exit(3), "SystemExit"),
    (lambda x, gy: (2j * x, 2 * gy), "holds complex128"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_the_checker_says_what_is_wrong(answer, complaint):
    assert complaint in check.check(DOUBLE, answer)[0]


SCALAR = check.Exercise(
    "05_1", "total", lambda x: x.sum(), lambda rng: {"x": rng.random(3)}, ("y",),
    {"all of them": lambda x: x[0]},
)  # fmt: skip


@pytest.mark.parametrize("answer", ["0.3", {"y": 1}, len, object(), [1, 2], (1.0, 2.0), None])
def test_an_answer_of_any_kind_is_refused(answer):
    assert check.check(SCALAR, lambda x: answer)
    assert check.check(SCALAR, lambda x: float(x.sum())) == []


def test_a_list_is_an_array():
    listed = check.Exercise("05_1", "double", lambda x: 2 * x, DOUBLE.inputs, ("y",), {})
    listed.inputs = lambda rng: {"x": rng.random(3)}
    assert check.check(listed, lambda x: [2 * value for value in x]) == []


def test_right_and_wrong_results_are_told_apart():
    complaints = check.check(DOUBLE, lambda x, gy: (x**2, 2 * gy))
    assert complaints[1:] == ["gx: right", "hint: twice, not squared"]


def test_the_vector_jacobian_check_finds_what_the_comparison_cannot():
    """Where the solution itself is wrong, the check by differences says so."""
    wrong = check.Exercise("05_1", "square", lambda x, gy: x * gy, lambda rng: {
        "x": rng.random(3), "gy": rng.random(3)}, ("gx",), {}, lambda x: x**2, ("x",))  # fmt: skip
    assert "<gy, J v>" in check.check(wrong, wrong.solution)[0]


def test_the_checker_from_the_command_line(tmp_path, monkeypatch, capsys):
    for unknown in ("99", "../x"):
        assert check.main([unknown]) == 2
        assert re.search(r"no exercises for lesson .*: there are 00, 01", capsys.readouterr().err)
    assert check.main(["05", "9"]) == 2 and "exercises 1 to 3" in capsys.readouterr().err
    assert check.main(["05", "1"]) == 1 and "not written yet" in capsys.readouterr().out
    answer = """
        from lessons.checks.lesson_05 import group_norm
    """
    (tmp_path / "05_1_group_norm.py").write_text(textwrap.dedent(answer))
    (tmp_path / "05_2_layer_norm_backward.py").write_text("def layer_norm_backward(")
    monkeypatch.setattr(check, "EXERCISES", tmp_path)
    assert check.main(["05", "1"]) == 0 and "05_1_group_norm: right" in capsys.readouterr().out
    assert check.main(["05", "2"]) == 1 and "SyntaxError" in capsys.readouterr().out
    (tmp_path / "05_3_group_norm_backward.py").write_text("undefined")
    assert check.main(["05", "3"]) == 1 and "NameError" in capsys.readouterr().out


# Notebooks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lesson", PAGES)
def test_a_notebook_has_the_same_code(lesson):
    book = notebook.notebook(PAGES[lesson])
    code = [c.source for c in book.cells if c.cell_type == "code"]
    page = [f.text.rstrip() for f in run.fences(text_of(lesson)) if f.language == "python"]
    assert code[1:] == page
    words = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    assert not any(words.count(f"```{kind}") for kind in ("output", "math", "python"))
    assert f"(figures/{lesson}_" not in words
    assert words.count("<details>") == text_of(lesson).count("<summary>Answer")


@pytest.mark.slow
@pytest.mark.parametrize("lesson", PAGES)
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs(lesson):
    book = notebook.notebook(PAGES[lesson])
    beside = {"metadata": {"path": str(run.LESSONS)}}
    nbclient.NotebookClient(book, timeout=300, resources=beside).execute()
    shown = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
    assert any("image/png" in o.get("data", {}) for o in shown)
