"""How a Python program's engine is stopped from outside: signals, the allocation's end, drain files.

Rule: as for ``keystone-mpi run`` (stopping.py), but the process is the
program's: INT stays Python's KeyboardInterrupt, handlers that the program set
itself stay, and a second TERM raises in the main thread, since the program may
be anywhere.

    USR1, TERM once, OUT.drain, the drain point -> what runs ends, nothing is started -> RunInterruptedError
    TERM twice, the end of the allocation       -> what runs is stopped               -> RunInterruptedError
    all that is waited for ends too late        -> as for a drain, at once
    the job's time limit is changed             -> the end moves
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from keystone_mpi.core import events
from keystone_mpi.core.errors import RunInterruptedError
from keystone_mpi.core.events import Event
from keystone_mpi.core.scheduler import Scheduler
from keystone_mpi.core.transitions import Phase
from keystone_mpi.engine.end_watch import AllocationEnd
from keystone_mpi.engine.stopping import StopLevel, StopRequests
from keystone_mpi.execution.processes import RUN_TAG

HEEDED = (signal.SIGTERM, signal.SIGUSR1)


class ProgramStop(StopRequests):
    """The reasons for this program's engine to stop; all but `install` and `restore` in the engine's thread.

    Parameters
    ----------
    first_means_now : bool
        The launcher gives no time to finish what runs.
    end : AllocationEnd
        When the allocation ends, where it is known, and who notices that it moves.
    under_launcher : bool
        The process was started by mpiexec or srun; when that dies, so must the program.
    """

    def __init__(self, *, first_means_now: bool, end: AllocationEnd, under_launcher: bool) -> None:
        super().__init__(
            None,
            _wake_nobody,
            first_means_now=first_means_now,
            under_launcher=False,
            deadline=end.deadline,
            in_batch_job="SLURM_JOB_ID" in os.environ,
        )
        self._launcher = os.getppid() if under_launcher else None
        self._end_watch = end.watch
        self.ends_at = None if end.deadline is None else end.deadline.stop_at
        """When the last task must have ended, on the monotonic clock; None: not known."""
        self.level = StopLevel.NONE
        self.ending = False
        """The program is at its end: nothing is raised in it any more."""
        self._pid = os.getpid()
        self._hopeless = False
        """All that is waited for was too late already at the last look."""

    # --- the program's main thread -------------------------------------------

    def install(self, wake: Callable[[], None]) -> None:
        """Heed signals from now on, where this is the main thread and the program does not heed them."""
        self._wake = wake
        if self._end_watch is not None:
            self._end_watch.start()
        if threading.current_thread() is not threading.main_thread() or RUN_TAG in os.environ:
            return  # in a task of another engine, that one decides what a signal means
        for number in HEEDED:
            present = signal.getsignal(number)
            ours = getattr(present, "__module__", "") == "keystone_mpi.cli.program"
            if present is signal.SIG_DFL or ours:
                self._saved[number] = signal.signal(number, self._on_signal)

    def restore(self) -> None:
        """Heed no signal any more, and no change of the time limit."""
        if self._end_watch is not None:
            self._end_watch.stop()
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._saved.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        self._saved.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that the program forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        super()._on_signal(number, frame)
        if self.look() == StopLevel.NOW and not self.ending:
            raise RunInterruptedError(
                f"stopped ({self.reason}): what runs is being stopped, what has ended is in the results "
                "file; start the program again with resume=True to go on"
            )

    # --- the engine's thread -------------------------------------------------

    def drain(self, reason: str) -> None:
        """Ask for a drain."""
        self._drain = True
        self.reason = self.reason or reason

    def heed(self, scheduler: Scheduler, seats: int, now: float, *, awaited: bool) -> list[Event]:
        """Look around; return what the scheduler must be told now.

        Parameters
        ----------
        scheduler : Scheduler
        seats : int
            Function processes among what workers have.
        now : float
        awaited : bool
            Somebody waits for tasks.
        """
        self._look_for_hopeless(scheduler, seats, now, awaited=awaited)
        level = self.look_around()
        if level <= self.level:
            return []
        happened: list[Event] = []
        if self.level < StopLevel.DRAIN:
            happened.append(events.DrainRequested())
        if level == StopLevel.NOW:
            happened.append(events.StopRequested())
        self.level = level
        return happened

    def announcement(self) -> str:
        """Return what a person is told when the level has risen."""
        if self.level == StopLevel.NOW:
            return f"stopping now ({self.reason}): what runs is being stopped"
        return f"stopping ({self.reason}): what runs is finished, nothing more is started"

    def look_outside(self, notice: Callable[[str], None]) -> list[Event]:
        """Follow an allocation whose time limit has changed; interrupt the program when mpiexec is gone."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._launcher = None
            notice("the MPI launcher died: stopping")
            _thread.interrupt_main()
        moved = None if self._end_watch is None else self._end_watch.news()
        if moved is None:
            return []
        notice(moved.text)
        self.move_deadline(moved.deadline)
        self.ends_at = None if moved.deadline is None else moved.deadline.stop_at
        return [events.EndMoved(self.ends_at)]

    def _look_for_hopeless(self, scheduler: Scheduler, seats: int, now: float, *, awaited: bool) -> None:
        """Drain when the program waits for tasks none of which ends before the allocation does."""
        if self.ends_at is None or self.level:
            return
        count = scheduler.ledger.count
        comes = count[Phase.READY] or count[Phase.DELAYED] or scheduler.ledger.on_workers() > seats
        hopeless = awaited and bool(count[Phase.TOO_LATE]) and not comes
        if hopeless and self._hopeless:
            left_s = max(0.0, self.ends_at - now)
            self.drain(f"the allocation ends, and nothing that is left is expected to end in {left_s:.0f} s")
        self._hopeless = hopeless

    def interruption(self, left: int, *, is_resumable: bool) -> RunInterruptedError:
        """Return what the program is told once nothing runs any more."""
        ran = "what ran was stopped" if self.level == StopLevel.NOW else "what ran is finished"
        if not is_resumable:
            return RunInterruptedError(f"stopped ({self.reason}): {ran}")
        did_not = f", {left} task{'' if left == 1 else 's'} did not end" if left > 0 else ""
        again = "start the program again with resume=True to go on"
        return RunInterruptedError(f"stopped ({self.reason}): {ran}{did_not}; {again}")

    def call_interruption(self) -> RunInterruptedError:
        """Return what futures of calls are told that were not begun or did not end."""
        return RunInterruptedError(f"stopped ({self.reason}): the call did not end")


def _wake_nobody() -> None:
    """There is no engine yet."""
