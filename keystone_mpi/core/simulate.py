"""A run on imaginary workers and a virtual clock.

Rule: pure and repeatable. The scheduler is the one that runs for real; only
the workers are played: each runs what it is given, in order, as its cores
allow, and answers recalls and cancellations at once.

    Scheduler --Assign--> played workers --(virtual time)--> AttemptFinished --> Scheduler
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from keystone_mpi.core import actions, events
from keystone_mpi.core.actions import Action
from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.events import Event
from keystone_mpi.core.model import Assignment, AttemptReport, Outcome, TaskRequest, TaskSource
from keystone_mpi.core.scheduler import LOOKAHEAD, Scheduler


class RangeSource:
    """Tasks 0..count-1 made from one function, lazily: a `TaskSource` for simulations and tests."""

    __slots__ = ("_count", "_make", "_next")

    def __init__(self, count: int, make: Callable[[int], TaskRequest] = TaskRequest) -> None:
        self._count = count
        self._make = make
        self._next = 0

    def take(self, limit: int) -> list[TaskRequest]:
        """Return and consume up to `limit` tasks."""
        start = self._next
        self._next = min(self._count, start + limit)
        return list(map(self._make, range(start, self._next)))

    def remaining(self) -> int:
        """Return how many are left."""
        return self._count - self._next


class SimulationResult(msgspec.Struct, frozen=True, kw_only=True):
    makespan_s: float
    """Virtual time from the first assignment to the last end."""
    tasks: int
    """Tasks that reached a final state."""
    events: int
    """Events handled by the scheduler."""
    passes: int
    """Calls of the scheduler."""
    assigns: int
    """Messages that carried assignments."""
    recalls: int
    busy_core_s: float
    """Virtual core time spent in attempts."""
    utilisation: float
    """`busy_core_s` by the core time of all workers over the makespan."""
    reason: str
    """Why it finished; empty: it did not."""


class _PlayedWorker:
    __slots__ = ("free_cores", "free_gpus", "free_memory_bytes", "queue")

    def __init__(self, joined: events.WorkerJoined) -> None:
        self.free_cores = joined.slots
        self.free_memory_bytes = joined.memory_bytes or 1 << 62
        self.free_gpus = joined.gpus
        self.queue: deque[Assignment] = deque()


class _Play:
    """The imaginary side: workers, and the heap of attempts by their end."""

    def __init__(self, workers: list[events.WorkerJoined], duration_s: Callable[[Assignment], float]) -> None:
        self.workers = {joined.worker: _PlayedWorker(joined) for joined in workers}
        self.duration_s = duration_s
        self.running: list[tuple[float, int, int, float, Assignment]] = []
        """Heap of (end, order, worker, start, assignment)."""
        self.answers: list[Event] = []
        self.order = self.assigns = self.recalls = self.tasks = 0
        self.busy_core_s = 0.0
        self.reason = ""

    def act(self, todo: Iterable[Action], now: float) -> None:
        """Do what the scheduler says."""
        for action in todo:
            match action:
                case actions.Notify():
                    self.tasks += 1
                case actions.Assign(worker=number):
                    self.assigns += 1
                    worker = self.workers[number]
                    worker.queue.extend(action.attempts)
                    self.start(worker, number, now)
                case actions.Recall(worker=number):
                    self.recalls += 1
                    self.give_back(number, action.attempts)
                case actions.Finish():
                    self.reason = action.reason.value
                case (
                    actions.RecordAssigned()
                    | actions.RecordAttempt()
                    | actions.RecordTask()
                    | actions.RecordStarted()
                    | actions.Cancel()
                ):
                    pass
                case _:
                    raise InternalError(f"the simulation knows no action {action!r}")

    def start(self, worker: _PlayedWorker, number: int, now: float) -> None:
        """Start what the worker has room for."""
        queue = worker.queue
        while queue:
            first = queue[0]
            if (
                first.cores > worker.free_cores
                or first.memory_bytes > worker.free_memory_bytes
                or first.gpus > worker.free_gpus
            ):
                return
            queue.popleft()
            worker.free_cores -= first.cores
            worker.free_memory_bytes -= first.memory_bytes
            worker.free_gpus -= first.gpus
            self.order += 1
            end = now + self.duration_s(first)
            heapq.heappush(self.running, (end, self.order, number, now, first))

    def give_back(self, number: int, wanted: list[tuple[int, int]]) -> None:
        """Answer a recall with what has not started."""
        worker = self.workers[number]
        asked = set(wanted)
        back = [(a.index, a.attempt) for a in worker.queue if (a.index, a.attempt) in asked]
        worker.queue = deque(a for a in worker.queue if (a.index, a.attempt) not in asked)
        self.answers.append(events.TasksReturned(number, back))

    def finish_until(self, until: float) -> list[Event]:
        """End every attempt that is due; return what the workers say."""
        running = self.running
        success = Outcome.SUCCESS
        happened: list[Event] = []
        while running and running[0][0] <= until:
            end, _, number, start, attempt = heapq.heappop(running)
            worker = self.workers[number]
            worker.free_cores += attempt.cores
            worker.free_memory_bytes += attempt.memory_bytes
            worker.free_gpus += attempt.gpus
            if worker.queue:
                self.start(worker, number, end)
            spent = end - start
            self.busy_core_s += spent * attempt.cores
            report = AttemptReport(attempt.index, attempt.attempt, success, start, end, spent)
            happened.append(events.AttemptFinished(number, report))
        return happened


def simulate(
    source: TaskSource,
    workers: int | list[events.WorkerJoined],
    duration_s: Callable[[Assignment], float],
    *,
    slots: int = 1,
    lookahead: int = LOOKAHEAD,
    tick_s: float = 0.0,
) -> SimulationResult:
    """Run every task of `source` on imaginary workers.

    Parameters
    ----------
    source : TaskSource
        The tasks.
    workers : int or list of WorkerJoined
        The workers, or how many, each with `slots` slots.
    duration_s : callable
        Assignment -> seconds that the attempt takes; every attempt succeeds.
    lookahead : int
        As for `Scheduler`.
    tick_s : float
        The master looks for news this often, as a real one does under load;
        0: at every end of an attempt.
    """
    joined = (
        [events.WorkerJoined(number, slots) for number in range(workers)]
        if isinstance(workers, int)
        else workers
    )
    scheduler = Scheduler(source, lookahead=lookahead)
    play = _Play(joined, duration_s)
    handled = passes = 0
    now = last_end = 0.0
    happened: list[Event] = [*joined, events.AllWorkersJoined()]
    while happened:
        handled += len(happened)
        passes += 1
        play.act(scheduler.handle_many(happened, now), now)
        if play.answers:
            happened, play.answers = play.answers, []
            continue
        happened = []
        if scheduler.next_deadline() is not None:
            happened = [events.DeadlinePassed()]
        elif play.running:
            last_end = now = max(now, play.running[0][0]) + tick_s
            happened = play.finish_until(now)
            if tick_s:
                last_end = max(e.report.finished for e in happened if isinstance(e, events.AttemptFinished))
    cores = sum(worker.slots for worker in joined)
    return SimulationResult(
        makespan_s=last_end,
        tasks=play.tasks,
        events=handled,
        passes=passes,
        assigns=play.assigns,
        recalls=play.recalls,
        busy_core_s=play.busy_core_s,
        utilisation=play.busy_core_s / (cores * last_end) if cores and last_end else 0.0,
        reason=play.reason,
    )
