"""The scheduler: a pure state machine, events in, actions out.

Rule: nothing here does I/O, reads a clock, waits or rolls dice. `now` is an
argument that never goes back. A call handles its events in order and then
makes one dispatch pass, so that several events at once cost one pass.

    events -> tasks change phase (transitions.py) -> records, notices
           -> one pass: retries due, refill from the source, place, prefetch, recall
           -> RecordAssigned, Assign, Recall, Finish

What it holds grows with what is active: the look-ahead window, what workers
have, what waits. A task that ended leaves one byte (final_states.py).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable

import msgspec

from keystone_mpi.core import actions, events
from keystone_mpi.core.actions import Action
from keystone_mpi.core.dependencies import Dependencies, describe_failed
from keystone_mpi.core.durations import DurationMean, TimeLeft
from keystone_mpi.core.ending import finish_reason
from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.events import Event
from keystone_mpi.core.explain import Counts, Waiting, count_tasks, describe_too_large, why_waiting
from keystone_mpi.core.final_states import FinalStates
from keystone_mpi.core.invariants import check_invariants
from keystone_mpi.core.model import AttemptReport, Outcome, TaskRequest, TaskSource, TaskState, Why
from keystone_mpi.core.placement import Placement
from keystone_mpi.core.ready_queue import ReadyQueue
from keystone_mpi.core.transitions import Ledger, Phase, Task
from keystone_mpi.core.verdicts import judge
from keystone_mpi.core.workers import Worker, WorkerPool, unstarted

LOOKAHEAD = 8192
_PARKED_WINDOWS = 8
"""Tasks that no present worker can hold lie beside the window, at most so many windows of them."""
_ROUNDS_PER_PASS = 32
"""Windows taken from the source in one pass, at most: bounds the list of actions."""

# Looking up a member of an enum costs as much as a function call: those of the hot path are kept at hand.
_OUTCOME_SUCCESS, _FAILED, _TIMEOUT = Outcome.SUCCESS, Outcome.FAILED, Outcome.TIMEOUT
_READY, _ENDED, _TOO_LATE = Phase.READY, Phase.ENDED, Phase.TOO_LATE
_SUCCESS, _NONE = TaskState.SUCCESS, Why.NONE


class Scheduler:
    """Decides which worker runs which task, and what becomes of each.

    Parameters
    ----------
    source : TaskSource or None
        Where sweep tasks come from, lazily; None when all are submitted by events.
    lookahead : int
        Tasks of the source that are looked at in advance and ordered among each other.
    open_ended : bool
        More tasks may be submitted at any time: no `Finish` for want of tasks
        before `CloseRequested`.
    ends_at : float or None
        When everything must have ended, on the clock of `now`: what is not
        expected to end by then is not started. None: there is no end.
    """

    def __init__(
        self,
        source: TaskSource | None,
        *,
        lookahead: int = LOOKAHEAD,
        open_ended: bool = False,
        ends_at: float | None = None,
    ) -> None:
        self._source = source
        self._lookahead = max(1, lookahead)
        self._chunk = max(1, lookahead // 16)
        self.closed = not open_ended
        """No more tasks will be submitted."""
        self.all_joined = False
        self.paused = False
        self.draining = False
        self.stopping = False
        self.finished = False
        """`Finish` was emitted; from then on events change nothing."""
        self.ignored = 0
        """Late or duplicate news from workers."""
        self.retries = 0
        """Attempts after which their task runs again."""

        self.tasks: dict[int, Task] = {}
        """Index -> active task."""
        self.finals = FinalStates()
        self.ledger = Ledger()
        self.pool = WorkerPool()
        self.queue = ReadyQueue(self.pool)
        self.durations = DurationMean()
        self.time_left = TimeLeft(ends_at)
        self.placement = Placement(self.queue, self.pool, self.ledger, self.durations, self.time_left)
        self.dependencies = Dependencies(self.finals)
        self._cancelled_ahead: set[int] = set()
        """Cancelled before the source gave them."""
        self._delayed: list[tuple[float, int, Task]] = []
        self._number = 0
        self.pass_cut_at: float | None = None
        """When the last pass stopped before the source was used up; the next may follow at once."""
        self._out: list[Action] = []

    # -- what the engine calls

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event; return what is to be done, in this order."""
        return self.handle_many((event,), now)

    def handle_many(self, happened: Iterable[Event], now: float) -> list[Action]:
        """Take in several events with one dispatch pass: cheaper than one by one."""
        if self.finished:
            return []
        for event in happened:
            self._take_in(event, now)
        if self.dependencies.ended:
            self._resolve(now)
        self._dispatch(now)
        if not self.ledger.on_workers():
            self._finish(now)
        out = self._out
        self._out = []
        return out

    def next_deadline(self) -> float | None:
        """Return when `DeadlinePassed` is due, None when time alone changes nothing."""
        delayed = self._delayed
        while delayed and delayed[0][2].phase is not Phase.DELAYED:
            heapq.heappop(delayed)
        if self.paused or self.draining or self.stopping or self.finished:
            return None
        if self.pass_cut_at is not None:
            return self.pass_cut_at
        return delayed[0][0] if delayed else None

    def counts(self) -> Counts:
        """Return how many tasks are where."""
        return count_tasks(self)

    def why_waiting(self, now: float) -> list[Waiting]:
        """Return for people why pending tasks wait."""
        return why_waiting(self, now)

    def final_state(self, index: int) -> TaskState | None:
        """Return the final state of a task that ended under this scheduler, else None."""
        return self.finals.get(index)

    def check_invariants(self) -> None:
        """Raise `InternalError` when the state contradicts itself; slow, for tests."""
        check_invariants(self)

    def queued(self) -> int:
        """Return how many tasks are still in the source."""
        return 0 if self._source is None else max(0, self._source.remaining() - len(self._cancelled_ahead))

    # -- events

    def _take_in(self, event: Event, now: float) -> None:
        match event:
            case events.AttemptFinished():
                self._on_finished(event.worker, event.report, now)
            case events.AttemptStarted():
                self._on_started(event, now)
            case events.TasksReturned():
                self._on_returned(event, now)
            case events.TasksSubmitted():
                for request in event.tasks:
                    self._admit(request, now)
            case events.WorkerJoined():
                worker = self.pool.join(event.worker, event.slots, event.memory_bytes, event.gpus)
                for shape in self.queue.shapes:
                    shape.admit_worker(worker)
            case events.WorkerLost():
                self._on_lost(event, now)
            case events.AllWorkersJoined():
                self.all_joined = True
                self._end_too_large(now)
            case events.CancelRequested():
                self._on_cancel(event.index, event.by, now)
            case events.DispatchPaused() | events.DispatchResumed():
                self.paused = isinstance(event, events.DispatchPaused)
            case events.DeadlinePassed():
                pass  # what is due is looked at in every pass
            case events.DrainRequested():
                self.draining = True
                for worker in self.pool.workers.values():
                    self.placement.recall(worker, unstarted(worker), now)
            case events.StopRequested():
                self._on_stop(now)
            case events.EndMoved(ends_at=ends_at):
                self.time_left.ends_at = ends_at
                for task in [task for task in self.tasks.values() if task.phase is _TOO_LATE]:
                    self._make_ready(task, now)
            case events.CloseRequested():
                self.closed = True
            case _:
                raise InternalError(f"the scheduler knows no event {event!r}")

    def _current(self, worker: int, index: int, attempt: int) -> Task | None:
        """Return the task if this worker has this very attempt of it; else the news is late."""
        task = self.tasks.get(index)
        if task is not None and task.attempt == attempt:
            holder = task.worker
            if holder is not None and holder.number == worker:
                return task
        self.ignored += 1
        return None

    def _on_finished(self, worker: int, report: AttemptReport, now: float) -> None:
        task = self._current(worker, report.index, report.attempt)
        if task is None:
            return
        self.pool.release(task)
        if task.shape.is_unit and report.outcome <= _FAILED:
            self.durations.observe(report.duration_s)
        if report.outcome <= _TIMEOUT:
            self.time_left.observe(report.duration_s)
        self._conclude(task, worker, report, now)

    def _conclude(self, task: Task, worker: int, report: AttemptReport, now: float) -> None:
        """Record an attempt that no worker has any more; end its task or have it run again."""
        if report.outcome is _OUTCOME_SUCCESS:
            self._out.append(actions.RecordAttempt(worker, report, _SUCCESS))
            self._end(task, _SUCCESS, _NONE, "", report, now)
            return
        verdict = judge(task, report)
        if verdict.state is TaskState.PENDING:
            self._out.append(actions.RecordAttempt(worker, report, TaskState.PENDING))
            self.retries += 1
            task.attempt += 1
            task.started_at = float("nan")
            if verdict.delay_s and task.phase is not Phase.STOPPING:
                self.ledger.move(task, Phase.DELAYED, now)
                heapq.heappush(self._delayed, (now + verdict.delay_s, task.number, task))
            else:
                self._make_ready(task, now)
            return
        if report.why is not verdict.why or report.error != verdict.error:
            report = msgspec.structs.replace(report, why=verdict.why, error=verdict.error)
        self._out.append(actions.RecordAttempt(worker, report, verdict.state))
        self._end(task, verdict.state, verdict.why, verdict.error, report, now)

    def _on_started(self, event: events.AttemptStarted, now: float) -> None:
        task = self._current(event.worker, event.index, event.attempt)
        if task is None:
            return
        if task.phase is Phase.GIVEN or task.phase is Phase.RECALLED:
            self.ledger.move(task, Phase.STARTED, now)
        elif task.phase is Phase.STARTED:
            self.ignored += 1
            return
        task.started_at = event.at
        self._out.append(actions.RecordStarted(event.worker, event.index, event.attempt, event.at))

    def _on_returned(self, event: events.TasksReturned, now: float) -> None:
        for index, attempt in event.attempts:
            task = self._current(event.worker, index, attempt)
            if task is None:
                continue
            if task.phase is Phase.STARTED:
                self.ignored += 1
                continue
            self.pool.release(task)
            if task.cancelled_by:
                self._end_unrun(
                    task, TaskState.CANCELLED, Why.BY_USER, f"cancelled by {task.cancelled_by}", now
                )
            else:
                self._out.append(actions.RecordTask(index, TaskState.PENDING, _NONE, "", attempt))
                self._make_ready(task, now)

    def _on_lost(self, event: events.WorkerLost, now: float) -> None:
        worker = self.pool.workers.get(event.worker)
        if worker is None:
            self.ignored += 1
            return
        self.placement.reservations.end(worker)
        for shape in self.queue.shapes:
            shape.forget_worker(worker)
        # What only lay in its backlog is not charged; what it may have started is.
        held, backlog = list(worker.held.values()), list(worker.backlog.values())
        self.pool.lose(worker)
        for task in held + backlog:
            task.worker = None
        for task in held:
            self._conclude_lost(task, worker, not self.stopping, event.why, now)
        for task in backlog:
            is_charged = task.phase is Phase.STARTED and not self.stopping
            self._conclude_lost(task, worker, is_charged, event.why, now)

    def _conclude_lost(self, task: Task, worker: Worker, is_charged: bool, why: str, now: float) -> None:
        report = AttemptReport(
            index=task.request.index,
            attempt=task.attempt,
            outcome=Outcome.WORKER_LOST if is_charged else Outcome.INTERRUPTED,
            started=task.started_at,
            error=f"worker {worker.number} was lost: {why}",
        )
        self._conclude(task, worker.number, report, now)

    def _on_cancel(self, index: int, by: str, now: float) -> None:
        error = f"cancelled by {by}"
        task = self.tasks.get(index)
        if task is not None:
            if task.worker is None:
                self._end_unrun(task, TaskState.CANCELLED, Why.BY_USER, error, now)
                return
            task.cancelled_by = task.cancelled_by or by
            if task.phase is not Phase.STOPPING:
                self.ledger.move(task, Phase.STOPPING, now)
                self._out.append(actions.Cancel(task.worker.number, index, task.attempt))
        elif self.finals.get(index) is None and self.queued() > 0:
            self._cancelled_ahead.add(index)
            self._out.append(actions.RecordTask(index, TaskState.CANCELLED, Why.BY_USER, error))
            self._note_final(index, TaskState.CANCELLED, Why.BY_USER, error, None)

    def _on_stop(self, now: float) -> None:
        self.stopping = True
        for worker in self.pool.workers.values():
            for task in (*worker.held.values(), *worker.backlog.values()):
                if task.phase is not Phase.STOPPING:
                    self.ledger.move(task, Phase.STOPPING, now)
                    index = task.request.index
                    self._out.append(actions.Cancel(worker.number, index, task.attempt, interrupted=True))

    # -- tasks come and go

    def _admit(self, request: TaskRequest, now: float) -> None:
        index = request.index
        if index in self.tasks or self.finals.get(index) is not None:
            raise InternalError(f"task {index} was submitted twice")
        task = Task(request, self._number, self.queue.shape_of(request), request.attempts_before + 1)
        self._number += 1
        self.tasks[index] = task
        if request.depends_on or request.start_after:
            failed = self.dependencies.failed(request)
            if failed is not None:
                error = describe_failed(*failed)
                self._end_unrun(task, TaskState.CANCELLED, Why.DEPENDENCY, error, now)
                return
            unmet = self.dependencies.unmet(request)
            if unmet:
                self.dependencies.await_(task, unmet)
                self.ledger.move(task, Phase.WAITING, now)
                return
        self._make_ready(task, now)

    def _make_ready(self, task: Task, now: float) -> None:
        shape = task.shape
        if self.all_joined and not shape.ever_able and self.pool.capacities:
            self._end_unrun(task, TaskState.FAILURE, Why.TOO_LARGE, describe_too_large(self, shape), now)
            return
        self.ledger.move(task, _READY, now)
        self.queue.push(task)

    def _end_unrun(self, task: Task, state: TaskState, why: Why, error: str, now: float) -> None:
        """End a task that no worker has."""
        if task.phase is _READY:
            task.shape.waiting -= 1
        self._out.append(actions.RecordTask(task.request.index, state, why, error))
        self._end(task, state, why, error, None, now)

    def _end(
        self, task: Task, state: TaskState, why: Why, error: str, report: AttemptReport | None, now: float
    ) -> None:
        self.ledger.move(task, _ENDED, now)
        index = task.request.index
        del self.tasks[index]
        self._note_final(index, state, why, error, report)

    def _note_final(
        self, index: int, state: TaskState, why: Why, error: str, report: AttemptReport | None
    ) -> None:
        self.finals.set(index, state)
        self._out.append(actions.Notify(index, state, why, error, report))
        self.dependencies.note_ended(index, state)

    def _resolve(self, now: float) -> None:
        """Tell the dependents of the tasks that ended, and theirs in turn."""
        while self.dependencies.ended:
            index, state, waiters = self.dependencies.next_ended()
            for other in waiters:
                task = self.tasks.get(other)
                if task is None or task.phase is not Phase.WAITING:
                    continue
                task.unmet -= 1
                if state is not _SUCCESS and index in task.request.depends_on:
                    error = describe_failed(index, state)
                    self._end_unrun(task, TaskState.CANCELLED, Why.DEPENDENCY, error, now)
                elif task.unmet == 0:
                    self._make_ready(task, now)

    def _end_too_large(self, now: float) -> None:
        if not self.pool.capacities:
            return
        for shape in self.queue.shapes:
            if shape.waiting and not shape.ever_able:
                error = describe_too_large(self, shape)
                for *_, task in sorted(shape.heap):
                    if task.phase is _READY:
                        self._end_unrun(task, TaskState.FAILURE, Why.TOO_LARGE, error, now)
                shape.heap.clear()

    # -- the pass

    def _dispatch(self, now: float) -> None:
        pool = self.pool
        placement = self.placement
        if self.paused or self.draining or self.stopping:
            self.queue.offer(pool.take_grown())
            placement.flush(self._out)
            return
        if self._delayed:
            self._wake(now)
        if placement.reservations.workers:
            placement.reservations.refresh()
        ready = self.ledger.count
        grown = pool.take_grown()
        self.queue.offer(grown)
        self.pass_cut_at = None
        self._refill(now)
        for rounds in itertools.count():
            if ready[_READY]:
                placement.place(now)
            if self.dependencies.ended:
                self._resolve(now)
            if pool.grown:
                # A reservation ended within the pass: what it kept free is free for all.
                self.queue.offer(pool.take_grown())
            elif not self._refill(now):
                break
            elif rounds >= _ROUNDS_PER_PASS:
                self.pass_cut_at = now
                break
        queued = self.queued()
        if ready[_READY] and grown:
            placement.prefetch(grown, ready[_READY] + queued, now)
        if pool.backlogged and pool.idle_cores and not queued and self.queue.stranded() == ready[_READY]:
            placement.rebalance(now)
        placement.flush(self._out)

    def _wake(self, now: float) -> None:
        delayed = self._delayed
        while delayed and delayed[0][0] <= now:
            task = heapq.heappop(delayed)[2]
            if task.phase is Phase.DELAYED:
                self._make_ready(task, now)

    def _refill(self, now: float) -> bool:
        """Take tasks from the source when the window has room; tell whether any came."""
        source = self._source
        if source is None:
            return False
        ready = self.ledger.count[_READY]
        if self._lookahead - ready < self._chunk:
            parked = min(self.queue.stranded(), _PARKED_WINDOWS * self._lookahead)
            if not parked:
                return False
            ready -= parked
        shortfall = self._lookahead - ready
        if shortfall < self._chunk or not self.pool.workers:
            return False
        if self.ledger.count[_TOO_LATE] >= _PARKED_WINDOWS * self._lookahead:
            return False  # enough were looked at: hardly anything is left that ends in time
        requests = source.take(shortfall)
        for request in requests:
            if request.index in self._cancelled_ahead:
                self._cancelled_ahead.discard(request.index)
            else:
                self._admit(request, now)
        return bool(requests)

    # -- the end

    def _finish(self, now: float) -> None:
        """Nothing runs: say so once if nothing will."""
        if self.closed and not (self.draining or self.stopping or self.paused):
            self._end_unreachable(now)
        found = finish_reason(self)
        if found is not None:
            self.finished = True
            self._out.append(actions.Finish(*found))

    def _end_unreachable(self, now: float) -> None:
        """End tasks that wait for one that was never submitted, or for each other."""
        count = self.ledger.count
        while count[Phase.WAITING] and not (
            count[_READY] or count[Phase.DELAYED] or count[_TOO_LATE] or self.queued()
        ):
            waiting = [task for task in self.tasks.values() if task.phase is Phase.WAITING]
            for task, error in self.dependencies.never_met(waiting, self.tasks):
                self._end_unrun(task, TaskState.CANCELLED, Why.DEPENDENCY, error, now)
            self._resolve(now)
