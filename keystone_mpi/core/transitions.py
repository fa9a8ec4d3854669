"""The life of one task inside the scheduler, and the one table of its legal transitions.

Rule: a task changes phase only through `Ledger.move`. What the table does not
allow is a defect of ours and raises with the task's short history.

    NEW -> WAITING -> READY -> GIVEN -> STARTED -> ENDED
            (needs)     ^  ^     |  \\      |          (READY -> TOO_LATE: does not end before the allocation)
                        |  |     |   RECALLED, STOPPING   (asked back, being stopped)
                        |  +-----+---------+              (given back, retried, interrupted)
                        +-- DELAYED                       (its worker was lost: tries again a little later)
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import TaskRequest

if TYPE_CHECKING:
    from keystone_mpi.core.ready_queue import Shape
    from keystone_mpi.core.workers import Worker


class Phase(enum.IntEnum):
    """Where a task is, in finer steps than `TaskState`."""

    NEW = 0
    WAITING = 1
    """For tasks that it depends on."""
    READY = 2
    """In the ready queue."""
    DELAYED = 3
    """Until its retry is due."""
    GIVEN = 4
    """A worker has it; not known to have started."""
    RECALLED = 5
    """Asked back from the worker; it may have started meanwhile."""
    STARTED = 6
    STOPPING = 7
    """The worker was told to stop it; its report decides."""
    ENDED = 8
    TOO_LATE = 9
    """Set aside: it is not expected to end before the allocation does; READY again when that moves."""


_TRANSITIONS: dict[Phase, set[Phase]] = {
    Phase.NEW: {Phase.WAITING, Phase.READY, Phase.ENDED},
    Phase.WAITING: {Phase.READY, Phase.ENDED},
    Phase.READY: {Phase.GIVEN, Phase.ENDED, Phase.TOO_LATE},
    Phase.DELAYED: {Phase.READY, Phase.ENDED},
    Phase.GIVEN: {
        Phase.READY, Phase.DELAYED, Phase.RECALLED, Phase.STARTED, Phase.STOPPING, Phase.ENDED,
    },
    Phase.RECALLED: {Phase.READY, Phase.DELAYED, Phase.STARTED, Phase.STOPPING, Phase.ENDED},
    Phase.STARTED: {Phase.READY, Phase.DELAYED, Phase.STOPPING, Phase.ENDED},
    Phase.STOPPING: {Phase.READY, Phase.ENDED},
    Phase.ENDED: set(),
    Phase.TOO_LATE: {Phase.READY, Phase.ENDED},
}  # fmt: skip

LEGAL: tuple[frozenset[Phase], ...] = tuple(frozenset(_TRANSITIONS[phase]) for phase in Phase)
"""From a phase (by number) to the phases that may follow."""

ON_WORKER = (Phase.GIVEN, Phase.RECALLED, Phase.STARTED, Phase.STOPPING)
"""Consecutive numbers, in ascending order."""

_ON_WORKER = slice(ON_WORKER[0], ON_WORKER[-1] + 1)
_HISTORY_LIMIT = 32


class Task(msgspec.Struct, eq=False):
    """A task while it is active; forgotten when it ends."""

    request: TaskRequest
    number: int
    """Order of submission."""
    shape: Shape
    attempt: int
    """Number of the attempt that a worker has, or of the next one."""
    phase: Phase = Phase.NEW
    worker: Worker | None = None
    """Set exactly in the phases of `ON_WORKER`."""
    unmet: int = 0
    """Dependencies without a final state; above 0 exactly in WAITING."""
    used: list[int] | None = None
    """Retries used: failed, timed out, out of memory, worker lost; None: what the request says."""
    started_at: float = float("nan")
    """Start of the present attempt on the worker's clock, when known."""
    cancelled_by: str = ""
    """Who asked for it to be cancelled; empty: nobody."""
    history: tuple[float, ...] = ()
    """now, phase, now, phase, ... of the latest moves. Plain numbers in a tuple, which the garbage
    collector need not visit: there are many active tasks."""


class Ledger:
    """Moves tasks from phase to phase and knows how many are in each."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = [0] * len(Phase)
        """Tasks per phase; those in NEW are not counted."""

    def move(self, task: Task, to: Phase, now: float) -> None:
        """Put `task` into phase `to`, or raise `InternalError` when the table forbids it."""
        phase = task.phase
        if to not in LEGAL[phase]:
            raise InternalError(
                f"task {task.request.index}, attempt {task.attempt}: {phase.name} -> {to.name} is no legal"
                f" transition (allowed: {', '.join(p.name for p in sorted(LEGAL[phase])) or 'none'};"
                f" history: {describe_history(task)})"
            )
        count = self.count
        if phase:
            count[phase] -= 1
        count[to] += 1
        task.phase = to
        history = task.history
        if len(history) > _HISTORY_LIMIT:
            history = history[-_HISTORY_LIMIT // 2 :]
        task.history = (*history, now, +to)

    def on_workers(self) -> int:
        """Return how many tasks workers have, started or not."""
        return sum(self.count[_ON_WORKER])


def describe_history(task: Task) -> str:
    """Return the task's latest phases for an error message."""
    times, phases = task.history[::2], task.history[1::2]
    moves = zip(times, phases, strict=True)
    return ", ".join(f"{Phase(int(phase)).name} at {now:.6f}" for now, phase in moves) or "new"
