"""The scheduler under anything that can happen, in any order.

Played workers do what real ones do (messages in order, attempts started in
order as cores allow), while hypothesis chooses who moves next, who dies, what
is late, what comes twice. After every step the scheduler's own books are
counted anew, and a second, simpler book kept here must agree.
"""

from __future__ import annotations

from collections import deque

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keystone_mpi.core import actions, events
from keystone_mpi.core.actions import FinishReason
from keystone_mpi.core.model import (
    FINAL_STATES,
    Assignment,
    AttemptReport,
    Outcome,
    RetryBudget,
    TaskRequest,
    TaskState,
)
from keystone_mpi.core.scheduler import Scheduler
from keystone_mpi.core.simulate import RangeSource

GIB = 1 << 30
FIRST_SUBMITTED = 1000
MOVES: list[str | Outcome] = (
    ["all"] * 6 + ["read"] * 3 + ["heard"] * 3 + [Outcome.SUCCESS] * 2 + list(Outcome)
)


def make_request(index: int) -> TaskRequest:
    """A task whose needs, order and budget follow from its index, most of them plain."""
    cores, memory_bytes, gpus = (
        [(1, 0, 0)] * 6 + [(2, 0, 0), (4, 0, 0), (1, GIB, 0), (2, 3 * GIB, 0), (1, 0, 1), (64, 0, 0)]
    )[(index * 7) % 12 if index % 2 else 0]
    return TaskRequest(
        index,
        cores=cores,
        memory_bytes=memory_bytes,
        gpus=gpus,
        priority=float(index % 3 == 0),
        expected_s=0.001 * (index % 5),
        budget=RetryBudget(index % 2, index % 2, index % 3, index % 3),
        attempts_before=index % 4,
    )


def plain_request(index: int) -> TaskRequest:
    """The same task with the needs of most tasks."""
    request = make_request(index)
    return TaskRequest(index, budget=request.budget, attempts_before=request.attempts_before)


def concerned(event: events.Event) -> set[int]:
    """The tasks that a worker's news is about."""
    match event:
        case events.AttemptFinished(report=report):
            return {report.index}
        case events.AttemptStarted(index=index):
            return {index}
        case events.TasksReturned(attempts=attempts):
            return {index for index, _ in attempts}
        case other:
            raise AssertionError(other)


