"""Actions: what the engine is to do, in the imperative.

Rule: the order of the list is the order of doing. What is decided is recorded
first; a `Notify` comes after the record of what it tells and must wait until
the journal says that this record is durable. An `Assign` waits for no disk.

    RecordAttempt | RecordTask  ->  Notify            (a task reached its final state)
    RecordAssigned              ->  Assign            (attempts go to a worker)
    Recall, Cancel              ->                    (answered by TasksReturned, AttemptFinished)
    Finish                                            (once, the last decision of a run)
"""

from __future__ import annotations

import enum

import msgspec

from keystone_mpi.core.model import Assignment, AttemptReport, TaskState, Why


class Assign(msgspec.Struct, frozen=True, gc=False):
    """Send these attempts to the worker, which runs them in this order as its cores allow."""

    worker: int
    attempts: list[Assignment]


class Recall(msgspec.Struct, frozen=True, gc=False):
    """Ask the worker for those of these attempts that it has not started."""

    worker: int
    attempts: list[tuple[int, int]]
    """(index, attempt)."""


class Cancel(msgspec.Struct, frozen=True, gc=False):
    """Have the worker stop one attempt, started or not."""

    worker: int
    index: int
    attempt: int
    interrupted: bool = False
    """The run stops: the outcome is INTERRUPTED, not CANCELLED."""


class RecordAssigned(msgspec.Struct, frozen=True, gc=False):
    worker: int
    attempts: list[tuple[int, int]]
    """(index, attempt)."""


class RecordStarted(msgspec.Struct, frozen=True, gc=False):
    worker: int
    index: int
    attempt: int
    at: float


class RecordAttempt(msgspec.Struct, frozen=True, gc=False):
    """An attempt ended. When `state` is final, ``report.why`` and ``report.error`` are the task's."""

    worker: int
    report: AttemptReport
    state: TaskState
    """State of the task from now on: PENDING when it runs again."""


class RecordTask(msgspec.Struct, frozen=True, gc=False):
    """A task changed state without an attempt that ended; PENDING: a worker gave it back unstarted."""

    index: int
    state: TaskState
    why: Why
    error: str
    returned_attempt: int = 0
    """What the worker gave back; 0: nothing."""


class Notify(msgspec.Struct, frozen=True, gc=False):
    """Tell whoever waits that a task has its final state, once that is durable."""

    index: int
    state: TaskState
    why: Why
    error: str = ""
    report: AttemptReport | None = None
    """The attempt that decided; None when the task ended without one."""


class FinishReason(enum.StrEnum):
    COMPLETE = "complete"
    """Every task has its final state."""
    DRAINED = "drained"
    STOPPED = "stopped"
    WALLTIME = "walltime"
    """What is left is not expected to end before the allocation does."""
    NO_WORKERS = "no workers"
    """Tasks are left, and no worker is left that could run any of them."""


class Finish(msgspec.Struct, frozen=True, gc=False):
    """Nothing runs and nothing more will: close the run."""

    reason: FinishReason
    pending: int
    """Tasks left without a final state; 0 when complete."""


Action = (
    Assign | Recall | Cancel | RecordAssigned | RecordStarted | RecordAttempt | RecordTask | Notify | Finish
)
