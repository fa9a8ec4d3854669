"""Events: what has happened, told to the scheduler in the past tense.

Rule: an event is plain data and says what is true already; the scheduler
never refuses one that the world can produce. What a worker sends enters
unchanged. Times inside an event are the worker's; the scheduler's own time is
the `now` that comes with it.

    worker, user, journal, clock --Event--> Scheduler.handle --Action--> engine
"""

from __future__ import annotations

import msgspec

from keystone_mpi.core.model import AttemptReport, TaskRequest


class WorkerJoined(msgspec.Struct, frozen=True, gc=False):
    worker: int
    """Identity within the run; never used twice."""
    slots: int
    """Cores that its attempts may use together."""
    memory_bytes: int = 0
    """What its attempts may reserve together; 0: unknown, and not counted."""
    gpus: int = 0


class AllWorkersJoined(msgspec.Struct, frozen=True, gc=False):
    """No further worker is expected: what fits none of those that joined ends as too large."""


class WorkerLost(msgspec.Struct, frozen=True, gc=False):
    worker: int
    why: str
    """For people, such as ``"its rank died"``."""


class TasksSubmitted(msgspec.Struct, frozen=True, gc=False):
    """Tasks that come one by one, beside the task source; they may depend on any task of the run."""

    tasks: list[TaskRequest]


class AttemptStarted(msgspec.Struct, frozen=True, gc=False):
    """Told only for attempts that live longer than a fraction of a second."""

    worker: int
    index: int
    attempt: int
    at: float
    """Seconds since the epoch on the worker's clock."""


class AttemptFinished(msgspec.Struct, frozen=True, gc=False):
    worker: int
    report: AttemptReport


class TasksReturned(msgspec.Struct, frozen=True, gc=False):
    """A worker gave back attempts that it had not started."""

    worker: int
    attempts: list[tuple[int, int]]
    """(index, attempt)."""


class CancelRequested(msgspec.Struct, frozen=True, gc=False):
    index: int
    by: str = "the user"
    """Who asked, for the task's error line: ``cancelled by ...``."""


class DrainRequested(msgspec.Struct, frozen=True, gc=False):
    """Finish what runs, start nothing more."""


class StopRequested(msgspec.Struct, frozen=True, gc=False):
    """Interrupt what runs, start nothing more; it costs the tasks nothing."""


class EndMoved(msgspec.Struct, frozen=True, gc=False):
    """The allocation ends at another time than was thought."""

    ends_at: float | None
    """On the scheduler's clock, as its `ends_at`."""


class CloseRequested(msgspec.Struct, frozen=True, gc=False):
    """No further `TasksSubmitted` will come (open-ended sessions only)."""


class DispatchPaused(msgspec.Struct, frozen=True, gc=False):
    """Nothing may be started for now: the journal has too much that is not yet on disk."""


class DispatchResumed(msgspec.Struct, frozen=True, gc=False):
    pass


class DeadlinePassed(msgspec.Struct, frozen=True, gc=False):
    """Time moved past `Scheduler.next_deadline`."""


Event = (
    AttemptFinished
    | AttemptStarted
    | TasksReturned
    | TasksSubmitted
    | WorkerJoined
    | WorkerLost
    | AllWorkersJoined
    | CancelRequested
    | DispatchPaused
    | DispatchResumed
    | DeadlinePassed
    | DrainRequested
    | StopRequested
    | EndMoved
    | CloseRequested
)
