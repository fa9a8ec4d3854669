"""What an attempt's end means for its task.

Rule: retries are counted by cause, each against a budget of its own. An
interruption costs nothing. Who asked for a cancellation gets no retry.

    AttemptReport + retries used --judge--> Verdict (PENDING: it runs again)
"""

from __future__ import annotations

import msgspec

from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import AttemptReport, Outcome, TaskState, Why
from keystone_mpi.core.transitions import Task

LOST_RETRY_DELAY_S = 0.5
"""Before the first retry of a task whose worker was lost; doubled each time."""
LOST_RETRY_DELAY_LIMIT_S = 30.0


class Verdict(msgspec.Struct, frozen=True, gc=False):
    state: TaskState
    why: Why = Why.NONE
    error: str = ""
    delay_s: float = 0.0
    """How long a task that runs again waits before."""


AGAIN = Verdict(TaskState.PENDING)

# Place of each cause in `Task.used`.
_FAILED, _TIMED_OUT, _OUT_OF_MEMORY, _WORKER_LOST = range(4)


def judge(task: Task, report: AttemptReport) -> Verdict:
    """Decide what becomes of a task whose attempt did not succeed, and count the retry used."""
    match report.outcome:
        case Outcome.SUCCESS:
            return Verdict(TaskState.SUCCESS)
        case Outcome.FAILED:
            if _may_retry(task, _FAILED, task.request.budget.failed):
                return AGAIN
            return Verdict(TaskState.FAILURE, report.why, report.error)
        case Outcome.TIMEOUT:
            if _may_retry(task, _TIMED_OUT, task.request.budget.timed_out):
                return AGAIN
            return Verdict(TaskState.TIMEOUT, report.why, report.error)
        case Outcome.OUT_OF_MEMORY:
            if _may_retry(task, _OUT_OF_MEMORY, task.request.budget.out_of_memory):
                return AGAIN
            return Verdict(TaskState.FAILURE, Why.OUT_OF_MEMORY, report.error)
        case Outcome.WORKER_LOST:
            if task.cancelled_by:
                return _cancelled(task)
            if _may_retry(task, _WORKER_LOST, task.request.budget.worker_lost):
                losses = _used(task)[_WORKER_LOST]
                delay_s = min(LOST_RETRY_DELAY_S * 2.0 ** min(losses - 1, 16), LOST_RETRY_DELAY_LIMIT_S)
                return Verdict(TaskState.PENDING, delay_s=delay_s)
            losses = _used(task)[_WORKER_LOST]
            times = "once" if losses == 1 else f"{losses} times, the last time"
            return Verdict(
                TaskState.FAILURE,
                Why.LOST_WORKER,
                f"quarantined: its worker was lost {times}: {report.error or 'no cause known'}",
            )
        case Outcome.INTERRUPTED:
            return _cancelled(task) if task.cancelled_by else AGAIN
        case Outcome.CANCELLED:
            return _cancelled(task)
        case other:
            raise InternalError(f"task {report.index}, attempt {report.attempt}: unknown outcome {other!r}")


def _cancelled(task: Task) -> Verdict:
    return Verdict(TaskState.CANCELLED, Why.BY_USER, f"cancelled by {task.cancelled_by or 'the worker'}")


def _used(task: Task) -> list[int]:
    if task.used is None:
        used = task.request.used
        task.used = [used.failed, used.timed_out, used.out_of_memory, used.worker_lost]
    return task.used


def _may_retry(task: Task, cause: int, budget: int) -> bool:
    used = _used(task)
    used[cause] += 1
    return used[cause] <= budget and not task.cancelled_by
