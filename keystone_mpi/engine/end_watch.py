"""The end of the allocation may move while a run goes on: somebody changes the job's time limit.

Rule: a thread asks, rarely and with a time limit, and more often only near the
end; the master never waits for an answer. No answer changes nothing.

    pause (half the time that is left, 5 min at most) --> ask --> moved? --> news() --> the master
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

import msgspec

from keystone_mpi.core.errors import ClusterError
from keystone_mpi.engine.settings import seconds_from
from keystone_mpi.engine.stopping import Deadline

PAUSE_VARIABLE = "KEYSTONE_ASK_SLURM"
LONGEST_PAUSE_S = 300.0
SHORTEST_PAUSE_S = 15.0
NOTICED_S = 5.0
"""Ends that differ by less are the same, told by different clocks."""


def longest_pause_s() -> float:
    """Return how long at most Slurm is not asked: ``$KEYSTONE_ASK_SLURM`` seconds, or 300."""
    return seconds_from(PAUSE_VARIABLE, default_s=LONGEST_PAUSE_S, least_s=1.0)


class MovedEnd(msgspec.Struct, frozen=True):
    """Another end of the allocation."""

    deadline: Deadline | None
    """When to drain and to stop; None: there is no end."""
    text: str
    """The same in one line for the person who watches."""


class AllocationEnd(msgspec.Struct, frozen=True):
    """The end of the allocation that a program runs in."""

    deadline: Deadline | None = None
    """None: it has no end that is known."""
    watch: EndWatch | None = None
    """Notices that it moves; None: it cannot."""


class EndWatch:
    """Notices that the allocation ends at another time; a context manager that owns the thread.

    Parameters
    ----------
    ends_at : float or None
        As known so far, in seconds since the epoch; None: it has no end.
    ask : callable
        Returns the present end, or raises `ClusterError` when it is not known.
        Called from the thread; must not use MPI.
    understand : callable
        Says what an end means for the run.
    """

    def __init__(
        self,
        ends_at: float | None,
        ask: Callable[[], float | None],
        understand: Callable[[float | None], MovedEnd],
    ) -> None:
        self._ask = ask
        self._understand = understand
        self._known = ends_at
        self._news: list[float | None] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keystone-end-watch", daemon=True)

    def __enter__(self) -> EndWatch:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to ask, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. Not joined: nobody waits for a Slurm that does not answer."""
        self._over.set()

    def news(self) -> MovedEnd | None:
        """Return the new end, once, when it has moved; None: nothing new."""
        moved_to: MovedEnd | None = None
        while self._news:
            moved_to = self._understand(self._news.pop(0))
        return moved_to

    def look(self) -> None:
        """Ask once."""
        try:
            found = self._ask()
        except ClusterError:
            return
        if not is_same_end(self._known, found):
            self._known = found
            self._news.append(found)

    def pause_s(self, now: float) -> float:
        """Return how long to wait before asking, `now` in seconds since the epoch."""
        longest_s = longest_pause_s()
        if self._known is None:
            return longest_s
        return min(longest_s, max(SHORTEST_PAUSE_S, (self._known - now) / 2.0))

    def _watch(self) -> None:
        while not self._over.wait(self.pause_s(time.time())):
            self.look()


def is_same_end(one: float | None, other: float | None) -> bool:
    """Tell whether two ends are the same moment."""
    if one is None or other is None:
        return one is other
    return abs(one - other) < NOTICED_S
