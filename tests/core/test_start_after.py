"""`start_after`: a task that waits for the end of others, however they end."""

from __future__ import annotations

import pytest

from keystone_mpi.core import actions, events
from keystone_mpi.core.model import AttemptReport, Outcome, RetryBudget, TaskRequest, TaskState
from keystone_mpi.core.scheduler import Scheduler


def given(out: list) -> list[int]:
    return [a.index for action in out if isinstance(action, actions.Assign) for a in action.attempts]


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.FAILED])
def test_it_starts_once_the_other_has_ended(outcome: Outcome) -> None:
    scheduler = Scheduler(None, open_ended=True)
    requests = [
        TaskRequest(0, budget=RetryBudget(failed=1)),
        TaskRequest(1, start_after=(0,)),
        TaskRequest(2, depends_on=(0,), start_after=(1,)),
    ]
    happened = [events.WorkerJoined(1, 4), events.AllWorkersJoined(), events.TasksSubmitted(requests)]
    assert given(scheduler.handle_many(happened, 0.0)) == [0]
    scheduler.check_invariants()
    out = scheduler.handle(events.AttemptFinished(1, AttemptReport(0, 1, outcome)), 1.0)
    if outcome is Outcome.FAILED:
        assert given(out) == [0], "it is tried again: it has not ended"
        out = scheduler.handle(events.AttemptFinished(1, AttemptReport(0, 2, outcome)), 2.0)
    assert given(out) == [1]
    scheduler.check_invariants()
    out = scheduler.handle(events.AttemptFinished(1, AttemptReport(1, 1, Outcome.SUCCESS)), 3.0)
    if outcome is Outcome.SUCCESS:
        assert given(out) == [2]
    else:
        assert scheduler.final_state(2) is TaskState.CANCELLED


def test_what_has_ended_before_is_not_waited_for() -> None:
    scheduler = Scheduler(None, open_ended=True)
    scheduler.finals.set(7, TaskState.FAILURE)
    happened = [
        events.WorkerJoined(1, 1),
        events.AllWorkersJoined(),
        events.TasksSubmitted([TaskRequest(8, start_after=(7,))]),
    ]
    assert given(scheduler.handle_many(happened, 0.0)) == [8]
