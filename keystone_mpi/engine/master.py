"""The master: one loop that carries events to the scheduler and its actions out.

Rule: it decides nothing (the scheduler does) and remembers nothing (the
journal does). A disk that stalls delays acknowledgements, never dispatch,
until the backlog of unacknowledged entries reaches its bound.

    transport.receive --> events --> scheduler.handle_many --> actions
        Assign, Recall, Cancel -> transport        Record* -> committer
        Notify -> waits for its record to be durable -> observer
        Finish -> farewell to the workers, RunClosed, last batch of the store
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from itertools import islice
from typing import Any

import msgspec

from keystone_mpi.core import actions, events
from keystone_mpi.core.actions import Action
from keystone_mpi.core.errors import ClusterError, InternalError, KeystoneError
from keystone_mpi.core.events import Event
from keystone_mpi.core.model import AttemptKey, TaskState, Why
from keystone_mpi.core.scheduler import Scheduler
from keystone_mpi.engine.end_watch import EndWatch
from keystone_mpi.engine.housekeeping import Housekeeping
from keystone_mpi.engine.liveness import Liveness, silence_limit_s
from keystone_mpi.engine.observer import Progress, RunObserver
from keystone_mpi.engine.pace import Pace
from keystone_mpi.engine.plan import PlanSource, RunPlan
from keystone_mpi.engine.ranks import Ranks
from keystone_mpi.engine.stopping import StopLevel, StopRequests
from keystone_mpi.engine.store_client import StoreClient
from keystone_mpi.engine.troubles import Troubles
from keystone_mpi.engine.workforce import Workforce
from keystone_mpi.records import entries
from keystone_mpi.records.committer import Committer
from keystone_mpi.records.lease import Lease
from keystone_mpi.transport import messages
from keystone_mpi.transport.channel import Received

TICK_S = 1.0
BACKLOG_PAUSE_BYTES = 64 << 20
"""Journal bytes that may wait for the disk before dispatch pauses."""
DISK_PATIENCE_S = 60.0
"""A disk that takes nothing for so long, with nothing running, ends the run."""
TOLD_FAILURES = 10
PUSH_S = 0.05
"""How long an assignment may wait for its record to reach the kernel (not the disk)."""
SHOWN_PROGRESS = 256
"""Tasks whose progress others are told."""


class TaskNotice(msgspec.Struct, frozen=True, gc=False):
    """A final state that waits for its record to be durable."""

    sequence: int
    index: int
    state: TaskState
    why: Why
    error: str
    duration_s: float


class Master:
    """Runs one start of a run from the first hello to the last goodbye.

    Parameters
    ----------
    plan, scheduler, source, ranks, committer, lease, store : the assembled parts
    workforce : Workforce
        Who is who among the workers; answers their hellos.
    stop : StopRequests
        Signals and the drain file.
    observer : RunObserver
        Told of everything that a person should see.
    end_watch : EndWatch, optional
        Notices that the allocation ends at another time.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        scheduler: Scheduler,
        source: PlanSource,
        ranks: Ranks,
        committer: Committer,
        lease: Lease,
        store: StoreClient,
        workforce: Workforce,
        stop: StopRequests,
        observer: RunObserver,
        already_succeeded: int,
        already_failed: int,
        end_watch: EndWatch | None = None,
    ) -> None:
        self._plan = plan
        self._scheduler = scheduler
        self._source = source
        self._ranks = ranks
        self._transport = ranks.transport
        self._committer = committer
        self._store = store
        self._workforce = workforce
        self._stop = stop
        self._end_watch = end_watch
        self._observer = observer
        self.succeeded = already_succeeded
        self.failed = already_failed
        self.timed_out = 0
        self.out_of_memory = 0
        self.first_failures: list[tuple[str, str]] = []
        self.task_progress: dict[int, float] = {}
        """Running task -> what its solver last said of how far it is."""
        self.refusal = ""
        """Why no task of the sweep can run on some worker, which ends the run; empty: they can."""
        self._pace = Pace(time.monotonic())
        self._notices: deque[TaskNotice] = deque()
        self._sequence = 0
        """Of the last submitted entry."""
        self._stop_level = StopLevel.NONE
        self._paused = False
        self._troubles = Troubles(observer.notice)
        self._house = Housekeeping(lease, stop.look_for_drain_file, self._troubles)
        self._next_tick = 0.0
        self._finish: actions.Finish | None = None
        self._liveness = Liveness(time.monotonic(), silence_limit_s())

    def run(self) -> actions.Finish:
        """Dispatch until nothing is left or somebody stops the run.

        Raises
        ------
        ClusterError
            No worker can work, the lease was lost, or the disk took nothing
            for too long.
        """
        while self._finish is None:
            received = self._transport.receive(self._patience_s())
            happened = [event for item in received for event in self._events(item)]
            happened += self._look_for_stop()
            now = time.monotonic()
            deadline = self._scheduler.next_deadline()
            if deadline is not None and now >= deadline:
                happened.append(events.DeadlinePassed())
            if happened:
                self._perform(self._scheduler.handle_many(happened, now))
            self._acknowledge()
            if now >= self._next_tick:
                self._next_tick = now + min(TICK_S, self._liveness.beat_s)
                self._tick(now)
        return self._finish

    def drain_acknowledgements(self, timeout_s: float) -> bool:
        """Wait until every record is durable and told; False when the disk did not take it in time."""
        deadline = time.monotonic() + timeout_s
        self._committer.demand()
        while self._committer.backlog and time.monotonic() < deadline:
            self._committer.wait(self._sequence, min(0.2, timeout_s))
            self._watch_disk(time.monotonic())
            self.stay(0.0)
        self._acknowledge()
        return not self._committer.backlog

    def stay(self, timeout_s: float) -> None:
        """After the end of `run`: stay alive in the eyes of workers and of other starts, without work."""
        self._ranks.stay(timeout_s, self._observer.notice)
        now = time.monotonic()
        self._tell_of_disk(now)
        self._house.turn(now, self._facts)

    def keep_house(self) -> None:
        """Renew the lease while the thread of `stay` is in MPI; what is wrong with it, that one is told."""
        with contextlib.suppress(KeystoneError):
            self._house.turn(time.monotonic(), self._facts)

    def progress(self, now: float) -> Progress:
        """Return a snapshot of what has been acknowledged."""
        running = self._scheduler.counts().running
        pending = max(0, self._plan.task_count - self._plan.dropped - self.succeeded - self.failed - running)
        slots = self._workforce.slots
        return Progress(
            total=self._plan.task_count,
            succeeded=self.succeeded,
            failed=self.failed,
            running=running,
            pending=pending,
            elapsed_s=self._pace.elapsed_s(now),
            done_this_start=self._pace.done,
            rate_per_s=self._pace.rate_per_s(now),
            eta_s=self._pace.eta_s(now, pending + running, slots),
            workers=self._workforce.count,
            slots=slots,
            draining=self._stop_level >= StopLevel.DRAIN,
            problem=self._troubles.text or self._store.problem,
            task_progress=self.shown_progress(),
        )

    def shown_progress(self) -> dict[str, float]:
        """Return how far the tasks are whose solvers say so: task id -> fraction, a bounded number."""
        return {
            str(index): fraction for index, fraction in islice(self.task_progress.items(), SHOWN_PROGRESS)
        }

    def _patience_s(self) -> float:
        now = time.monotonic()
        until = self._next_tick
        deadline = self._scheduler.next_deadline()
        if deadline is not None:
            until = min(until, deadline)
        return max(0.0, until - now)

    # --- what comes in -------------------------------------------------------

    def _events(self, item: Received) -> list[Event]:
        worker = item.worker
        self._ranks.heard(worker)
        if self._liveness.knows(worker):
            self._liveness.heard(worker, time.monotonic())
        match item.message:
            case messages.Beat():
                self._liveness.heard(worker, time.monotonic())
                return []
            case messages.AttemptsFinished(reports=reports):
                return [events.AttemptFinished(worker, report) for report in reports]
            case messages.AttemptsStarted(starts=starts):
                return [
                    events.AttemptStarted(worker, start.index, start.attempt, start.at) for start in starts
                ]
            case messages.AttemptsProgress(progress=progress):
                self.task_progress.update({item.index: item.fraction for item in progress})
                return []
            case messages.RecipeRefused(error=error):
                return self._refuse(worker, error)
            case messages.TasksReturned(attempts=attempts):
                return [events.TasksReturned(worker, list(attempts))]
            case messages.Hello() as hello:
                return self._welcome(worker, hello)
            case messages.WorkerFailed(traceback=text):
                self._observer.notice(f"{self._workforce.name(worker)} failed:\n{text.rstrip()}")
                return self._lose(worker, "internal error")
            case messages.Goodbye():
                return self._lose(worker, "it left")
            case other:
                raise InternalError(f"worker {worker} sent {other!r}")

    def _welcome(self, worker: int, hello: messages.Hello) -> list[Event]:
        self._workforce.hello(worker, hello)
        happened: list[Event] = []
        for number, welcome in self._workforce.ready():
            self._transport.send(number, welcome)
            facts = self._workforce.facts(number)
            memory_bytes = self._workforce.memory_bytes(number)
            self._sequence = self._committer.submit(
                [
                    entries.WorkerJoined(
                        worker=number,
                        rank=facts.rank,
                        host=facts.host,
                        slots=welcome.slots,
                        memory_bytes=memory_bytes,
                        pid=facts.pid,
                        at=time.time(),
                    )
                ]
            )
            happened.append(
                events.WorkerJoined(
                    worker=number, slots=welcome.slots, memory_bytes=memory_bytes, gpus=facts.gpus
                )
            )
        self._source.slots = self._workforce.slots
        for number, problem in self._workforce.refused():
            self._ranks.left(number)  # it waits for the end and answers no farewell
            self._observer.notice(f"{self._workforce.name(number)} cannot work: {problem}")
        if self._workforce.complete():
            happened.append(events.AllWorkersJoined())
        return happened

    def _look_for_silent(self, now: float) -> list[Event]:
        """Give signs of life, and take workers for lost that have given none for too long."""
        happened: list[Event] = []
        for worker in self._liveness.silent(now):
            self._liveness.forget(worker)
            self._ranks.lost(worker)
            seconds = self._liveness.silence_s
            self._observer.notice(
                f"{self._workforce.name(worker)} has not been heard of for {seconds:.0f} s and is taken for "
                "lost; its tasks run elsewhere"
            )
            happened += self._leave(worker, f"no sign of life for {seconds:.0f} s")
        if self._liveness.beat_due(now):
            for worker in self._ranks.waiting():
                self._transport.send(worker, messages.Beat())
        return happened

    def _lose(self, worker: int, why: str) -> list[Event]:
        self._liveness.forget(worker)
        self._ranks.left(worker)
        return self._leave(worker, why)

    def _leave(self, worker: int, why: str) -> list[Event]:
        if not self._workforce.leave(worker):
            return []
        self._sequence = self._committer.submit([entries.WorkerLeft(worker=worker, why=why, at=time.time())])
        return [events.WorkerLost(worker, why)]

    def _refuse(self, worker: int, error: str) -> list[Event]:
        """A worker cannot run the sweep: nobody should find that out task by task."""
        if self.refusal:
            return []
        self.refusal = f"{self._workforce.name(worker)}: {error}"
        self._observer.notice(self.refusal)
        return [events.StopRequested()]

    def _look_for_stop(self) -> list[Event]:
        level = self._stop.look()
        if time.monotonic() >= self._next_tick:
            level = self._stop.look_around()
        happened: list[Event] = []
        if level > self._stop_level:
            if self._stop_level < StopLevel.DRAIN:
                self._observer.notice(
                    f"stopping ({self._stop.reason}): "
                    + (
                        "what runs is being stopped; the next start runs it again"
                        if level == StopLevel.NOW
                        else "what runs is finished, nothing more is started"
                    )
                )
                happened.append(events.DrainRequested())
            else:
                self._observer.notice("stopping now: what runs is being stopped")
            if level == StopLevel.NOW:
                happened.append(events.StopRequested())
            self._stop_level = level
        return happened

    # --- what goes out -------------------------------------------------------

    def _perform(self, to_do: list[Action]) -> None:
        records: list[entries.Entry] = []
        notices: list[actions.Notify] = []
        assigns: list[actions.Assign] = []
        now = time.time()
        for action in to_do:
            match action:
                case actions.Assign() as assign:
                    assigns.append(assign)
                case actions.RecordAttempt(worker=worker, report=report, state=state):
                    self.task_progress.pop(report.index, None)
                    if state != TaskState.PENDING:
                        self._pace.add(report.duration_s)
                        self._source.finished += 1
                    if state == TaskState.SUCCESS:
                        self._plan.learn(report.index, report.duration_s)
                    records.append(
                        entries.AttemptEnded(worker=worker, report=report, state=state, recorded=now)
                    )
                case actions.Notify() as notice:
                    # Its record came before it in the list, so it is among `records` or submitted already.
                    notices.append(notice)
                case actions.RecordAssigned(worker=worker, attempts=keys):
                    records.append(
                        entries.TasksAssigned(
                            worker=worker, at=now, attempts=[AttemptKey(*key) for key in keys]
                        )
                    )
                case actions.RecordStarted(worker=worker, index=index, attempt=attempt, at=at):
                    records.append(entries.AttemptStarted(worker=worker, index=index, attempt=attempt, at=at))
                case actions.RecordTask(
                    index=index, state=state, why=why, error=error, returned_attempt=attempt
                ):
                    records.append(entries.TaskEnded(index, state, why, error, now, attempt))
                case actions.Recall(worker=worker, attempts=keys):
                    self._transport.send(worker, messages.Recall([AttemptKey(*key) for key in keys]))
                case actions.Cancel(worker=worker, index=index, attempt=attempt, interrupted=interrupted):
                    self._transport.send(worker, messages.Cancel(index, attempt, interrupted))
                case actions.Finish() as finish:
                    self._finish = finish
                case other:
                    raise InternalError(f"the scheduler asks for {other!r}")
        if records:
            self._sequence = self._committer.submit(records)
        if assigns:
            # No attempt starts unknown to a reader of the journal, unless the disk stalls: dispatch goes on.
            self._committer.push(PUSH_S)
            for assign in assigns:
                orders = [self._plan.order(attempt) for attempt in assign.attempts]
                self._transport.send(assign.worker, messages.Assign(orders))
        if notices:
            self._notices.extend(
                TaskNotice(
                    self._sequence,
                    notice.index,
                    notice.state,
                    notice.why,
                    notice.error,
                    float("nan") if notice.report is None else notice.report.duration_s,
                )
                for notice in notices
            )

    def _acknowledge(self) -> None:
        durable = self._committer.durable
        while self._notices and self._notices[0].sequence <= durable:
            notice = self._notices.popleft()
            if notice.state == TaskState.SUCCESS:
                self.succeeded += 1
                continue
            self.failed += 1
            self.timed_out += notice.state == TaskState.TIMEOUT
            self.out_of_memory += notice.why == Why.OUT_OF_MEMORY
            if len(self.first_failures) < TOLD_FAILURES:
                self.first_failures.append((str(notice.index), notice.error))

    # --- once a second -------------------------------------------------------

    def _look_for_moved_end(self, now: float) -> None:
        """Follow an allocation whose time limit somebody has changed."""
        moved = None if self._end_watch is None else self._end_watch.news()
        if moved is None:
            return
        deadline = moved.deadline
        self._observer.notice(moved.text)
        self._stop.move_deadline(deadline)
        event = events.EndMoved(None if deadline is None else deadline.stop_at)
        self._perform(self._scheduler.handle_many([event], now))

    def _tick(self, now: float) -> None:
        self._look_for_moved_end(now)
        self._pace.sample(now)
        self._store.poll()
        self._watch_disk(now)
        lost = self._look_for_silent(now)
        if lost:
            self._perform(self._scheduler.handle_many(lost, now))
        self._observer.progress(self.progress(now))
        self._house.turn(now, self._facts)

    def _facts(self) -> dict[str, Any]:
        """Return what readers of the lease are to know."""
        now = time.monotonic()
        progress = self.progress(now)
        return {
            "running": progress.running,
            "rate_per_s": progress.rate_per_s,
            "eta_s": None if progress.eta_s != progress.eta_s else progress.eta_s,
            "slots": progress.slots,
            "workers": progress.workers,
            "waiting": msgspec.to_builtins(self._scheduler.why_waiting(now)),
            "problem": progress.problem,
            "task_progress": progress.task_progress.copy(),
        }

    def _watch_disk(self, now: float) -> None:
        problem = self._tell_of_disk(now)
        behind = bool(problem) or self._committer.backlog_bytes > BACKLOG_PAUSE_BYTES
        if behind != self._paused:
            self._paused = behind
            change: Event = events.DispatchPaused() if behind else events.DispatchResumed()
            self._perform(self._scheduler.handle_many([change], now))

    def _tell_of_disk(self, now: float) -> str:
        """Return why the journal cannot be written; raises when nothing else goes on for long."""
        problem = self._committer.problem
        if not problem:
            self._troubles.ended("journal")
            return ""
        lasted_s = self._troubles.hold("journal", problem, now)
        if lasted_s > DISK_PATIENCE_S and not self._scheduler.counts().running:
            raise ClusterError(
                f"the journal could not be written for {DISK_PATIENCE_S:.0f} s: {problem}. What was "
                "reported as finished is safe; make room and run the same command again"
            )
        return problem
