"""How long tasks take: how many short ones a worker may hold in advance, and what still fits before the end.

Rule: a worker never waits for the master while short tasks are queued, and
long ones are never hoarded. Nothing is given in advance before a duration is
known, and near the end each slot gets no more than its fair share. What is not
expected to end before the allocation does is not started.
"""

from __future__ import annotations

import math

from keystone_mpi.core.model import TaskRequest

WORK_AHEAD_S = 0.1
"""A slot should hold about this much work beyond what it runs."""
NO_PREFETCH_ABOVE_S = 0.5
DEPTH_LIMIT = 128
"""Attempts held in advance per slot, at most."""
_WEIGHT = 0.1
_DEVIATIONS = 2.0
"""A task of unknown duration is expected to take the mean of those seen and so many standard deviations."""


class TimeLeft:
    """The end of the allocation, and which tasks are expected to end before it.

    Parameters
    ----------
    ends_at : float or None
        On the scheduler's clock; None: there is no end.
    """

    __slots__ = ("_began_at", "_count", "_longest_s", "_mean_s", "_squares", "ends_at")

    def __init__(self, ends_at: float | None) -> None:
        self.ends_at = ends_at
        self._began_at = math.nan
        """When it was first asked."""
        self._count = 0
        self._mean_s = 0.0
        self._squares = 0.0
        self._longest_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Take in the duration of one attempt that ended by itself; NaN is ignored."""
        if duration_s != duration_s:
            return
        self._count += 1
        step = duration_s - self._mean_s
        self._mean_s += step / self._count
        self._squares += step * (duration_s - self._mean_s)
        self._longest_s = max(self._longest_s, duration_s)

    def expected_s(self, request: TaskRequest) -> float:
        """Return how long a task will take: its own figure, else what was seen, else its timeout, else 0."""
        if request.expected_s > 0:
            return request.expected_s
        if not self._count:
            # A timeout beyond the whole allocation says nothing; by it the task would never be started.
            is_telling = self.ends_at is None or request.timeout_s <= self.ends_at - self._began_at
            return request.timeout_s if is_telling else 0.0
        spread_s = math.sqrt(self._squares / self._count)
        seen_s = min(self._mean_s + _DEVIATIONS * spread_s, self._longest_s)
        return min(seen_s, request.timeout_s) if request.timeout_s else seen_s

    def suffices(self, request: TaskRequest, now: float) -> bool:
        """Tell whether a task that starts now is expected to end in time."""
        if self.ends_at is None:
            return True
        if self._began_at != self._began_at:
            self._began_at = now
        return now + self.expected_s(request) <= self.ends_at


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
