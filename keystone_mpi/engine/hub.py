"""The hub: the one engine of a Python program, shared by its pipelines and executors.

Rule: one per process, in one thread of its own, from which all MPI calls come
(MPI_Init and MPI_Finalize too). Other threads post what they want and never
wait for the disk. It decides nothing: the scheduler does. Every task has an
owner (a book, or the call desk) that knows what the scheduler's index stands for.

    program threads --post--> hub --events--> scheduler --actions--> owner, workers
    journal durable --> owner.acknowledge --> whoever waits
    silence --> worker_watch.py --> WorkerLost
    end of the program --> books closed --> stop --> farewell --> MPI_Finalize
"""

from __future__ import annotations

import functools
import itertools
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from keystone_mpi.core import actions, events
from keystone_mpi.core.actions import Action
from keystone_mpi.core.errors import ClusterError, InternalError, KeystoneError
from keystone_mpi.core.events import Event
from keystone_mpi.core.model import AttemptKey, TaskRequest, TaskState
from keystone_mpi.core.scheduler import Scheduler
from keystone_mpi.engine.bringing_up import bring_up
from keystone_mpi.engine.calls import CallDesk
from keystone_mpi.engine.owners import FUNCTION_BOOK, FUNCTION_RECIPE, Owner, Resident, SeatOwner, internal
from keystone_mpi.engine.program_stop import ProgramStop
from keystone_mpi.engine.ranks import Ranks
from keystone_mpi.engine.worker_watch import WorkerWatch, part
from keystone_mpi.engine.workforce import Workforce
from keystone_mpi.execution.environment import Promised
from keystone_mpi.execution.function_values import Value
from keystone_mpi.execution.processes import sharpen_timers
from keystone_mpi.tools.recipe import Recipe
from keystone_mpi.transport import messages
from keystone_mpi.transport.channel import Received

TICK_S = 1.0
START_S = 120.0
"""How long all workers may take to introduce themselves."""


