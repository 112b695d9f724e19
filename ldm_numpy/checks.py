"""What users give is checked before any work, in one line that says what would be right."""

import math
from numbers import Integral, Real


def known(what: str, name: str, choices) -> str:
    """`name`, if it is one of the choices; ValueError that lists them otherwise."""
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"unknown {what} {name!r}: use one of {', '.join(choices)}")
    return name


def whole(name: str, value, at_least: int) -> int:
    """`value`, if it is a whole number of at least so much; ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise ValueError(f"{name} must be a whole number >= {at_least}, not {value!r}")
    return int(value)


def number(name: str, value, least: float = -math.inf, most: float = math.inf) -> float:
    """`value`, if it is a finite number in least ... most; ValueError otherwise."""
    good = not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    if not (good and least <= value <= most):
        bounds = "" if -least == most == math.inf else f" in {least:g} ... {most:g}"
        raise ValueError(f"{name} must be a finite number{bounds}, not {value!r}")
    return float(value)


def positive(name: str, value) -> float:
    """`value`, if it is a finite number above 0; ValueError otherwise."""
    if number(name, value) <= 0:
        raise ValueError(f"{name} must be positive, not {value!r}")
    return float(value)
