"""How a person or a queue stops a run.

Rule: signals only set a flag and wake the master, which decides. What the
first INT or TERM can mean depends on the launcher: Open MPI's mpiexec kills
its ranks 0.25 s after it, so there it means "now".

    USR1, OUT.drain         -> DRAIN   finish what runs, start nothing
    INT, TERM once          -> DRAIN, or NOW under Open MPI's mpiexec
    INT, TERM again         -> NOW     stop what runs; nothing is lost. USR1 was a first one; again it changes
                                       nothing, since Slurm and launchers may deliver its copies
    the launcher died       -> NOW
    the allocation's end    -> DRAIN, a little later NOW
    TERM from a batch system, which kills soon after -> DRAIN, NOW when most of that time is over
"""

from __future__ import annotations

import enum
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

DRAIN_SUFFIX = ".drain"
TERM_GRACE_S = 20.0
"""A batch system that sent TERM sends KILL 30 s later (Slurm's KillWait by default)."""
SAME_PRESS_S = 0.3
"""Two interrupts within this time are one Ctrl-C that came by two ways (terminal and launcher)."""


class Deadline(msgspec.Struct, frozen=True):
    """The end of the allocation, on the monotonic clock."""

    drain_at: float
    """Nothing is started any more."""
    stop_at: float
    """What still runs is stopped; only tasks that are expected to end before are started."""


class StopLevel(enum.IntEnum):
    """How urgently to stop."""

    NONE = 0
    DRAIN = 1
    NOW = 2


class StopRequests:
    """Collects the reasons to stop; a context manager that owns the signal handlers.

    Parameters
    ----------
    output_path : Path or None
        A file ``<output_path>.drain`` is a request to drain; None: somebody else looks for it.
    wake : callable
        Makes the master look; called inside a signal handler.
    first_means_now : bool
        The launcher gives no time to finish what runs.
    under_launcher : bool
        The process was started by mpiexec or srun; when that dies, so must the run.
    deadline : Deadline, optional
        The end of the allocation, where it is known.
    in_batch_job : bool
        TERM comes from a batch system, KILL follows.
    """

    def __init__(
        self,
        output_path: Path | None,
        wake: Callable[[], None],
        *,
        first_means_now: bool,
        under_launcher: bool,
        deadline: Deadline | None = None,
        in_batch_job: bool = False,
    ) -> None:
        self._drain_path = None if output_path is None else Path(f"{output_path}{DRAIN_SUFFIX}")
        self._wake = wake
        self._first_means_now = first_means_now
        self._deadline = deadline
        self._in_batch_job = in_batch_job
        self._now_at = float("inf")
        self._parent = os.getppid() if under_launcher else None
        self._interrupts = 0
        self.presses = 0
        """INTs and TERMs that came, copies of the same left out."""
        self._drained_at = math.inf
        """When SIGUSR1 came first."""
        self._interrupted_at = -SAME_PRESS_S
        self._drain = False
        self._saved: dict[int, Any] = {}
        self.reason = ""

    def __enter__(self) -> StopRequests:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._saved[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGUSR1:
            self._drain = True
            if self._interrupts == 0:
                self._drained_at = min(self._drained_at, now)
        else:
            if now - self._interrupted_at > SAME_PRESS_S:
                self._interrupts += 1
                self.presses += 1
            if now - self._drained_at > SAME_PRESS_S:
                self._interrupts = max(self._interrupts, 2)
            self._interrupted_at = now
            if number == signal.SIGTERM and self._in_batch_job:
                self._now_at = min(self._now_at, now + TERM_GRACE_S)
        self.reason = self.reason or f"signal {signal.Signals(number).name}"
        self._wake()

    @property
    def grace_is_over(self) -> bool:
        """Whether the batch system is about to kill this process."""
        return time.monotonic() >= self._now_at

    def look(self) -> StopLevel:
        """Return the present level from signals alone; costs nothing."""
        if self._interrupts >= 2 or (self._interrupts and self._first_means_now):
            return StopLevel.NOW
        if self._interrupts or self._drain:
            return StopLevel.DRAIN
        return StopLevel.NONE

    def look_around(self) -> StopLevel:
        """Also look for the launcher's death and at the clock; called about once a second."""
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline.drain_at:
            self._drain = True
            self.reason = self.reason or "the allocation is about to end"
            if now >= self._deadline.stop_at:
                self._interrupts = max(self._interrupts, 2)
        if now >= self._now_at:
            self._interrupts = max(self._interrupts, 2)
        if self._parent is not None and os.getppid() != self._parent:
            self._interrupts = max(self._interrupts, 2)
            self.reason = self.reason or "the MPI launcher died"
        return self.look()

    def look_for_drain_file(self) -> None:
        """Look for the request, on a file system that may take its time: not in the master's thread."""
        if self._drain_path is not None and not self._drain and self._drain_path.exists():
            self.reason = self.reason or "keystone-mpi drain"
            self._drain = True
            self._wake()

    def move_deadline(self, deadline: Deadline | None) -> None:
        """The allocation ends at another time; a stop that was asked for already stays."""
        self._deadline = deadline

    def forget_drain_file(self) -> None:
        """Remove the request once it has been met, so that the next start runs."""
        if self._drain_path is not None:
            self._drain_path.unlink(missing_ok=True)