class Hub:
    """The engine's thread and what other threads may ask of it.

    Parameters
    ----------
    promised : Promised
        What the launcher's environment says; this process is its rank 0.
    slots_per_node : int or None
        Slots of each node; None: one per physical core.
    function_recipe : Recipe
        How function processes are started.
    functions : callable
        Number -> pickled function.
    notice : callable
        Told of what a person should see.
    printed : callable
        Given what functions print.
    stops : ProgramStop
        Signals and the allocation's end.
    """

    def __init__(
        self,
        promised: Promised,
        *,
        slots_per_node: int | None,
        function_recipe: Recipe,
        functions: Callable[[int], Value],
        notice: Callable[[str], None],
        printed: Callable[[int, bytes], None],
        stops: ProgramStop,
    ) -> None:
        self.promised = promised
        self.run_id = secrets.token_hex(8)
        """Tag of function processes; solvers carry their own run's."""
        self.pid = os.getpid()
        self._slots_per_node = slots_per_node
        self._recipes: list[Recipe] = [function_recipe]
        self._notice = notice
        self._printed = printed
        self._indices = itertools.count()
        self._books = itertools.count(FUNCTION_BOOK + 1)
        self._posted: deque[Callable[[], None]] = deque()
        self._news = False
        """Something was asked for since the last look."""
        self._sleeping = False
        self._ready = threading.Event()
        self._ended = threading.Event()
        self.problem: Exception | None = None
        """Why the engine cannot work (any more)."""
        self.stops = stops
        self._scheduler = Scheduler(None, open_ended=True, ends_at=stops.ends_at)
        self._events: list[Event] = []
        self._owners: dict[int, Owner] = {}
        self._residents: list[Resident] = []
        self._seat_owner = SeatOwner(self)
        self.calls = CallDesk(self._seat_owner, functions)
        self._ranks: Ranks | None = None
        self._workforce: Workforce | None = None
        self._watch: WorkerWatch
        self._stopping = False
        self._finished = False
        self._next_tick = 0.0
        self._paused = False
        self._thread = threading.Thread(target=self._run, name="keystone-master", daemon=True)

    # --- other threads -------------------------------------------------------

    def start(self) -> None:
        """Start the engine and wait until every worker has introduced itself.

        Raises
        ------
        ClusterError
            MPI or the workers do not come up.
        """
        self._thread.start()
        self._ready.wait(START_S)
        if self.problem is not None:
            raise self.problem
        if not self._ready.is_set():
            raise ClusterError(f"not all workers introduced themselves within {START_S:.0f} s")

    def post(self, request: Callable[[], None]) -> None:
        """Have something done in the engine's thread."""
        self._posted.append(request)
        self.wake()

    def wake(self) -> None:
        """Make the engine look."""
        self._news = True
        if self._sleeping and self._ranks is not None:
            self._sleeping = False
            self._ranks.transport.wake()

    def new_index(self) -> int:
        """Return an index for a task that will be submitted."""
        return next(self._indices)

    def new_book(self) -> int:
        """Return a number for a book."""
        return next(self._books)

    @property
    def alive(self) -> bool:
        """Whether the engine still works."""
        return self._thread.is_alive() and self.problem is None and not self._stopping

    @property
    def slots(self) -> int:
        """Slots of all workers."""
        return 0 if self._workforce is None else self._workforce.slots

    def crew(self) -> tuple[int, list[str]]:
        """Return how many workers work, and the hosts' names."""
        found = self._workforce
        return (0, []) if found is None else (found.count, found.hosts)

    def host_of(self, worker: int) -> str:
        """Host of a worker."""
        return "" if self._workforce is None else self._workforce.facts(worker).host

    def in_backlog(self, index: int) -> bool:
        """Tell whether a worker has a task in advance, behind those that it runs."""
        task = self._scheduler.tasks.get(index)
        worker = None if task is None else task.worker
        return worker is not None and index in worker.backlog

    def worker_slots(self) -> list[int]:
        """Slots of each worker that joined."""
        found = self._workforce
        return [] if found is None else [found.slots_of(worker) for worker in found.present()]

    def counts(self) -> dict[str, int]:
        """Return how many tasks, of all pipelines, run and wait."""
        counts = self._scheduler.counts()
        return {"running": counts.running, "waiting": counts.ready + counts.waiting + counts.delayed}

    def stop(self, *, now: bool, timeout_s: float | None = None) -> None:
        """End the engine: every book must have been closed or is abandoned.

        Parameters
        ----------
        now : bool
            Stop what runs; else what was submitted is waited for.
        """
        if self.pid != os.getpid() or threading.current_thread() is self._thread:
            return

        def ask() -> None:
            self._stopping = True
            self._events.append(events.CloseRequested())
            if now:
                self._events.append(events.StopRequested())

        if self._thread.is_alive():
            self.post(ask)
            self._ended.wait(timeout_s)

    # --- the thread ----------------------------------------------------------

    def _run(self) -> None:
        sharpen_timers()
        try:
            self._ranks = bring_up(self.promised)
            self._workforce = Workforce(
                self._ranks.transport.workers,
                run_id=self.run_id,
                epoch=1,
                output_path="",
                recipes=[],
                slots_per_node=self._slots_per_node,
                smt=False,
            )
            self._watch = WorkerWatch(self._ranks, self._workforce, self._notice)
            self._loop()
        except BaseException as error:  # told to every thread that waits, there is no other to tell
            self._fail(error if isinstance(error, KeystoneError) else internal(error))
        finally:
            try:
                self._leave()
            finally:
                self._let_go()

    def _loop(self) -> None:
        assert self._ranks is not None
        transport = self._ranks.transport
        scheduler = self._scheduler
        while not self._finished:
            self._sleeping = True
            received = transport.receive(0.0 if self._news else self._patience_s())
            self._sleeping = self._news = False
            now = time.monotonic()
            for item in received:
                self._take_in(item, now)
            while self._posted:
                self._posted.popleft()()
            deadline = scheduler.next_deadline()
            if deadline is not None and now >= deadline:
                self._events.append(events.DeadlinePassed())
            self._turn(now)
            self.calls.pump(now)
            self._turn(now)
            for resident in tuple(self._residents):
                resident.acknowledge()
            if now >= self._next_tick or self.stops.look() > self.stops.level:
                self._next_tick = now + min(TICK_S, self._watch.look_s)
                self._tick(now)

    def _turn(self, now: float) -> None:
        while self._events:
            happened, self._events = self._events, []
            self._perform(self._scheduler.handle_many(happened, now))

    def _patience_s(self) -> float:
        now = time.monotonic()
        until = self._next_tick
        for deadline in (self._scheduler.next_deadline(), self.calls.next_deadline()):
            if deadline is not None:
                until = min(until, deadline)
        return max(0.0, until - now)

    def _tick(self, now: float) -> None:
        for worker, why in self._watch.look(now):
            self._lose(worker, why)
        for resident in tuple(self._residents):
            resident.tick(now)
        awaited = any(resident.awaited for resident in self._residents)
        happened = self.stops.heed(self._scheduler, self.calls.placed, now, awaited=awaited)
        if happened:
            self._events += happened
            self._notice(self.stops.announcement())
            self.calls.drain(self.stops.call_interruption())
        self._events += self.stops.look_outside(self._notice)
        self._turn(now)
        behind = any(resident.behind for resident in self._residents)
        if behind != self._paused:
            self._paused = behind
            self._events.append(events.DispatchPaused() if behind else events.DispatchResumed())
            self._turn(now)

    # --- what comes in -------------------------------------------------------

    def _take_in(self, item: Received, now: float) -> None:
        self._watch.heard(item, now)
        worker = item.worker
        match item.message:
            case messages.Beat():
                pass
            case messages.CallReplies(seat=seat, replies=replies):
                self.calls.replies(seat, replies, item.parts, now)
            case messages.CallOutput(stream=stream, text=text):
                self._printed(stream, text)
            case messages.CallsReturned(seat=seat, calls=numbers):
                self.calls.returned(seat, numbers)
            case messages.SeatEnded(seat=seat, running=running, returned=numbers):
                self.calls.seat_ended(seat, running, numbers)
            case messages.AttemptsFinished(reports=reports):
                reports = [self._seat_owner.as_of_seat(report, self._owners) for report in reports]
                self._events += [events.AttemptFinished(worker, report) for report in reports]
            case messages.AttemptsStarted(starts=starts):
                self._events += [
                    events.AttemptStarted(worker, start.index, start.attempt, start.at) for start in starts
                ]
            case messages.AttemptsProgress(progress=news):
                for state in news:
                    owner = self._owners.get(state.index)
                    if owner is not None:
                        owner.progress(state.index, state.fraction)
            case messages.RecipeRefused(error=error):
                # The worker ends that recipe's tasks with this error; other recipes are not concerned.
                self._notice(f"{self._watch.name(worker)}: {error}")
            case messages.TasksReturned(attempts=attempts):
                self._events.append(events.TasksReturned(worker, list(attempts)))
            case messages.Hello() as hello:
                self._welcome(worker, hello)
            case messages.WorkerFailed(traceback=text):
                self._notice(f"{self._watch.name(worker)} failed:\n{text.rstrip()}")
                self._lose(worker, "internal error")
            case messages.Goodbye():
                self._lose(worker, "it left")
            case other:
                raise InternalError(f"worker {worker} sent {other!r}")

    def _welcome(self, worker: int, hello: messages.Hello) -> None:
        assert self._workforce is not None
        assert self._ranks is not None
        workforce, transport = self._workforce, self._ranks.transport
        workforce.hello(worker, hello)
        for number, welcome in workforce.ready():
            opened = messages.BookOpened(book=FUNCTION_BOOK, run_id=self.run_id, epoch=1, output_path="")
            added = messages.RecipesAdded(book=FUNCTION_BOOK, first=FUNCTION_RECIPE, recipes=self._recipes)
            transport.send(number, welcome)
            transport.send(number, opened)
            transport.send(number, added)
            facts = workforce.facts(number)
            memory_bytes = workforce.memory_bytes(number)
            for resident in self._residents:
                resident.welcome(functools.partial(transport.send, number))
                resident.worker_joined(number, facts, welcome.slots, memory_bytes)
            self._events.append(
                events.WorkerJoined(
                    worker=number, slots=welcome.slots, memory_bytes=memory_bytes, gpus=facts.gpus
                )
            )
        problems = [f"{workforce.name(number)} cannot work: {why}" for number, why in workforce.refused()]
        for problem in problems:
            self._notice(problem)
        if workforce.complete():
            self._events.append(events.AllWorkersJoined())
            if not workforce.count:
                raise ClusterError("no worker can work: " + "; ".join(problems))
            self._ready.set()

    def _lose(self, worker: int, why: str) -> None:
        assert self._workforce is not None
        self._watch.forget(worker)
        if self._workforce.leave(worker):
            self._events.append(events.WorkerLost(worker, why))
            for resident in self._residents:
                resident.worker_left(worker, why)

    # --- what goes out -------------------------------------------------------

    def _perform(self, to_do: list[Action]) -> None:
        assert self._ranks is not None
        transport = self._ranks.transport
        owners = self._owners
        for action in to_do:
            match action:
                case actions.Assign(worker=worker, attempts=attempts):
                    orders = [owners[attempt.index].order(attempt) for attempt in attempts]
                    transport.send(worker, messages.Assign(orders))
                case actions.RecordAttempt(worker=worker, report=report, state=state):
                    owners[report.index].attempt_ended(worker, report, state)
                case actions.Notify() as notice:
                    owners.pop(notice.index).ended(notice)
                case actions.RecordAssigned(worker=worker, attempts=keys):
                    by_owner: dict[Owner, list[tuple[int, int]]] = {}
                    for key in keys:
                        by_owner.setdefault(owners[key[0]], []).append(key)
                    for owner, own_keys in by_owner.items():
                        owner.assigned(worker, own_keys)
                case actions.RecordStarted(worker=worker, index=index, attempt=attempt, at=at):
                    owners[index].started(worker, index, attempt, at)
                case actions.RecordTask() as change:
                    owners[change.index].task_changed(*msgspec.structs.astuple(change))
                case actions.Recall(worker=worker, attempts=keys):
                    transport.send(worker, messages.Recall([AttemptKey(*key) for key in keys]))
                case actions.Cancel(worker=worker, index=index, attempt=attempt, interrupted=interrupted):
                    transport.send(worker, messages.Cancel(index, attempt, interrupted))
                case actions.Finish(reason=reason, pending=pending):
                    self._finished = True
                    if self.stops.level and not self._stopping:
                        left = pending - self.calls.unplaced
                        raise self.stops.interruption(left, is_resumable=bool(self._residents))
                    if not self._stopping:
                        raise ClusterError(f"the engine ended: {reason}")
                case other:
                    raise InternalError(f"the scheduler asks for {other!r}")

    # --- for owners, in the thread -------------------------------------------

    def submit(self, owner: Owner, requests: Sequence[TaskRequest]) -> None:
        """Hand tasks to the scheduler."""
        for request in requests:
            self._owners[request.index] = owner
        self._events.append(events.TasksSubmitted(list(requests)))

    def cancel(self, index: int, by: str = "the user") -> None:
        """Have a task of the scheduler cancelled."""
        self._events.append(events.CancelRequested(index, by))

    def note_final(self, index: int, state: TaskState) -> None:
        """Tell the scheduler of a task that ended in an earlier start, for those that depend on it."""
        self._scheduler.finals.set(index, state)

    def send(self, worker: int, message: Any, parts: Sequence[Any] = ()) -> None:
        """Send a message to a worker."""
        assert self._ranks is not None
        self._ranks.transport.send(worker, message, parts)

    def broadcast(self, message: Any) -> None:
        """Send a message to every worker that works."""
        assert self._workforce is not None
        for worker in self._workforce.present():
            self.send(worker, message)

    def drain(self, reason: str) -> None:
        """Finish what runs, start nothing more, and end."""
        self.stops.drain(reason)

    def add_resident(self, resident: Resident) -> None:
        """Take an open results file on, and introduce it to the workers."""
        assert self._workforce is not None
        self._residents.append(resident)
        resident.welcome(self.broadcast)
        for worker in self._workforce.present():
            facts = self._workforce.facts(worker)
            resident.worker_joined(
                worker, facts, self._workforce.slots_of(worker), self._workforce.memory_bytes(worker)
            )

    def remove_resident(self, resident: Resident) -> None:
        """Let a results file go."""
        self._residents.remove(resident)

    def add_recipe(self, book: int, recipe: Recipe) -> int:
        """Number a recipe and send it to the workers."""
        number = len(self._recipes)
        self._recipes.append(recipe)
        self.broadcast(messages.RecipesAdded(book=book, first=number, recipes=[recipe]))
        return number

    def why_waiting(self, now: float) -> Any:
        """Return why tasks wait, as plain data."""
        return msgspec.to_builtins(self._scheduler.why_waiting(now))

    def tasks_wait(self) -> bool:
        """Tell whether tasks wait for cores."""
        counts = self._scheduler.counts()
        return counts.ready + counts.backlog > self.calls.unplaced

    def name_of(self, worker: int) -> str:
        """Name a worker and its host for people."""
        if self.promised.launcher is None:
            return f"{self.host_of(worker)} (a function process of this program)"
        return f"rank {worker} on {self.host_of(worker)}"

    # --- the end -------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        if self.problem is None:
            self.problem = error
        self.calls.break_off(error)
        for resident in tuple(self._residents):
            resident.broken(error)

    def _leave(self) -> None:
        if self._ranks is None:
            return
        if self.problem is None:
            self.calls.break_off(ClusterError("the engine was stopped"))
        part(self._ranks, self._notice, self._let_go)

    def _let_go(self) -> None:
        self._ready.set()
        self._ended.set()
