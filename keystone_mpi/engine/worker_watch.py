"""The hub's side of workers that are gone without a word: noticing them, and ending without them.

Rule: as in a sweep (liveness.py), a worker that is silent for too long is taken
for lost and its work goes elsewhere. MPI cannot end in order without it, and
the only way left ends this process as well: so that comes last of all, after
the program's files, its messages and its exit hooks.

    Beat <--> worker ... silence > limit --> Ranks.lost, look() --> WorkerLost
                         heard of again  --> Ranks.heard: farewell
    farewell --> all there: MPI_Finalize
             --> one lost: beats to the others until the last exit hook --> MPI_Abort(75)
                                                      the program failed --> its own exit code
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable

from keystone_mpi.core.errors import RunInterruptedError
from keystone_mpi.engine.liveness import BEATS_PER_SILENCE, Liveness, silence_limit_s
from keystone_mpi.engine.parting import ABORT_CODE, LOOK_S
from keystone_mpi.engine.program_exit import leave_now
from keystone_mpi.engine.ranks import FAREWELL_S, Ranks
from keystone_mpi.engine.workforce import Workforce
from keystone_mpi.transport import messages
from keystone_mpi.transport.channel import Received

ABORT_S = 30.0
"""How long MPI_Abort may take."""


class WorkerWatch:
    """Signs of life while the hub works; used in its thread.

    Parameters
    ----------
    ranks : Ranks
    workforce : Workforce
        Knows the workers' names.
    notice : callable
        Told of what a person should see.
    """

    def __init__(self, ranks: Ranks, workforce: Workforce, notice: Callable[[str], None]) -> None:
        self._ranks = ranks
        self._workforce = workforce
        self._notice = notice
        self._liveness = Liveness(time.monotonic(), silence_limit_s())
        self.look_s = self._liveness.silence_s / BEATS_PER_SILENCE
        """How often at least `look` is to be called."""

    def heard(self, item: Received, now: float) -> None:
        """Something came from a worker."""
        self._ranks.heard(item.worker)
        if isinstance(item.message, messages.Beat) or self._liveness.knows(item.worker):
            self._liveness.heard(item.worker, now)

    def forget(self, worker: int) -> None:
        """Expect nothing more of a worker: it said goodbye, or why it cannot go on, or is lost."""
        self._liveness.forget(worker)
        self._ranks.left(worker)

    def name(self, worker: int) -> str:
        """Name a worker for people."""
        return self._workforce.name(worker)

    def look(self, now: float) -> list[tuple[int, str]]:
        """Give signs of life; return who is to be forgotten, and the reason to record."""
        seconds = self._liveness.silence_s
        found = []
        for worker in self._liveness.silent(now):
            self._ranks.lost(worker)
            self._notice(
                f"{self.name(worker)} has not been heard of for {seconds:.0f} s and is taken for "
                "lost; its tasks run elsewhere"
            )
            found.append((worker, f"no sign of life for {seconds:.0f} s"))
        if self._liveness.beat_due(now):
            for worker in self._ranks.waiting():
                self._ranks.transport.send(worker, messages.Beat())
        return found


def part(ranks: Ranks, notice: Callable[[str], None], ended: Callable[[], None]) -> None:
    """Send the workers home and end MPI; the last that the hub's thread does.

    Parameters
    ----------
    ranks : Ranks
    notice : callable
        Told of what a person should see.
    ended : callable
        Lets go of whoever waits for the end of the engine.
    """
    ranks.farewell(FAREWELL_S, notice)
    if len(ranks.waiting()) < len(ranks.transport.workers):
        held = _Held(ranks)
        _HELD.append(held)
        ended()
        held.wait(notice)
    if not ranks.dismiss():
        notice("some workers did not say goodbye; MPI was ended by force")
    ranks.close()


class _Held:
    """An engine without work whose end would be this process's."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pid = os.getpid()
        self._thread = threading.current_thread()
        self._go = threading.Event()

    def wait(self, notice: Callable[[str], None]) -> None:
        """Stay alive in the eyes of the workers that are left until `let_go`."""
        while not self._go.is_set():
            self._ranks.stay(LOOK_S, notice)

    def let_go(self) -> None:
        """End MPI, and with it this process."""
        if self._pid != os.getpid():
            return  # a child that the program forked
        self._go.set()
        self._ranks.transport.wake()
        self._thread.join(ABORT_S)
        if self._thread.is_alive():
            leave_now(ABORT_CODE)


_HELD: list[_Held] = []


def _end_by_force() -> None:
    """End what cannot end in order; a program that failed ends mpiexec by its own exit code."""
    from keystone_mpi.engine.program import PROGRAM

    was_interrupted = PROGRAM.hub is not None and isinstance(PROGRAM.hub.problem, RunInterruptedError)
    if was_interrupted or not PROGRAM.failed:
        for held in _HELD:
            held.let_go()


# Registered before the hooks of the program and of program.py, so that it runs after them.
atexit.register(_end_by_force)
