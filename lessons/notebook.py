"""python -m lessons.notebook LESSON ...: lessons as notebooks, lessons/05_normalisation.ipynb say.

The page's `output` fences and the figures that its own code draws are left out: the notebook makes
them anew.
"""

import argparse
import re
import sys
from pathlib import Path

import jupytext
import nbformat

from .run import FENCE, LESSONS, pages

FIRST = "%cd -q ..\nfrom ldm_numpy.backend import tune_cpu\n\ntune_cpu()"
FOLDED = re.compile(  # code; a fold cannot reach over cells
    r"^<details><summary>[^\n]*</summary>\n\n(```python\n.*?^```)\n\n</details>$", re.M | re.S
)


def notebook(path: Path) -> nbformat.NotebookNode:
    """A page as a notebook, not yet run, to lie beside the page."""
    page = FENCE.sub(lambda m: "" if m[1] == "output" else m[0], path.read_text(encoding="utf-8"))
    page = re.sub(rf"^!\[[^\]]*\]\(figures/{path.name[:2]}_[^)]*\)\n", "", page, flags=re.MULTILINE)
    page = FOLDED.sub(r"\1", page)
    page = re.sub(r"^```math\n(.*?)^```$", r"$$\n\1$$", page, flags=re.MULTILINE | re.DOTALL)
    book = jupytext.reads(page, fmt="md")
    book.cells.insert(0, nbformat.v4.new_code_cell(FIRST))
    book.metadata["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python",
    }  # fmt: skip
    return book


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lessons.notebook", description=__doc__)
    parser.add_argument("lessons", nargs="+", metavar="LESSON", help="its two digits: 05, say")
    known, chosen = pages(), parser.parse_args(arguments).lessons
    unknown = [name for name in chosen if name not in known]
    if unknown:
        print(f"error: no lesson {unknown[0]}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in chosen:
        path = known[name].with_suffix(".ipynb")
        nbformat.write(notebook(known[name]), path)
        print(f"wrote {path.relative_to(LESSONS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
