"""An ordinary differential equation solved to a tolerance, on the host."""

import itertools

import numpy as np
from scipy.integrate import solve_ivp

from ..checks import number, positive

MAX_EVALUATIONS = 20_000  # a smooth slope needs a few hundred, at the tightest tolerances thousands


def solve(slope, times: list[float], start: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """y(t) at each of `times`, (D, T), with dy/dt = slope(t, y) and y(times[0]) = start (D,).

    By `scipy.integrate.solve_ivp`'s "RK45", in as many steps as that takes. Raises ValueError for
    a slope that is not finite, whose error no smaller step makes small; for one so rough that
    MAX_EVALUATIONS do not suffice; and where the solver gives up.
    """
    evaluations = itertools.count(1)

    def finite(t, y):
        if next(evaluations) > MAX_EVALUATIONS:
            raise ValueError(
                f"the ODE could not be solved in {MAX_EVALUATIONS:,} evaluations of its slope: "
                "looser tolerances need fewer, a sampler of fixed steps has few"
            )
        value = slope(t, y)
        if not np.isfinite(value).all():
            raise ValueError("the ODE could not be solved: its slope is not finite")
        return value

    solved = solve_ivp(finite, (times[0], times[-1]), start, t_eval=times, rtol=rtol, atol=atol)
    if not solved.success:
        raise ValueError(f"the ODE could not be solved: {solved.message}")
    return solved.y


def checked_tolerances(rtol: float, atol: float) -> None:
    """ValueError unless 1e-12 <= rtol <= 1 and atol > 0."""
    number("rtol", rtol, 1e-12, 1)
    positive("atol", atol)