class PlayedWorker:
    def __init__(self, joined: events.WorkerJoined) -> None:
        self.number = joined.worker
        self.room = [joined.slots, joined.memory_bytes, joined.gpus]
        self.counts_memory = joined.memory_bytes > 0
        self.inbox: deque[actions.Action] = deque()
        self.outbox: deque[events.Event] = deque()
        self.queue: deque[Assignment] = deque()
        self.running: list[Assignment] = []

    def take(self, attempt: Assignment, sign: int) -> None:
        self.room[0] -= sign * attempt.cores
        self.room[1] -= sign * attempt.memory_bytes * self.counts_memory
        self.room[2] -= sign * attempt.gpus

    def start(self) -> None:
        while self.queue:
            first = self.queue[0]
            if (
                first.cores > self.room[0]
                or (self.counts_memory and first.memory_bytes > self.room[1])
                or first.gpus > self.room[2]
            ):
                return
            self.queue.popleft()
            self.take(first, 1)
            self.running.append(first)

    def end(self, attempt: Assignment, outcome: Outcome, duration_s: float) -> None:
        self.running.remove(attempt)
        self.take(attempt, -1)
        self.say(attempt, outcome, duration_s)
        self.start()

    def say(self, attempt: Assignment, outcome: Outcome, duration_s: float) -> None:
        report = AttemptReport(attempt.index, attempt.attempt, outcome, duration_s=duration_s)
        self.outbox.append(events.AttemptFinished(self.number, report))

    def read(self) -> None:
        match self.inbox.popleft():
            case actions.Assign(attempts=attempts):
                self.queue.extend(attempts)
                self.start()
            case actions.Recall(attempts=wanted):
                back = [(a.index, a.attempt) for a in self.queue if (a.index, a.attempt) in wanted]
                self.queue = deque(a for a in self.queue if (a.index, a.attempt) not in back)
                self.outbox.append(events.TasksReturned(self.number, back))
            case actions.Cancel(index=index, attempt=number, interrupted=interrupted):
                outcome = Outcome.INTERRUPTED if interrupted else Outcome.CANCELLED
                for attempt in [a for a in self.queue if (a.index, a.attempt) == (index, number)]:
                    self.queue.remove(attempt)
                    self.say(attempt, outcome, float("nan"))
                for attempt in [a for a in self.running if (a.index, a.attempt) == (index, number)]:
                    self.end(attempt, outcome, 0.01)
            case other:
                raise AssertionError(f"not for a worker: {other}")


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        count=st.integers(0, 100),
        lookahead=st.sampled_from([1, 3, 8, 1000]),
        open_ended=st.booleans(),
        durations_s=st.sampled_from([(0.01,) * 4, (0.001, 0.01, 0.1, float("nan")), (5.0, 0.1, 0.1, 0.0)]),
        slots=st.lists(st.integers(1, 3), max_size=3),
        is_plain=st.booleans(),
    )
    def begin(
        self,
        count: int,
        lookahead: int,
        open_ended: bool,
        durations_s: tuple[float, float, float, float],
        slots: list[int],
        is_plain: bool,
    ) -> None:
        self.durations_s = durations_s
        self.now = 0.0
        # Plain: one core each, which is what is given in advance and asked back.
        make = plain_request if is_plain else make_request
        self.scheduler = Scheduler(RangeSource(count, make), lookahead=lookahead, open_ended=open_ended)
        self.count = count
        self.workers: dict[int, PlayedWorker] = {}
        self.joined = 0
        self.submitted: set[int] = set()
        self.late: list[events.Event] = []
        self.said: list[events.Event] = []
        self.owner: dict[int, tuple[int, int]] = {}
        self.recalled: set[tuple[int, int, int]] = set()
        self.recorded: dict[int, TaskState] = {}
        self.final: dict[int, TaskState] = {}
        self.last_attempt: dict[int, int] = {}
        self.finish: actions.Finish | None = None
        self.paused = self.draining = self.stopping = self.closed = self.all_joined = False
        for number in slots:
            self.worker_joins(number, 0, 0)

    # -- the engine's side

    def tell(self, *happened: events.Event) -> None:
        for action in self.scheduler.handle_many(happened, self.now):
            assert self.finish is None, "an action after Finish"
            self.act(action)

    def act(self, action: actions.Action) -> None:
        match action:
            case actions.Assign(worker=number, attempts=attempts):
                assert not any((self.paused, self.draining, self.stopping, self.finish))
                for attempt in attempts:
                    assert self.owner[attempt.index] == (number, attempt.attempt), "not recorded as assigned"
                self.workers[number].inbox.append(action)
            case actions.RecordAssigned(worker=number, attempts=attempts):
                for index, attempt in attempts:
                    assert index not in self.owner, "two workers have it"
                    assert index not in self.final, "it ended already"
                    assert attempt > self.last_attempt.get(index, make_request(index).attempts_before)
                    self.owner[index] = (number, attempt)
                    self.recalled.discard((number, index, attempt))
            case actions.Recall(worker=number, attempts=attempts):
                for index, attempt in attempts:
                    assert self.owner[index] == (number, attempt)
                    assert (number, index, attempt) not in self.recalled, "recalled twice"
                    self.recalled.add((number, index, attempt))
                self.workers[number].inbox.append(action)
            case actions.Cancel(worker=number, index=index, attempt=attempt):
                assert self.owner[index] == (number, attempt)
                self.workers[number].inbox.append(action)
            case actions.RecordStarted(worker=number, index=index, attempt=attempt):
                assert self.owner[index] == (number, attempt)
            case actions.RecordAttempt(worker=number, report=report, state=state):
                assert self.owner.pop(report.index) == (number, report.attempt)
                assert report.attempt > self.last_attempt.get(report.index, 0)
                self.last_attempt[report.index] = report.attempt
                self.record(report.index, state)
            case actions.RecordTask(index=index, state=state):
                self.owner.pop(index, None)
                self.record(index, state)
            case actions.Notify(index=index, state=state):
                assert self.recorded[index] is state, "told before it was recorded"
                assert index not in self.final, "ended twice"
                self.final[index] = state
            case actions.Finish():
                assert self.finish is None, "finished twice"
                assert not self.owner, "finished while something runs"
                self.finish = action
            case other:
                raise AssertionError(other)

    def record(self, index: int, state: TaskState) -> None:
        assert index not in self.final, "a record after the end"
        assert state in FINAL_STATES or state is TaskState.PENDING
        self.recorded[index] = state

    # -- what can happen

    @rule(slots=st.integers(0, 6), memory=st.sampled_from([0, 4 * GIB]), gpus=st.integers(0, 1))
    @precondition(lambda self: self.joined < 6)
    def worker_joins(self, slots: int, memory: int, gpus: int) -> None:
        joined = events.WorkerJoined(self.joined, slots, memory, gpus)
        self.joined += 1
        self.workers[joined.worker] = PlayedWorker(joined)
        self.tell(joined)

    @rule()
    def all_workers_joined(self) -> None:
        if self.joined >= 2:
            self.all_joined = True
            self.tell(events.AllWorkersJoined())

    @rule(moves=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(MOVES)), min_size=1, max_size=25))
    @precondition(lambda self: self.workers)
    def work_goes_on(self, moves: list[tuple[int, str | Outcome]]) -> None:
        """Workers read, end attempts and are heard, some of them far behind the others."""
        for place, move in moves:
            numbers = sorted(self.workers)
            worker = self.workers[numbers[place % len(numbers)]]
            match move:
                case "read" if worker.inbox:
                    worker.read()
                case "heard" if worker.outbox:
                    self.hear(worker, 1 + place % 3)
                case Outcome() if worker.running:
                    attempt = worker.running[place % len(worker.running)]
                    worker.end(attempt, move, self.durations_s[attempt.index % 4])
                case "all":
                    while worker.inbox:
                        worker.read()
                    if worker.running:
                        worker.end(worker.running[0], Outcome.SUCCESS, self.durations_s[place % 4])
                    self.hear(worker, len(worker.outbox))

    @rule(moves=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(MOVES)), min_size=5, max_size=25))
    @precondition(lambda self: self.workers)
    def work_goes_on_as_well(self, moves: list[tuple[int, str | Outcome]]) -> None:
        """Double the weight of the rule above."""
        self.work_goes_on(moves)

    def hear(self, worker: PlayedWorker, limit: int) -> None:
        news = [worker.outbox.popleft() for _ in range(min(limit, len(worker.outbox)))]
        self.said.extend(event for event in news if not isinstance(event, events.TasksReturned))
        self.tell(*news)

    @rule(data=st.data())
    @precondition(lambda self: any(worker.running for worker in self.workers.values()))
    def attempt_is_known_to_run(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([w for _, w in sorted(self.workers.items()) if w.running]))
        attempt = data.draw(st.sampled_from(worker.running))
        worker.outbox.append(events.AttemptStarted(worker.number, attempt.index, attempt.attempt, 5.0))

    @rule(data=st.data())
    @precondition(lambda self: len(self.workers) > 1)
    def worker_is_lost(self, data: st.DataObject) -> None:
        worker = self.workers.pop(data.draw(st.sampled_from(sorted(self.workers))))
        self.late.extend(worker.outbox)
        for attempt in worker.running:
            worker.say(attempt, Outcome.SUCCESS, 1.0)
        self.late.extend(worker.outbox)
        self.tell(events.WorkerLost(worker.number, "it died"))

    @rule(data=st.data())
    @precondition(lambda self: self.late or self.said)
    def late_or_double_news_arrives(self, data: st.DataObject) -> None:
        # News of a task that runs again is where it could do harm.
        news = self.late + self.said
        harmful = [event for event in news if concerned(event) & self.owner.keys()]
        event = data.draw(st.sampled_from(harmful or news))
        if isinstance(event, events.AttemptStarted) and event.index in self.owner:
            return  # true again if the attempt still runs
        owner, final = dict(self.owner), dict(self.final)
        ignored = self.scheduler.ignored
        self.tell(event)
        assert self.finish or self.scheduler.ignored > ignored or isinstance(event, events.TasksReturned)
        # Any event makes a pass, which may give or end other tasks: of these, none may have moved.
        for index in concerned(event):
            assert index not in owner or self.owner.get(index) == owner[index], "late news moved a task"
            assert self.final.get(index) == final.get(index), "late news ended a task"
        for index in owner:
            assert self.owner.get(index) == owner[index], "late news moved another task"

    @rule(data=st.data(), count=st.integers(1, 4))
    def tasks_are_submitted(self, data: st.DataObject, count: int) -> None:
        if self.closed or self.finish:
            return
        first = FIRST_SUBMITTED + len(self.submitted)
        requests = []
        for index in range(first, first + count):
            # Earlier tasks, tasks of the source, one that comes later, one that never comes, itself.
            known = st.integers(0, 110) | st.integers(FIRST_SUBMITTED, index + 1)
            needs = data.draw(st.lists(known, max_size=3))
            base = make_request(index)
            requests.append(
                TaskRequest(index, cores=base.cores, budget=base.budget, depends_on=tuple(needs),
                            attempts_before=base.attempts_before)
            )  # fmt: skip
            self.submitted.add(index)
        self.tell(events.TasksSubmitted(requests))

    @rule(data=st.data())
    def task_is_cancelled(self, data: st.DataObject) -> None:
        known = [*range(self.count), *sorted(self.submitted)]
        if known:
            self.tell(events.CancelRequested(data.draw(st.sampled_from(known)), "a test"))

    @rule()
    def dispatch_pauses(self) -> None:
        self.paused = True
        self.tell(events.DispatchPaused())

    @rule()
    def dispatch_resumes(self) -> None:
        self.paused = False
        self.tell(events.DispatchResumed())

    @rule(chance=st.integers(0, 15))
    def drain(self, chance: int) -> None:
        if chance == 13:
            self.draining = self.draining or self.finish is None
            self.tell(events.DrainRequested())

    @rule(chance=st.integers(0, 15))
    def stop(self, chance: int) -> None:
        if chance == 13:
            self.stopping = self.stopping or self.finish is None
            self.tell(events.StopRequested())

    @rule(in_s=st.sampled_from([None, None, 0.0, 0.05, 50.0]))
    def the_allocations_end_moves(self, in_s: float | None) -> None:
        self.tell(events.EndMoved(None if in_s is None else self.now + in_s))

    @rule()
    def close(self) -> None:
        self.closed = True
        self.tell(events.CloseRequested())

    @rule(by_s=st.sampled_from([0.1, 1.0, 40.0]))
    def time_passes(self, by_s: float) -> None:
        self.now += by_s
        for _ in range(100):
            deadline = self.scheduler.next_deadline()
            if deadline is None or deadline > self.now:
                return
            self.tell(events.DeadlinePassed())
        raise AssertionError("a deadline that stays due would spin the engine")

    # -- what must hold

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        scheduler.check_invariants()
        counts = scheduler.counts()
        assert counts.running + counts.backlog == len(self.owner)
        assert counts.final == len(self.final)
        assert counts.total == self.count + len(self.submitted)
        waiting = scheduler.why_waiting(self.now)
        assert sum(reason.tasks for reason in waiting) == counts.pending - counts.backlog
        for index, state in self.final.items():
            assert scheduler.final_state(index) is state

    def teardown(self) -> None:
        """Let everything come to its end, and look at what each task got."""
        if not hasattr(self, "scheduler"):
            return
        self.paused = False
        self.closed = self.all_joined = True
        self.tell(events.DispatchResumed(), events.AllWorkersJoined(), events.CloseRequested())
        for _ in range(2000):
            if self.finish is not None:
                break
            for worker in list(self.workers.values()):
                while worker.inbox:
                    worker.read()
                if worker.running:
                    worker.end(worker.running[0], Outcome.SUCCESS, 0.01)
                news = list(worker.outbox)
                worker.outbox.clear()
                self.tell(*news)
            self.time_passes(40.0)
            self.scheduler.check_invariants()
        assert self.finish is not None, "it never came to its end"
        known = {*range(self.count), *self.submitted}
        assert self.final.keys() <= known
        assert self.finish.pending == len(known - self.final.keys())
        match self.finish.reason:
            case FinishReason.COMPLETE:
                assert self.final.keys() == known
            case FinishReason.DRAINED:
                assert self.draining
            case FinishReason.STOPPED:
                assert self.stopping
            case FinishReason.WALLTIME:
                assert self.scheduler.time_left.ends_at is not None
                assert self.finish.pending
            case FinishReason.NO_WORKERS:
                assert not any((self.draining, self.stopping))
                assert self.finish.pending


SchedulerMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    print_blob=False,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestSchedulerMachine = SchedulerMachine.TestCase
