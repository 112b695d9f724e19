"""python tests/make_cupy_names.py: take the names and parameters of CuPy into cupy_names.json.

Run it where CuPy is installed (`pip install cupy-cuda12x`: it imports without a GPU). The stand-in
of strict_backend.py offers what this file lists, and nothing else. An entry is "ufunc", "type",
"constant", "module" or "attribute", or the list of parameters, in order; "*" stands before those
that need their keyword, "..." for any number of arguments and "**" for any keyword.
"""

import importlib
import inspect
import json
import re
from pathlib import Path

MODULES = (
    "cupy",
    "cupy.lib",
    "cupy.lib.stride_tricks",
    "cupy.linalg",
    "cupy.random",
    "cupyx",
    "cupyx.scipy",
    "cupyx.scipy.special",
)


def parameters(function) -> list[str]:
    """Of a Python function by its signature, of a Cython one by the first line of its docstring."""
    kinds = inspect.Parameter
    try:
        found = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        line = (function.__doc__ or "").strip().partition("\n")[0]
        inside = re.search(r"\((.*)\)", line)
        parts = [part.split("=")[0].split() for part in inside[1].split(",")] if inside else []
        names = [part[-1] for part in parts if part]
        return ["..." if re.fullmatch(r"\*\w+", name) else name for name in names]
    names = []
    for parameter in found:
        if parameter.kind == kinds.VAR_POSITIONAL:
            names.append("...")
        elif parameter.kind == kinds.VAR_KEYWORD:
            names.append("**")
        else:
            if parameter.kind == kinds.KEYWORD_ONLY and not {"...", "*"} & set(names):
                names.append("*")
            names.append(parameter.name)
    return names


def entry(value):
    if type(value).__name__ == "ufunc":
        return "ufunc"
    if inspect.ismodule(value):
        return "module"
    if isinstance(value, type):
        return "type"
    if callable(value):
        return parameters(value)
    return "constant"


def main():
    import cupy

    found = {"version": cupy.__version__, "modules": {}}
    for name in MODULES:
        module = importlib.import_module(name)
        public = [key for key in dir(module) if not key.startswith("_")]
        found["modules"][name] = {key: entry(getattr(module, key)) for key in public}
    for name, kind in (("ndarray", cupy.ndarray), ("Generator", cupy.random.Generator)):
        public = {key: getattr(kind, key) for key in dir(kind) if not key.startswith("_")}
        found[name] = {k: entry(v) if callable(v) else "attribute" for k, v in public.items()}
    found["operators"] = [key for key in dir(cupy.ndarray) if key.startswith("__")]
    text = re.sub(r', (?="\w+": )', ",\n", json.dumps(found, sort_keys=True))
    Path(__file__).with_name("cupy_names.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
