"""Durations that a variable of the environment may set, for tests and for unusual sites.

Rule: what is no number, or none at all, leaves the default.
"""

from __future__ import annotations

import math
import os


def seconds_from(variable: str, *, default_s: float, least_s: float) -> float:
    """Return the seconds that a variable gives.

    Parameters
    ----------
    variable : str
        Its name.
    default_s : float
        Without it, or when it holds no finite number.
    least_s : float
        Smaller values count as this one.
    """
    try:
        given_s = float(os.environ.get(variable, ""))
    except ValueError:
        return default_s
    return max(least_s, given_s) if math.isfinite(given_s) else default_s
