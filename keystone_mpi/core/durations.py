"""How long short tasks take, and how many of them a worker may hold in advance.

Rule: a worker never waits for the master while short tasks are queued, and
long ones are never hoarded. Nothing is given in advance before a duration is
known, and near the end each slot gets no more than its fair share.
"""

from __future__ import annotations

import math

WORK_AHEAD_S = 0.1
"""A slot should hold about this much work beyond what it runs."""
NO_PREFETCH_ABOVE_S = 0.5
DEPTH_LIMIT = 64
"""Attempts held in advance per slot, at most."""
_WEIGHT = 0.1


class DurationMean:
    """Moving mean of the attempts' durations."""

    __slots__ = ("mean_s",)

    def __init__(self) -> None:
        self.mean_s = math.nan
        """NaN until the first attempt of known duration ended."""

    def observe(self, duration_s: float) -> None:
        """Take in the duration of one attempt; NaN is ignored."""
        mean = self.mean_s
        if mean == mean:
            if duration_s == duration_s:
                self.mean_s = mean + _WEIGHT * (duration_s - mean)
        else:
            self.mean_s = duration_s

    def depth(self, remaining: int, slots: int) -> int:
        """Return how many attempts a slot may hold in advance.

        Parameters
        ----------
        remaining : int
            Tasks that no worker has yet.
        slots : int
            Slots of all workers.
        """
        mean = self.mean_s
        if not mean <= NO_PREFETCH_ABOVE_S or slots == 0:
            return 0
        wanted = DEPTH_LIMIT if mean * DEPTH_LIMIT <= WORK_AHEAD_S else math.ceil(WORK_AHEAD_S / mean)
        return min(wanted, remaining // (2 * slots))
