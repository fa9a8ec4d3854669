"""The scheduler's decisions, one rule at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from keystone_mpi.core import actions, events
from keystone_mpi.core.actions import Finish, FinishReason
from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import (
    AttemptReport,
    Outcome,
    RetryBudget,
    TaskRequest,
    TaskSource,
    TaskState,
    Why,
)
from keystone_mpi.core.scheduler import Scheduler
from keystone_mpi.core.simulate import RangeSource
from keystone_mpi.core.transitions import LEGAL, Phase

GIB = 1 << 30


class Bench:
    """A scheduler, a clock, and what it said last."""

    def __init__(self, source: TaskSource | None = None, **options: Any) -> None:
        self.scheduler = Scheduler(source, **options)
        self.now = 0.0
        self.out: list[actions.Action] = []
        self.all: list[actions.Action] = []
        self.where: dict[int, tuple[int, int]] = {}

    def tell(self, *happened: events.Event) -> list[actions.Action]:
        self.out = self.scheduler.handle_many(happened, self.now)
        self.all += self.out
        self.scheduler.check_invariants()
        for action in self.out:
            if isinstance(action, actions.Assign):
                self.where.update((a.index, (action.worker, a.attempt)) for a in action.attempts)
        return self.out

    def submit(self, *requests: TaskRequest) -> list[actions.Action]:
        return self.tell(events.TasksSubmitted(list(requests)))

    def join(self, *slots: int, memory_bytes: int = 0, gpus: int = 0) -> None:
        first = len(self.scheduler.pool.workers)
        self.tell(
            *(events.WorkerJoined(first + n, count, memory_bytes, gpus) for n, count in enumerate(slots))
        )

    def report(self, index: int, outcome: Outcome = Outcome.SUCCESS, **fields: Any) -> list[actions.Action]:
        worker, attempt = self.where[index]
        return self.tell(events.AttemptFinished(worker, AttemptReport(index, attempt, outcome, **fields)))

    def given(self, said: Iterable[actions.Action] | None = None) -> dict[int, list[int]]:
        """Worker -> tasks given to it, in order."""
        given: dict[int, list[int]] = {}
        for action in self.out if said is None else said:
            if isinstance(action, actions.Assign):
                given.setdefault(action.worker, []).extend(a.index for a in action.attempts)
        return given

    def order(self) -> list[int]:
        """Tasks in the order in which they were given so far."""
        return [index for action in self.all for tasks in self.given([action]).values() for index in tasks]

    def ended(self) -> dict[int, tuple[TaskState, Why]]:
        return {a.index: (a.state, a.why) for a in self.all if isinstance(a, actions.Notify)}

    def finish(self) -> Finish | None:
        found = [action for action in self.all if isinstance(action, Finish)]
        assert len(found) <= 1
        return found[0] if found else None

    def error(self, index: int) -> str:
        return next(a.error for a in self.all if isinstance(a, actions.Notify) and a.index == index)


def tasks(count: int, **fields: Any) -> RangeSource:
    return RangeSource(count, lambda index: TaskRequest(index, **fields))


# -- order and placement


def test_one_task_from_first_to_last_action() -> None:
    bench = Bench(tasks(1))
    bench.tell(events.WorkerJoined(7, 2))
    assert [type(action) for action in bench.out] == [actions.RecordAssigned, actions.Assign]
    assert bench.given() == {7: [0]}
    report = AttemptReport(0, 1, Outcome.SUCCESS, scalars={"x": 1.0})
    out = bench.tell(events.AttemptFinished(7, report))
    assert out == [
        actions.RecordAttempt(7, report, TaskState.SUCCESS),
        actions.Notify(0, TaskState.SUCCESS, Why.NONE, "", report),
        actions.Finish(FinishReason.COMPLETE, 0),
    ]
    assert bench.scheduler.tasks == {}


def test_order_is_priority_then_longest_expected_then_submission() -> None:
    bench = Bench(open_ended=True)
    bench.submit(
        TaskRequest(0),
        TaskRequest(1, expected_s=5.0),
        TaskRequest(2, priority=1.0),
        TaskRequest(3),
        TaskRequest(4, expected_s=9.0),
        TaskRequest(5, priority=1.0, expected_s=1.0),
    )
    bench.join(1)
    for _ in range(5):
        bench.report(bench.order()[-1])
    assert bench.order() == [5, 2, 4, 1, 0, 3]


def test_tasks_are_spread_evenly() -> None:
    bench = Bench(tasks(10))
    bench.join(4, 4, 4, 4, 4)
    assert sorted(map(len, bench.given().values())) == [2, 2, 2, 2, 2]


def test_what_a_worker_gets_in_a_pass_travels_together() -> None:
    bench = Bench(tasks(10))
    bench.join(4, 4)
    assert [type(a) for a in bench.out] == [actions.RecordAssigned, actions.Assign] * 2


def test_cores_memory_and_gpus_are_counted() -> None:
    bench = Bench(open_ended=True)
    bench.tell(events.WorkerJoined(0, 8, 8 * GIB, 1))
    bench.submit(TaskRequest(0, cores=4, memory_bytes=GIB), TaskRequest(1, memory_bytes=6 * GIB))
    bench.submit(TaskRequest(2, gpus=1), TaskRequest(3, gpus=1), TaskRequest(4, memory_bytes=2 * GIB))
    bench.submit(TaskRequest(5, cores=3))
    assert sorted(bench.where) == [0, 1, 2]
    bench.report(1)
    assert sorted(bench.where) == [0, 1, 2, 4]
    bench.report(2)
    assert sorted(bench.where) == [0, 1, 2, 3, 4]
    bench.report(0)
    assert sorted(bench.where) == [0, 1, 2, 3, 4, 5]


def test_a_worker_that_does_not_know_its_memory_takes_any() -> None:
    bench = Bench(tasks(1, memory_bytes=1 << 50))
    bench.join(1)
    assert bench.given() == {0: [0]}


def test_more_slots_than_the_window_are_all_filled() -> None:
    bench = Bench(tasks(1000), lookahead=16)
    bench.join(*[10] * 50)
    assert bench.scheduler.counts().running == 500


def test_a_full_window_is_followed_by_the_next_in_the_same_pass() -> None:
    bench = Bench(tasks(1000), lookahead=16)
    bench.join(1)
    bench.join(100)
    assert bench.scheduler.counts().running == 101


def test_a_wide_task_does_not_starve_behind_narrow_ones() -> None:
    bench = Bench(open_ended=True)
    bench.join(4, 4)
    bench.submit(*(TaskRequest(n) for n in range(8)))
    bench.submit(TaskRequest(100, cores=4), *(TaskRequest(n) for n in range(8, 60)))
    ended = 0
    while 100 not in bench.where:
        assert ended < 8, "narrow tasks keep taking the room of the wide one"
        # The one that was given longest ago ends.
        bench.report(bench.order()[ended], duration_s=60.0)
        ended += 1
    # Meanwhile the other worker was not idle.
    assert len(bench.order()) >= 8 + 1


def test_a_reserved_worker_takes_what_the_wide_task_does_not_lack() -> None:
    bench = Bench(open_ended=True)
    bench.tell(events.WorkerJoined(0, 8, 8 * GIB))
    bench.submit(TaskRequest(0, memory_bytes=6 * GIB), TaskRequest(1, memory_bytes=6 * GIB), TaskRequest(2))
    assert sorted(bench.where) == [0, 2]
    bench.submit(TaskRequest(3, memory_bytes=GIB))
    assert 3 not in bench.where, "it would take the memory that task 1 waits for"
    bench.report(0)
    assert sorted(bench.where) == [0, 1, 2, 3]


def test_a_task_ahead_in_the_order_may_use_a_reserved_worker() -> None:
    bench = Bench(open_ended=True)
    bench.join(2)
    bench.submit(TaskRequest(0), TaskRequest(1, cores=2), TaskRequest(2))
    assert sorted(bench.where) == [0], "task 2 would push back task 1"
    bench.submit(TaskRequest(3, priority=1.0))
    assert sorted(bench.where) == [0, 3]


# -- prefetch and recall


def test_nothing_is_given_in_advance_before_a_duration_is_known() -> None:
    bench = Bench(tasks(1000))
    bench.join(2, 2)
    assert bench.scheduler.counts().running == 4
    assert bench.scheduler.counts().backlog == 0


@pytest.mark.parametrize(("duration_s", "backlog"), [(0.01, 20), (0.0001, 256), (0.3, 2), (0.6, 0)])
def test_short_tasks_are_given_in_advance(duration_s: float, backlog: int) -> None:
    bench = Bench(tasks(10_000))
    bench.join(2, 2)
    bench.report(0, duration_s=duration_s)
    assert bench.scheduler.counts().backlog == backlog
    assert len(bench.given()[0]) == backlog + 1, "one message"


def test_a_backlog_is_filled_again_when_it_has_halved() -> None:
    bench = Bench(tasks(10_000), lookahead=200)
    bench.join(1)
    bench.report(0, duration_s=0.01)
    assert bench.scheduler.counts().backlog == 10
    messages = 0
    for index in range(1, 101):
        messages += len(bench.given(bench.report(index, duration_s=0.01)))
        assert bench.scheduler.counts().backlog >= 5
    assert 100 / 6 <= messages <= 100 / 4


def test_few_remaining_tasks_are_not_hoarded() -> None:
    bench = Bench(tasks(20))
    bench.join(1, 1, 1, 1)
    bench.report(0, duration_s=0.001)
    # 15 are left for 4 slots: a fair share, not all of them.
    assert bench.scheduler.counts().backlog <= 4


def test_nothing_is_given_in_advance_while_wide_tasks_wait() -> None:
    bench = Bench(open_ended=True)
    bench.join(2)
    bench.submit(*(TaskRequest(n, cores=1 + n % 2) for n in range(100)))
    bench.report(0, duration_s=0.001)
    assert bench.scheduler.counts().backlog == 0


def test_an_idle_worker_gets_what_a_busy_one_holds_in_advance() -> None:
    bench = Bench(tasks(40))
    bench.join(1, 1)
    bench.report(0, duration_s=0.01)
    assert bench.scheduler.counts().backlog > 2
    # Worker 1 goes on alone until it finds nothing more to do.
    while not any(isinstance(action, actions.Recall) for action in bench.out):
        mine = [n for n, (worker, _) in bench.where.items() if worker == 1 and n in bench.scheduler.tasks]
        assert mine
        bench.report(min(mine), duration_s=0.01)
    recalls = [action for action in bench.out if isinstance(action, actions.Recall)]
    assert [(recall.worker, len(recall.attempts)) for recall in recalls] == [(0, 1)]
    (index, attempt) = recalls[0].attempts[0]
    assert index == max(bench.given(bench.all)[0]), "what was given last is asked back"
    # It is asked for once, and handed on under the same number.
    assert not any(isinstance(a, actions.Recall) for a in bench.tell(events.DeadlinePassed()))
    bench.tell(events.TasksReturned(0, [(index, attempt)]))
    assert actions.RecordTask(index, TaskState.PENDING, Why.NONE, "", 1) in bench.out
    assert bench.given() == {1: [index]}
    assert bench.where[index] == (1, attempt)


def test_a_task_that_fits_no_worker_does_not_keep_others_idle() -> None:
    bench = Bench(tasks(40))
    bench.join(1, 1)
    bench.report(0, duration_s=0.01)
    bench.submit(TaskRequest(1000, cores=8))
    while not any(isinstance(action, actions.Recall) for action in bench.out):
        mine = [n for n, (worker, _) in bench.where.items() if worker == 1 and n in bench.scheduler.tasks]
        assert mine, "worker 1 is idle beside a backlog"
        bench.report(min(mine), duration_s=0.01)


def test_a_recalled_attempt_that_had_started_is_not_lost() -> None:
    bench = Bench(tasks(40))
    bench.join(1, 1)
    bench.report(0, duration_s=0.01)
    while not any(isinstance(action, actions.Recall) for action in bench.out):
        mine = [n for n, (worker, _) in bench.where.items() if worker == 1 and n in bench.scheduler.tasks]
        bench.report(min(mine), duration_s=0.01)
    recall = next(action for action in bench.out if isinstance(action, actions.Recall))
    index, _ = recall.attempts[0]
    bench.tell(events.TasksReturned(0, []))
    bench.report(index, duration_s=0.01)
    assert bench.ended()[index] == (TaskState.SUCCESS, Why.NONE)


# -- retries and ends


def end_states() -> list[Any]:
    return [
        pytest.param(Outcome.FAILED, Why.SIGNAL, (TaskState.FAILURE, Why.SIGNAL), "failed", id="failed"),
        pytest.param(Outcome.TIMEOUT, Why.NONE, (TaskState.TIMEOUT, Why.NONE), "timed_out", id="timeout"),
        pytest.param(
            Outcome.OUT_OF_MEMORY,
            Why.NONE,
            (TaskState.FAILURE, Why.OUT_OF_MEMORY),
            "out_of_memory",
            id="memory",
        ),
        pytest.param(
            Outcome.WORKER_LOST, Why.NONE, (TaskState.FAILURE, Why.LOST_WORKER), "worker_lost", id="lost"
        ),
    ]


@pytest.mark.parametrize(("outcome", "why", "end", "cause"), end_states())
@pytest.mark.parametrize("budget", [0, 2])
@pytest.mark.parametrize("used", [0, 1])
def test_each_cause_has_its_own_budget(
    outcome: Outcome, why: Why, end: tuple[TaskState, Why], cause: str, budget: int, used: int
) -> None:
    none = dict.fromkeys(("failed", "timed_out", "out_of_memory", "worker_lost"), 0)
    plenty = dict.fromkeys(none, 9)
    request = TaskRequest(
        0,
        budget=RetryBudget(**(plenty | {cause: budget})),
        used=RetryBudget(**(none | {cause: used})),
        attempts_before=3,
    )
    bench = Bench(RangeSource(1, lambda _: request))
    bench.join(1)
    allowed = max(0, budget - used)
    for attempt in range(4, 4 + allowed):
        assert bench.where[0] == (0, attempt)
        bench.report(0, outcome, why=why)
        record = next(a for a in bench.out if isinstance(a, actions.RecordAttempt))
        assert record.state is TaskState.PENDING
        assert not bench.ended()
        bench.now += 100.0
        bench.tell(events.DeadlinePassed())
    assert bench.where[0] == (0, 4 + allowed)
    bench.report(0, outcome, why=why)
    record = next(a for a in bench.out if isinstance(a, actions.RecordAttempt))
    assert (record.state, record.report.why) == end
    assert bench.ended() == {0: end}
    assert bench.finish() == Finish(FinishReason.COMPLETE, 0)


def test_an_interruption_costs_nothing() -> None:
    bench = Bench(tasks(1, budget=RetryBudget(0, 0, 0, 0)))
    bench.join(1)
    for attempt in range(1, 50):
        assert bench.where[0] == (0, attempt)
        bench.report(0, Outcome.INTERRUPTED)
    assert not bench.ended()


def test_a_retried_task_keeps_its_place_in_the_order() -> None:
    bench = Bench(tasks(5, budget=RetryBudget(failed=1)))
    bench.join(1)
    bench.report(0, Outcome.FAILED)
    assert bench.given() == {0: [0]}


def test_a_lost_worker_delays_the_retry_more_each_time() -> None:
    bench = Bench(tasks(1, budget=RetryBudget(worker_lost=5)))
    bench.join(1)
    delays = []
    for _ in range(3):
        bench.report(0, Outcome.WORKER_LOST)
        deadline = bench.scheduler.next_deadline()
        assert deadline is not None
        assert not bench.given()
        delays.append(deadline - bench.now)
        bench.now = deadline
        bench.tell(events.DeadlinePassed())
        assert bench.given() == {0: [0]}
        assert bench.scheduler.next_deadline() is None
    assert 0 < delays[0] < delays[1] < delays[2]


def test_a_task_that_loses_three_workers_is_quarantined() -> None:
    bench = Bench(tasks(1))
    for worker in range(3):
        bench.tell(events.WorkerJoined(worker, 1))
        bench.now += 100.0
        bench.tell(events.DeadlinePassed())
        assert bench.where[0] == (worker, worker + 1)
        bench.tell(events.WorkerLost(worker, "its rank died"))
    assert bench.ended() == {0: (TaskState.FAILURE, Why.LOST_WORKER)}
    assert (
        bench.error(0)
        == "quarantined: its worker was lost 3 times, the last time: worker 2 was lost: its rank died"
    )


def test_a_lost_worker_charges_what_ran_and_not_its_backlog() -> None:
    bench = Bench(tasks(1000))
    bench.join(1)
    bench.report(0, duration_s=0.02)
    backlog = sorted(index for index in bench.where if index > 1)
    assert len(backlog) == 5
    bench.tell(events.AttemptStarted(0, 3, 1, 12.5))
    bench.tell(events.WorkerLost(0, "gone"))
    reports = {a.report.index: a.report for a in bench.out if isinstance(a, actions.RecordAttempt)}
    assert set(reports) == {1, *backlog}
    charged = {index for index, report in reports.items() if report.outcome is Outcome.WORKER_LOST}
    assert charged == {1, 3}, "the one with the slot, and the one known to have started"
    assert {r.outcome for i, r in reports.items() if i not in charged} == {Outcome.INTERRUPTED}
    assert reports[3].started == 12.5


def test_late_and_double_reports_are_ignored_and_counted() -> None:
    bench = Bench(tasks(3, budget=RetryBudget(failed=1)))
    bench.join(1, 1)
    bench.report(0)
    assert bench.report(0) == []
    bench.report(1, Outcome.FAILED)
    late = AttemptReport(1, 1, Outcome.SUCCESS)
    assert bench.tell(events.AttemptFinished(1, late)) == []
    assert bench.tell(events.AttemptFinished(5, AttemptReport(2, 1, Outcome.SUCCESS))) == []
    assert bench.tell(events.AttemptStarted(0, 0, 1, 0.0), events.TasksReturned(0, [(0, 1), (99, 1)])) == []
    assert bench.tell(events.WorkerLost(42, "never joined")) == []
    assert bench.scheduler.ignored == 7
    assert 1 not in bench.ended()


def test_a_worker_cannot_return_what_it_said_it_started() -> None:
    bench = Bench(tasks(2))
    bench.join(1)
    bench.tell(events.AttemptStarted(0, 0, 1, 1.0), events.TasksReturned(0, [(0, 1)]))
    assert bench.out == [actions.RecordStarted(0, 0, 1, 1.0)]
    bench.report(0)
    assert bench.ended() == {0: (TaskState.SUCCESS, Why.NONE)}


# -- dependencies


def test_a_task_waits_for_what_it_depends_on() -> None:
    bench = Bench(open_ended=True)
    bench.join(4)
    bench.submit(
        TaskRequest(0), TaskRequest(1), TaskRequest(2, depends_on=(0, 1, 1)), TaskRequest(3, depends_on=(2,))
    )
    assert sorted(bench.where) == [0, 1]
    bench.report(0)
    assert sorted(bench.where) == [0, 1]
    bench.report(1)
    assert sorted(bench.where) == [0, 1, 2]
    bench.report(2)
    assert sorted(bench.where) == [0, 1, 2, 3]
    bench.submit(TaskRequest(4, depends_on=(0, 3)))
    bench.report(3)
    assert 4 in bench.where


def test_a_failure_ends_a_long_chain_of_dependents() -> None:
    bench = Bench(open_ended=True)
    bench.join(1)
    bench.submit(TaskRequest(0), *(TaskRequest(n, depends_on=(n - 1,)) for n in range(1, 5000)))
    bench.report(0, Outcome.FAILED, why=Why.EXIT_CODE)
    assert len(bench.ended()) == 5000
    assert bench.ended()[4999] == (TaskState.CANCELLED, Why.DEPENDENCY)
    assert bench.error(1) == "task 0, which it depends on, ended FAILURE"
    bench.submit(TaskRequest(6000, depends_on=(7,)))
    assert bench.ended()[6000] == (TaskState.CANCELLED, Why.DEPENDENCY)


def test_dependencies_that_can_never_be_met_end_their_tasks_at_the_close() -> None:
    bench = Bench(open_ended=True)
    bench.join(1)
    bench.submit(
        TaskRequest(0, depends_on=(77,)),
        TaskRequest(1, depends_on=(0,)),
        TaskRequest(2, depends_on=(3,)),
        TaskRequest(3, depends_on=(2,)),
    )
    assert not bench.ended()
    bench.tell(events.CloseRequested())
    assert bench.ended() == dict.fromkeys(range(4), (TaskState.CANCELLED, Why.DEPENDENCY))
    assert bench.error(0) == "task 77, which it depends on, was never submitted"
    assert bench.error(1) == "task 0, which it depends on, ended CANCELLED"
    assert bench.error(2) == "the tasks that it depends on wait for each other"
    assert bench.finish() == Finish(FinishReason.COMPLETE, 0)


def test_what_depends_on_a_task_that_is_too_late_is_pending_as_well() -> None:
    bench = Bench(ends_at=10.0, open_ended=True)
    bench.join(1)
    bench.tell(events.AllWorkersJoined())
    late = TaskRequest(0, expected_s=100.0)
    bench.tell(events.TasksSubmitted([late, TaskRequest(1, depends_on=(0,))]), events.CloseRequested())
    assert not bench.ended()
    assert bench.finish() == Finish(FinishReason.WALLTIME, 2)


# -- cancel, drain, stop, pause


def test_cancel() -> None:
    bench = Bench(tasks(40), lookahead=4)
    bench.join(1)
    bench.tell(events.CancelRequested(2))
    assert bench.out[:2] == [
        actions.RecordTask(2, TaskState.CANCELLED, Why.BY_USER, "cancelled by the user"),
        actions.Notify(2, TaskState.CANCELLED, Why.BY_USER, "cancelled by the user"),
    ]
    bench.tell(events.CancelRequested(0, "ada"))
    assert bench.out == [actions.Cancel(0, 0, 1)]
    assert bench.tell(events.CancelRequested(0)) == [], "asked once"
    bench.report(0, Outcome.CANCELLED)
    assert bench.error(0) == "cancelled by ada"
    bench.tell(events.CancelRequested(30))
    assert bench.ended()[30] == (TaskState.CANCELLED, Why.BY_USER), "still in the source"
    assert bench.tell(events.CancelRequested(0), events.CancelRequested(30)) == [], "it has ended"
    while bench.finish() is None:
        bench.report(bench.order()[-1])
    assert set(bench.order()) == set(range(40)) - {2, 30}
    assert bench.scheduler.counts().cancelled == 3


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.SUCCESS, TaskState.SUCCESS),
        (Outcome.FAILED, TaskState.FAILURE),
        (Outcome.CANCELLED, TaskState.CANCELLED),
        (Outcome.INTERRUPTED, TaskState.CANCELLED),
        (Outcome.WORKER_LOST, TaskState.CANCELLED),
    ],
)
def test_the_report_decides_about_a_cancelled_attempt(outcome: Outcome, state: TaskState) -> None:
    bench = Bench(tasks(1, budget=RetryBudget(9, 9, 9, 9)))
    bench.join(1)
    bench.tell(events.CancelRequested(0))
    bench.report(0, outcome)
    assert bench.ended()[0][0] is state


def test_drain_starts_nothing_and_takes_back_what_has_not_started() -> None:
    bench = Bench(tasks(1000))
    bench.join(1)
    bench.report(0, duration_s=0.02)
    bench.tell(events.DrainRequested())
    (recall,) = bench.out
    assert isinstance(recall, actions.Recall)
    # The one on the core, too: no start of it was heard, and it may have to wait there.
    assert [index for index, _ in recall.attempts] == [6, 5, 4, 3, 2, 1]
    bench.tell(events.TasksReturned(0, recall.attempts[:-1]))
    assert bench.finish() is None
    bench.report(1)
    assert bench.finish() == Finish(FinishReason.DRAINED, 998)
    assert max(bench.order()) == 6
    assert bench.report(1) == []


def test_a_drain_with_nothing_left_is_complete() -> None:
    bench = Bench(tasks(1))
    bench.join(1)
    bench.tell(events.DrainRequested())
    bench.report(0)
    assert bench.finish() == Finish(FinishReason.COMPLETE, 0)


def test_stop_interrupts_what_runs() -> None:
    bench = Bench(tasks(10, budget=RetryBudget(0, 0, 0, 0)))
    bench.join(2)
    bench.tell(events.StopRequested())
    assert bench.out == [actions.Cancel(0, 0, 1, True), actions.Cancel(0, 1, 1, True)]
    assert bench.tell(events.StopRequested()) == []
    bench.report(0, Outcome.INTERRUPTED)
    assert not bench.given()
    # A worker that dies while the run stops costs its task nothing either.
    bench.tell(events.WorkerLost(0, "killed"))
    assert not bench.ended()
    assert bench.finish() == Finish(FinishReason.STOPPED, 10)


def test_pause_holds_dispatch_and_nothing_else() -> None:
    bench = Bench(tasks(10, budget=RetryBudget(worker_lost=2)))
    bench.join(1)
    bench.tell(events.DispatchPaused())
    bench.report(0)
    assert bench.ended()
    assert not bench.given()
    bench.join(1)
    assert bench.scheduler.next_deadline() is None
    bench.tell(events.DispatchResumed())
    assert bench.given() == {0: [1], 1: [2]}


def test_finish_comes_once_and_not_in_an_open_ended_session() -> None:
    bench = Bench(open_ended=True)
    bench.join(1)
    bench.submit(TaskRequest(0))
    bench.report(0)
    assert bench.finish() is None
    bench.submit(TaskRequest(1))
    bench.tell(events.CloseRequested())
    assert bench.finish() is None
    bench.report(1)
    assert bench.finish() == Finish(FinishReason.COMPLETE, 0)
    assert bench.tell(events.DeadlinePassed(), events.DrainRequested()) == []


def test_an_empty_source_is_complete_at_once() -> None:
    bench = Bench(tasks(0))
    bench.tell(events.AllWorkersJoined())
    assert bench.finish() == Finish(FinishReason.COMPLETE, 0)


# -- too large, no workers


def test_what_fits_no_worker_ends_once_all_have_joined() -> None:
    bench = Bench(RangeSource(100, lambda n: TaskRequest(n, cores=64 if n % 2 else 1)), lookahead=8)
    bench.join(16, 4)
    assert not bench.ended()
    assert "wait for 64 cores; the largest worker has 16" in " ".join(
        reason.text for reason in bench.scheduler.why_waiting(0.0)
    )
    bench.tell(events.AllWorkersJoined())
    while bench.finish() is None:
        bench.report(min(n for n in bench.where if n in bench.scheduler.tasks))
    ended = bench.ended()
    assert len(ended) == 100
    assert {ended[n] for n in range(1, 100, 2)} == {(TaskState.FAILURE, Why.TOO_LARGE)}
    assert bench.error(1) == "it needs 64 cores; the largest worker has 16"


def test_a_task_that_fitted_a_lost_worker_is_pending_not_impossible() -> None:
    bench = Bench(RangeSource(50, lambda n: TaskRequest(n, cores=1 + n % 2)), lookahead=8)
    bench.join(2, 1)
    bench.tell(events.AllWorkersJoined())
    bench.tell(events.WorkerLost(0, "gone"))
    while bench.finish() is None:
        bench.now += 100.0
        bench.tell(events.DeadlinePassed())
        for index in [n for n, task in bench.scheduler.tasks.items() if task.worker is not None]:
            bench.report(index)
    assert bench.finish() == Finish(FinishReason.NO_WORKERS, 25)
    assert set(bench.ended()) == set(range(0, 50, 2)), "the narrow ones behind them all ran"


def test_a_large_worker_lost_before_the_others_joined_counts_too() -> None:
    bench = Bench(tasks(5, cores=8))
    bench.join(8, 1)
    bench.tell(events.WorkerLost(0, "gone"))
    bench.tell(events.AllWorkersJoined())
    assert not bench.ended()
    assert bench.finish() is None, "a retry is due"
    bench.now += 10.0
    bench.tell(events.DeadlinePassed())
    assert bench.finish() == Finish(FinishReason.NO_WORKERS, 5)


def test_the_run_ends_when_every_worker_is_lost() -> None:
    bench = Bench(tasks(5), open_ended=True)
    bench.join(1)
    bench.tell(events.AllWorkersJoined())
    bench.tell(events.WorkerLost(0, "gone"))
    assert bench.finish() == Finish(FinishReason.NO_WORKERS, 5)


def test_a_million_impossible_tasks_come_in_bounded_portions() -> None:
    bench = Bench(tasks(10_000, cores=9), lookahead=64)
    bench.join(8)
    bench.tell(events.AllWorkersJoined())
    largest = len(bench.out)
    while bench.finish() is None:
        assert bench.scheduler.next_deadline() == bench.now
        largest = max(largest, len(bench.tell(events.DeadlinePassed())))
    assert len(bench.ended()) == 10_000
    assert largest < 6000


# -- memory, explanations, defects


def test_what_is_held_follows_what_is_active_not_what_is_queued() -> None:
    bench = Bench(tasks(1_000_000), lookahead=100)
    bench.join(4)
    for index in range(50):
        bench.report(index, duration_s=60.0)
        assert len(bench.scheduler.tasks) <= 104
    assert bench.scheduler.counts().queued >= 1_000_000 - 154
    assert bench.scheduler.counts().total == 1_000_000


def test_memory_that_differs_from_task_to_task_makes_few_shapes() -> None:
    bench = Bench(RangeSource(2000, lambda n: TaskRequest(n, memory_bytes=GIB + n * 1_000_003)))
    bench.join(8, 8, memory_bytes=64 * GIB)
    assert len(bench.scheduler.queue.shapes) < 100
    sent = [a for action in bench.all if isinstance(action, actions.Assign) for a in action.attempts]
    assert all(a.memory_bytes == GIB + a.index * 1_000_003 for a in sent), "the worker gets the exact figure"


def test_rounding_never_makes_a_task_too_large() -> None:
    bench = Bench(RangeSource(101, lambda n: TaskRequest(n, memory_bytes=GIB + n)))
    bench.join(1, memory_bytes=GIB + 100)
    bench.tell(events.AllWorkersJoined())
    while bench.finish() is None:
        bench.report(bench.order()[-1])
    assert bench.scheduler.counts().success == 101


def test_why_pending_tasks_wait() -> None:
    bench = Bench(tasks(10), lookahead=4)

    def why() -> dict[str, str]:
        return {reason.kind: reason.text for reason in bench.scheduler.why_waiting(bench.now)}

    assert why() == {"no_workers": "10 tasks wait because no worker has joined yet"}
    bench.join(2)
    assert why() == {"busy": "8 tasks wait for a free slot: all 2 slots busy"}
    bench.tell(events.DispatchPaused())
    assert why()["paused"].startswith("8 tasks wait because nothing is started until the disk")
    bench.tell(events.DispatchResumed())
    bench.submit(
        TaskRequest(50, depends_on=(0,)), TaskRequest(51, cores=2), TaskRequest(52, memory_bytes=3 * GIB)
    )
    assert why()["dependencies"] == "1 task waits for tasks to end that they depend on"
    bench.report(0, Outcome.WORKER_LOST)
    assert (
        why()["retry"]
        == "1 task waits before they are tried again after their worker was lost, the next in 0.5 s"
    )
    bench.report(1)
    bench.tell(events.DrainRequested())
    assert list(why()) == ["draining", "dependencies"]


def test_an_illegal_transition_raises_with_the_history() -> None:
    bench = Bench(open_ended=True)
    bench.now = 3.0
    bench.submit(TaskRequest(4))
    task = bench.scheduler.tasks[4]
    with pytest.raises(InternalError, match=r"task 4, attempt 1: READY -> STARTED .* READY at 3\.000000"):
        bench.scheduler.ledger.move(task, Phase.STARTED, 4.0)
    assert LEGAL[Phase.ENDED] == frozenset()


def test_a_task_submitted_twice_is_a_defect() -> None:
    bench = Bench(open_ended=True)
    bench.submit(TaskRequest(4))
    with pytest.raises(InternalError, match="task 4 was submitted twice"):
        bench.submit(TaskRequest(4))
    with pytest.raises(InternalError, match="worker 0 joined twice"):
        bench.tell(events.WorkerJoined(0, 1), events.WorkerJoined(0, 1))


def test_check_invariants_notices_a_wrong_book() -> None:
    bench = Bench(tasks(10))
    bench.join(2)
    bench.scheduler.pool.idle_cores += 1
    with pytest.raises(InternalError, match="idle cores are miscounted"):
        bench.scheduler.check_invariants()
