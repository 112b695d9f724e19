"""What users give is checked before any work, in one line that says what would be right."""

import math
import reprlib
import sys
from numbers import Integral, Real


def known(what: str, name: str, choices) -> str:
    """`name`, if it is one of the choices; ValueError that lists them otherwise."""
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"unknown {what} {shown(name)}: use one of {', '.join(choices)}")
    return name


def whole(name: str, value, at_least: int, at_most: int | None = None) -> int:
    """`value`, if it is a whole number in at_least ... at_most; ValueError otherwise."""
    good = isinstance(value, Integral) and not isinstance(value, bool) and value >= at_least
    if not good or (at_most is not None and value > at_most):
        bounds = f">= {at_least}" if at_most is None else f"in {at_least} ... {at_most:,}"
        raise ValueError(f"{name} must be a whole number {bounds}, not {shown(value)}")
    return int(value)


def number(name: str, value, least: float = -math.inf, most: float = math.inf) -> float:
    """`value`, if it is a finite number in least ... most; ValueError otherwise."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and abs(value) <= sys.float_info.max and least <= value <= most):
        bounds = "" if -least == most == math.inf else f" in {least:g} ... {most:g}"
        raise ValueError(f"{name} must be a finite number{bounds}, not {shown(value)}")
    return float(value)


def positive(name: str, value) -> float:
    """`value`, if it is a finite number above 0; ValueError otherwise."""
    if number(name, value) <= 0:
        raise ValueError(f"{name} must be positive, not {value!r}")
    return float(value)


def shown(value) -> str:
    """What a message says of a value: one line, however long the value is."""
    return " ".join(reprlib.repr(value).split())
