"""Hypothesis's settings: the same examples in every run, and nothing written to the disk.

`HYPOTHESIS_EXAMPLES=2000 pytest tests/test_properties.py` searches longer.
"""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "100"))  # a test; Hypothesis's own default

settings.register_profile(
    "ldm_numpy",
    deadline=None,  # a slow machine is no error
    derandomize=True,
    database=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ldm_numpy")


def fewer(part: int) -> settings:
    """For tests whose examples take long: one example where others have `part`."""
    return settings(max_examples=max(1, EXAMPLES // part))
