"""Whom the hub serves: owners of tasks, books that live in it, and the seats of function processes.

Rule: all of this is called in the engine's thread.

    Owner      what a task of the scheduler belongs to: a book, or `SeatOwner`
    Resident   an open results file
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from keystone_mpi.core import actions
from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import (
    Assignment,
    AttemptReport,
    Outcome,
    RetryBudget,
    TaskRequest,
    TaskState,
    Why,
)
from keystone_mpi.engine.calls import Seat
from keystone_mpi.engine.stopping import StopLevel
from keystone_mpi.transport import messages

if TYPE_CHECKING:
    from keystone_mpi.engine.hub import Hub

FUNCTION_BOOK = 0
FUNCTION_RECIPE = 0
"""The first recipe that every worker gets."""

SEAT_EXPECTED_S = 1e-3


class Owner(Protocol):
    """What a task of the scheduler belongs to; called in the engine's thread."""

    def order(self, assignment: Assignment) -> messages.TaskOrder:
        """Spell out an attempt for a worker."""

    def assigned(self, worker: int, attempts: Sequence[tuple[int, int]]) -> None: ...

    def started(self, worker: int, index: int, attempt: int, at: float) -> None:  # noqa: ARG002 - for those who keep records
        return

    def progress(self, index: int, fraction: float) -> None:  # noqa: ARG002 - for those who keep records
        return

    def attempt_ended(self, worker: int, report: AttemptReport, state: TaskState) -> None:  # noqa: ARG002 - for those who keep records
        return

    def task_changed(
        self,
        index: int,  # noqa: ARG002 - for those who keep records
        state: TaskState,  # noqa: ARG002 - for those who keep records
        why: Why,  # noqa: ARG002 - for those who keep records
        error: str,  # noqa: ARG002 - for those who keep records
        returned_attempt: int = 0,  # noqa: ARG002 - for those who keep records
    ) -> None:
        """Take note of a change without an attempt that ended; see `actions.RecordTask`."""
        return

    def ended(self, notice: actions.Notify) -> None:
        """The task has its final state; its record came before."""


class Resident(Protocol):
    """What lives in the hub beside its tasks: an open results file."""

    def acknowledge(self) -> None:
        """Tell whoever waits what has become durable."""

    behind: bool
    """Too much waits for the disk: nothing should be started for now."""

    @property
    def awaited(self) -> bool:
        """Whether the program waits for a task of it."""

    def tick(self, now: float) -> None:
        """Called about once a second."""

    def worker_joined(self, worker: int, facts: messages.Hello, slots: int, memory_bytes: int) -> None: ...

    def worker_left(self, worker: int, why: str) -> None: ...

    def welcome(self, send: Callable[[Any], None]) -> None:
        """Tell a new worker what it must know of this book."""

    def broken(self, error: Exception) -> None:
        """The engine failed; nobody will answer any more."""


class SeatOwner(Owner):
    """The owner of the scheduler's tasks that are seats; what the call desk needs of the hub."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def order(self, assignment: Assignment) -> messages.TaskOrder:
        return messages.TaskOrder(
            index=assignment.index,
            attempt=assignment.attempt,
            params={},
            task_id=str(assignment.index),
            recipe=FUNCTION_RECIPE,
        )

    def assigned(self, worker: int, attempts: Sequence[tuple[int, int]]) -> None:
        for index, _ in attempts:
            # After the Assign that follows this record, so that the seat is there before its calls.
            self._hub.post(functools.partial(self._hub.calls.seat_opened, index, worker))

    def as_of_seat(self, report: AttemptReport, owners: Mapping[int, Owner]) -> AttemptReport:
        """Return a report as it is, or what it means when it is a seat's.

        Its duration says nothing of how long tasks take, and there is no second attempt of a seat: one
        that the signal to a job ended is another that died, unless all is being stopped.
        """
        if owners.get(report.index) is not self:
            return report
        outcome = report.outcome
        if outcome == Outcome.INTERRUPTED and self._hub.stops.level < StopLevel.NOW:
            outcome = Outcome.SUCCESS if report.exit_code == 0 else Outcome.FAILED
        return msgspec.structs.replace(report, outcome=outcome, duration_s=float("nan"))

    def ended(self, notice: actions.Notify) -> None:
        self._hub.calls.seat_gone(notice.index, notice.report, notice.error)

    def request_seat(self, seat: Callable[[int], Seat]) -> None:
        """See `calls.Engine`."""
        index = self._hub.new_index()
        seat(index)
        # A byte of memory makes it another shape than an ordinary task: it is never given in advance.
        # Calls are never too late: nobody knows how long they take.
        known_s = 0.0 if self._hub.stops.ends_at is None else SEAT_EXPECTED_S
        budget = RetryBudget(0, 0, 0, 0)
        request = TaskRequest(index=index, memory_bytes=1, budget=budget, expected_s=known_s)
        self._hub.submit(self, [request])

    def send(self, worker: int, message: Any, parts: Sequence[Any] = ()) -> None:
        """See `calls.Engine`."""
        self._hub.send(worker, message, parts)

    def tasks_wait(self) -> bool:
        """See `calls.Engine`."""
        return self._hub.tasks_wait()

    def place_of(self, worker: int) -> str:
        """See `calls.Engine`."""
        return self._hub.name_of(worker)

    @property
    def slots(self) -> int:
        """See `calls.Engine`."""
        return self._hub.slots


def internal(error: BaseException) -> InternalError:
    """Wrap what is our defect, with its traceback: it happened in another thread than it is raised in."""
    text = "".join(traceback.format_exception(error))
    return InternalError(f"the engine's thread failed:\n{text.rstrip()}")
