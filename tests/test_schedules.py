"""Noise levels: their ends, their number, and the rule by which they fall."""

import math

import numpy as np
import pytest

from ldm_numpy.diffusion import SCHEDULES, CosineVP, karras_sigmas
from ldm_numpy.diffusion.schedules import (
    cosine_sigmas,
    ddpm_sigmas,
    linear_sigmas,
    log_uniform_sigmas,
)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_and_number(name):
    low, high = (0.05, 12.0) if name == "ddpm" else (0.01, 50.0)
    for n in (1, 2, 3, 10):
        levels = SCHEDULES[name](n, low, high)
        assert len(levels) == n + 1 and levels[-1] == 0
        assert all(type(sigma) is float for sigma in levels)
        assert sorted(levels, reverse=True) == levels
        assert levels[0] == pytest.approx(high, rel=0.02 if name == "ddpm" else 1e-9)
        if n > 1:
            assert levels[-2] == pytest.approx(low, rel=0.02 if name == "ddpm" else 1e-9)


def test_what_falls_evenly():
    """sigma, ln(sigma), the cosine's angle, the number of DDPM's step."""
    for schedule, quantity in (
        (linear_sigmas, lambda sigma: sigma),
        (log_uniform_sigmas, math.log),
        (cosine_sigmas, lambda sigma: CosineVP().time(sigma)),
    ):
        falling = [quantity(sigma) for sigma in schedule(10, 0.01, 50.0)[:-1]]
        np.testing.assert_allclose(np.diff(falling, n=2), 0, atol=1e-9)


def test_ddpm_levels_are_stable_diffusions():
    """All 1,000, and every 111th, against the recurrence; diffusers reports 14.6146 and 0.0292."""
    alpha_bar, expected = 1.0, []
    for i in range(1000):
        beta = (0.00085**0.5 + i / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
        alpha_bar *= 1 - beta
        expected.append(math.sqrt((1 - alpha_bar) / alpha_bar))
    found = ddpm_sigmas(1000)
    np.testing.assert_allclose(found[:-1], expected[::-1], rtol=1e-9)
    assert (found[0], found[-2]) == pytest.approx((14.6146, 0.0292), abs=1e-4)
    np.testing.assert_allclose(ddpm_sigmas(10)[:-1], expected[::-111], rtol=1e-9)
    nearest = [0, 143, 285, 428, 571, 714, 856, 999]  # to sevenths of 999, by hand
    np.testing.assert_allclose(ddpm_sigmas(8)[:-1], [expected[-1 - i] for i in nearest], rtol=1e-9)
    inside = ddpm_sigmas(5, 0.1, 5.0)
    assert 4.9 < inside[0] <= 5 and 0.1 <= inside[-2] < 0.11
    with pytest.raises(ValueError, match=r"DDPM has 1000 levels between 0\.002 and 80, not 1001"):
        ddpm_sigmas(1001)


def test_karras_levels():
    """Ends, count and curve: sigma^(1/rho) falls by equal steps."""
    levels = karras_sigmas(10, 0.01, 50.0, rho=5.0)
    assert len(levels) == 11 and levels[-1] == 0 and all(type(s) is float for s in levels)
    assert (levels[0], levels[-2]) == (pytest.approx(50), pytest.approx(0.01))
    np.testing.assert_allclose(np.diff(np.array(levels[:-1]) ** (1 / 5), n=2), 0, atol=1e-12)
    assert karras_sigmas(1, 0.01, 50.0) == [pytest.approx(50), 0.0]
    # Computed by hand for rho = 7: the middle of three is ((80^(1/7) + 0.002^(1/7)) / 2)^7.
    assert karras_sigmas(3)[1] == pytest.approx(2.5152189, rel=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        (0,),
        (-1,),
        (2.5,),
        (True,),
        (math.nan,),
        (5, 0, 1),
        (5, -1, 1),
        (5, 1, 1),
        (5, 2, 1),
        (5, 0.1, math.inf),
        (5, math.nan, 1),
        (5, 1, 0),
        (5, "a", 1),
        (5, None, 1),
        (5, 0.1, 1, 0),
        (5, 0.1, 1, 1e-3),
    ],
)
def test_impossible_levels_are_refused(arguments):
    for schedule in SCHEDULES.values():
        if len(arguments) < 4 or schedule is karras_sigmas:
            with pytest.raises(ValueError, match=r"steps|sigma_min|sigma_max must be a finite|rho"):
                schedule(*arguments)
