"""The end of the allocation: what does not fit is not started, and the run ends saying so."""

from __future__ import annotations

import random

from test_scheduler import Bench, tasks

from keystone_mpi.core import events
from keystone_mpi.core.actions import Finish, FinishReason
from keystone_mpi.core.durations import TimeLeft
from keystone_mpi.core.model import Outcome, TaskRequest, TaskState
from keystone_mpi.core.simulate import RangeSource


def test_a_task_that_does_not_fit_is_passed_over_for_one_that_does() -> None:
    bench = Bench(open_ended=True, ends_at=100.0)
    bench.submit(
        TaskRequest(0, expected_s=120.0), TaskRequest(1, expected_s=90.0), TaskRequest(2, expected_s=5.0)
    )
    bench.join(1)
    assert bench.order() == [1]
    bench.now = 90.0
    bench.report(1, duration_s=90.0)
    assert bench.order() == [1, 2]
    waiting = bench.scheduler.why_waiting(bench.now)
    assert [(line.kind, line.tasks) for line in waiting] == [("walltime", 1)]
    assert "10 s" in waiting[0].text
    assert bench.scheduler.counts().pending == 1
    bench.report(2, duration_s=5.0)
    assert bench.finish() is None, "more may be submitted"
    bench.tell(events.CloseRequested())
    assert bench.finish() == Finish(FinishReason.WALLTIME, 1)


def test_unknown_tasks_take_what_others_took_then_their_timeout_then_nothing() -> None:
    left = TimeLeft(100.0)
    assert left.expected_s(TaskRequest(0)) == 0.0
    assert left.suffices(TaskRequest(0, timeout_s=30.0), 0.0)
    assert left.expected_s(TaskRequest(0, timeout_s=30.0)) == 30.0
    assert left.expected_s(TaskRequest(0, timeout_s=101.0)) == 0.0, "else it would never be started"
    left.observe(10.0)
    left.observe(float("nan"))
    assert left.expected_s(TaskRequest(0)) == 10.0
    left.observe(20.0)
    assert left.expected_s(TaskRequest(0)) == 20.0, "never more than the longest seen"
    assert left.expected_s(TaskRequest(0, timeout_s=12.0)) == 12.0
    assert left.expected_s(TaskRequest(0, expected_s=3.0)) == 3.0
    assert left.suffices(TaskRequest(0, expected_s=3.0), 97.0)
    assert not left.suffices(TaskRequest(0, expected_s=3.0), 97.1)
    assert TimeLeft(None).suffices(TaskRequest(0, expected_s=1e9), 0.0)


def test_the_run_ends_when_nothing_that_is_left_fits() -> None:
    bench = Bench(tasks(20), ends_at=100.0)
    bench.join(2)
    bench.tell(events.AllWorkersJoined())
    while bench.finish() is None:
        bench.now += 30.0
        for index in [index for index in bench.where if bench.scheduler.final_state(index) is None]:
            bench.report(index, duration_s=30.0)
    assert bench.finish() == Finish(FinishReason.WALLTIME, 14)
    assert len(bench.order()) == 6


def test_a_retry_that_no_longer_fits_waits_for_the_next_start() -> None:
    bench = Bench(open_ended=True, ends_at=10.0)
    bench.submit(TaskRequest(0, expected_s=6.0))
    bench.join(1)
    bench.now = 6.0
    bench.report(0, Outcome.INTERRUPTED, duration_s=6.0)
    bench.tell(events.CloseRequested())
    assert bench.finish() == Finish(FinishReason.WALLTIME, 1)
    assert bench.scheduler.final_state(0) is None


def test_the_end_of_the_allocation_may_move() -> None:
    """Later: what was set aside is started after all. Earlier: what no longer fits is not."""
    bench = Bench(open_ended=True, ends_at=10.0)
    bench.submit(TaskRequest(0, expected_s=5.0), *(TaskRequest(k, expected_s=60.0) for k in (1, 2, 3, 4)))
    bench.join(1)
    bench.report(0, duration_s=5.0)
    assert bench.order() == [0]
    bench.now = 6.0
    bench.tell(events.EndMoved(100.0))
    assert bench.order() == [0, 1]
    bench.now = 66.0
    bench.report(1, duration_s=60.0)
    assert bench.order() == [0, 1]
    bench.tell(events.EndMoved(None))
    assert bench.order() == [0, 1, 2]
    bench.tell(events.EndMoved(130.0))
    bench.now = 126.0
    bench.report(2, duration_s=60.0)
    bench.tell(events.CloseRequested())
    assert bench.finish() == Finish(FinishReason.WALLTIME, 2)


def test_what_is_set_aside_can_be_cancelled() -> None:
    bench = Bench(open_ended=True, ends_at=10.0)
    bench.submit(TaskRequest(0, expected_s=60.0), TaskRequest(1, expected_s=5.0))
    bench.join(1)
    bench.tell(events.CancelRequested(0))
    assert bench.ended()[0][0] is TaskState.CANCELLED
    bench.report(1)
    bench.tell(events.CloseRequested())
    assert bench.finish() == Finish(FinishReason.COMPLETE, 0)


def test_memory_stays_bounded_when_nothing_fits() -> None:
    source = RangeSource(10**6, lambda index: TaskRequest(index, expected_s=50.0))
    bench = Bench(source, ends_at=10.0, lookahead=64)
    bench.join(4)
    assert bench.finish() is None or bench.finish() == Finish(FinishReason.WALLTIME, 10**6)
    for _ in range(100):
        if bench.finish() is not None:
            break
        bench.tell(events.DeadlinePassed())
    assert bench.finish() == Finish(FinishReason.WALLTIME, 10**6)
    assert len(bench.scheduler.tasks) <= 64 * 10


def test_nothing_ever_runs_past_the_end_when_durations_are_known() -> None:
    rng = random.Random(3)
    lengths = [rng.uniform(1.0, 40.0) for _ in range(200)]
    bench = Bench(
        RangeSource(200, lambda index: TaskRequest(index, expected_s=lengths[index])), ends_at=100.0
    )
    bench.join(3, 2)
    bench.tell(events.AllWorkersJoined())
    running: dict[int, float] = {}
    while bench.finish() is None:
        for index in bench.where:
            if index not in running and bench.scheduler.final_state(index) is None:
                running[index] = bench.now + lengths[index]
                assert running[index] <= 100.0
        index = min(running, key=running.__getitem__)
        bench.now = running.pop(index)
        bench.report(index, duration_s=lengths[index])
    finish = bench.finish()
    assert finish is not None
    assert finish.reason is FinishReason.WALLTIME
    assert bench.now > 90.0, "the time that was left was used"
