"""The course: pages that run. See 00_map.md; `python -m lessons.run` runs them."""

import inspect
import textwrap


def source(thing) -> None:
    """Print the source of a function, method or class of the library, without its docstring."""
    lines = textwrap.dedent(inspect.getsource(thing)).rstrip().split("\n")
    quotes = [i for i, line in enumerate(lines) if '"""' in line]
    if inspect.getdoc(thing) and quotes:
        first = quotes[0]
        last = first if lines[first].count('"""') == 2 else quotes[1]
        lines = lines[:first] + lines[last + 1 :]
        if lines[first : first + 1] == [""]:
            del lines[first]
    print("\n".join(lines))
