"""A book: one results file of a program while it is open, with its journal and its tasks.

Rule: everything that happens to a task is in the journal before anybody is
told. A book lives in the hub's thread; a program's threads add tasks, ask for
cancellation and close. Rows are those of the file; the scheduler's indices,
which all books share, never leave this module.

    add --> TasksAdded, TasksSubmitted --> ... --> AttemptEnded --durable--> Watches
    finish --> RunClosed --> last batch of the file, the lease renewed meanwhile --> lease released
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from keystone_mpi.core import actions
from keystone_mpi.core.errors import KeystoneError
from keystone_mpi.core.model import (
    Assignment,
    AttemptKey,
    AttemptReport,
    RetryBudget,
    TaskRequest,
    TaskState,
    Why,
)
from keystone_mpi.engine.housekeeping import Housekeeping
from keystone_mpi.engine.hub import Hub
from keystone_mpi.engine.pace import Pace
from keystone_mpi.engine.parting import attend
from keystone_mpi.engine.stopping import DRAIN_SUFFIX
from keystone_mpi.engine.store_client import StoreClient
from keystone_mpi.engine.task_records import TaskRecord, Watches
from keystone_mpi.engine.task_requests import task_seed
from keystone_mpi.engine.troubles import Troubles
from keystone_mpi.records import entries
from keystone_mpi.records.committer import Committer
from keystone_mpi.records.lease import Lease
from keystone_mpi.records.programs import StoredRecipe
from keystone_mpi.tools.recipe import Recipe
from keystone_mpi.transport import messages

BACKLOG_PAUSE_BYTES = 64 << 20
LAST_BATCH_S = 3600.0
LAST_WORDS_S = 5.0


class NewTask(msgspec.Struct, frozen=True):
    """A checked task on its way into the book."""

    record: TaskRecord
    recipe: StoredRecipe
    launch_params: dict[str, Any]
    """Parameters as templates and solvers get them."""
    budget: RetryBudget
    timeout_s: float
    memory_bytes: int
    priority: float
    depends_on: tuple[int, ...]
    """Rows."""
    start_after: tuple[int, ...]
    is_new: bool
    """Its row is new in the file."""
    was_final: bool = False
    """It ended in an earlier start and is to run again."""


class _Notice(msgspec.Struct, frozen=True, gc=False):
    sequence: int
    record: TaskRecord
    state: TaskState


class Book:
    """See the module's rule; `hub.Owner` and `hub.Resident`.

    Parameters
    ----------
    hub : Hub
    path : Path
        The HDF5 file.
    run_id, epoch
        Identity of the run and number of this start.
    lease, committer
        Owned from now on; the journal's first entry has been submitted.
    recipes : sequence of StoredRecipe
        Of earlier starts.
    recover_row : callable
        Makes the record of a row of an earlier start that is no task of this one.
    notice : callable
        Told of what a person should see.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        path: Path,
        run_id: str,
        epoch: int,
        lease: Lease,
        committer: Committer,
        recipes: Sequence[StoredRecipe],
        earlier_record: Callable[[int], TaskRecord],
        notice: Callable[[str], None],
    ) -> None:
        self._hub = hub
        self.path = path
        self.run_id = run_id
        self.epoch = epoch
        self._lease = lease
        self._committer = committer
        self._store = StoreClient(path)
        self._earlier_record = earlier_record
        self._notice = notice
        self.number = hub.new_book()
        self.watches = Watches()
        self.lock = threading.Lock()
        """Held while tasks are added, so that rows and journal have one order."""
        self._stored = {msgspec.json.encode(stored): k for k, stored in enumerate(recipes)}
        """Recipe as it is in the file -> its position there."""
        self._recipe_numbers: dict[bytes, int] = {}
        """Recipe as JSON -> number for the workers."""
        self._by_index: dict[int, tuple[TaskRecord, NewTask]] = {}
        self._indices: dict[int, int] = {}
        """Row -> the scheduler's index."""
        self._rows: dict[int, int] = {}
        """The scheduler's index -> row."""
        self._notices: deque[_Notice] = deque()
        self._sequence = 0
        self._demanded = 0
        self._house = Housekeeping(lease, self._look_for_drain_file, Troubles(notice))
        self._pace = Pace(time.monotonic())
        self.problem = ""
        self.behind = False
        """Too much waits for the disk."""
        self._draining = False
        self._drain_asked = False
        self._told: dict[str, Any] = {}
        """What the lease says of the run."""
        hub.post(lambda: hub.add_resident(self))

    # --- the program's threads -----------------------------------------------

    def add(self, tasks: Sequence[NewTask]) -> None:
        """Take tasks in; the caller holds `lock` and has given rows in order."""
        self._hub.post(lambda: self._enter(tasks))

    def cancel(self, record: TaskRecord, by: str = "the user") -> None:
        """Have a task cancelled."""

        def ask() -> None:
            if record.index >= 0:
                self._hub.cancel(record.index, by)

        self._hub.post(ask)

    def finish(self, state: str, reason: str) -> str:
        """End this start in order; all its tasks have ended, or the hub has.

        Returns
        -------
        str
            Why the results are not all in the HDF5 file yet; empty: they are.

        Raises
        ------
        KeystoneError
            The journal is broken, or the run is another's now.
        """
        if self._hub.alive:
            gone = threading.Event()

            def leave() -> None:
                self._hub.remove_resident(self)
                self._hub.broadcast(messages.BookClosed(self.number))
                gone.set()

            self._hub.post(leave)
            while not gone.wait(0.2) and self._hub.alive:
                continue
        try:
            self._committer.submit([entries.RunClosed(state=state, reason=reason, at=time.time())])
            turn = threading.Event()
            problem = attend(
                self._write_last_batch,
                lambda wait_s: self._stay(turn, wait_s),
                turn.set,
                self._store.give_up,
            )
        except Exception:  # raised again, when nothing is held any more
            if self._store.is_writing:
                raise  # as long as that goes on the lease stays, until this process ends
            self._store.close()
            self._committer.close(LAST_WORDS_S)
            self._lease.release()
            raise
        self._lease.release()
        if not problem:
            self._drain_path.unlink(missing_ok=True)
        return problem

    def _write_last_batch(self) -> str:
        """Make the journal and then the file whole; return why they are not."""
        closed = self._committer.close(LAST_BATCH_S)
        self.acknowledge()
        if not closed:
            self._store.close()
            return self._committer.problem or "the journal could not be synced in time"
        self._store.ensure_started()
        result = self._store.finish(LAST_BATCH_S)
        for notice in result.notices:
            self._notice(notice)
        return result.problem

    def _stay(self, turn: threading.Event, wait_s: float) -> None:
        """Keep the lease while the last batch is being written; the hub's thread gives signs of life."""
        turn.wait(wait_s)
        told = {**self._told, "running": 0, "eta_s": None, "waiting": [], "task_progress": {}}
        self._house.turn(time.monotonic(), lambda: told)

    def _look_for_drain_file(self) -> None:
        """Look for a request to drain; in a thread of its own, since the file system may take its time."""
        if not self._drain_asked and self._drain_path.exists():
            self._drain_asked = True

    @property
    def _drain_path(self) -> Path:
        return Path(f"{self.path}{DRAIN_SUFFIX}")

    @property
    def backlog(self) -> int:
        """Journal entries that are not durable yet."""
        return self._committer.backlog

    # --- the engine's thread: tasks ------------------------------------------

    def _enter(self, tasks: Sequence[NewTask]) -> None:
        records: list[entries.Entry] = []
        requests: list[TaskRequest] = []
        added: list[entries.AddedTask] = []
        now = time.time()
        put_back: list[entries.Entry] = []
        for task in tasks:
            record = task.record
            stored, number = self._number(task.recipe, records)
            record.recipe = number
            record.index = self._new_index(record.row)
            self._by_index[record.index] = (record, task)
            if task.is_new:
                added.append(entries.AddedTask(stored, record.params, record.options))
            elif task.was_final:
                put_back.append(
                    entries.TaskEnded(
                        index=record.row, state=TaskState.PENDING, why=Why.NONE, error="", at=now
                    )
                )
            requests.append(self._request(task))
        if added:
            records.append(entries.TasksAdded(added, now))
        self._record([*records, *put_back])
        self._hub.submit(self, requests)

    def _request(self, task: NewTask) -> TaskRequest:
        record = task.record
        return TaskRequest(
            index=record.index,
            cores=record.cores,
            memory_bytes=task.memory_bytes,
            timeout_s=task.timeout_s,
            priority=task.priority,
            budget=task.budget,
            attempts_before=record.last_attempt,
            depends_on=tuple(self._index_of(row) for row in task.depends_on),
            start_after=tuple(self._index_of(row) for row in task.start_after),
        )

    def _index_of(self, row: int) -> int:
        """Return the scheduler's index of a row; one of an earlier start gets one now."""
        index = self._indices.get(row)
        if index is None:
            index = self._new_index(row)
            record = self._earlier_record(row)
            if record.is_final:
                self._hub.note_final(index, record.state)
        return index

    def _new_index(self, row: int) -> int:
        index = self._indices[row] = self._hub.new_index()
        self._rows[index] = row
        return index

    def _number(self, stored: StoredRecipe, records: list[entries.Entry]) -> tuple[int, int]:
        """Return a recipe's positions in the file and among the workers' recipes."""
        raw = bytes(stored.recipe)
        spelled = msgspec.json.encode(stored)
        position = self._stored.get(spelled)
        if position is None:
            position = self._stored[spelled] = len(self._stored)
            records.append(entries.RecipeAdded(spelled))
        number = self._recipe_numbers.get(raw)
        if number is None:
            recipe = msgspec.json.decode(raw, type=Recipe)
            number = self._recipe_numbers[raw] = self._hub.add_recipe(self.number, recipe)
        return position, number

    def _record(self, records: Sequence[entries.Entry]) -> None:
        if records:
            self._sequence = self._committer.submit(records)

    # --- hub.Owner -----------------------------------------------------------

    def order(self, assignment: Assignment) -> messages.TaskOrder:
        """See `hub.Owner`."""
        record, task = self._by_index[assignment.index]
        return messages.TaskOrder(
            index=assignment.index,
            attempt=assignment.attempt,
            params=task.launch_params,
            cores=assignment.cores,
            memory_bytes=assignment.memory_bytes,
            gpus=assignment.gpus,
            timeout_s=assignment.timeout_s,
            seed=task_seed(record.params, record.row),
            task_id=record.task_id,
            recipe=record.recipe,
        )

    def assigned(self, worker: int, attempts: Sequence[tuple[int, int]]) -> None:
        """See `hub.Owner`."""
        keys = []
        for index, attempt in attempts:
            record = self._by_index[index][0]
            keys.append(AttemptKey(record.row, attempt))
            record.state = TaskState.RUNNING
            record.last_attempt = attempt
            record.worker = worker
        self._record([entries.TasksAssigned(worker=worker, at=time.time(), attempts=keys)])

    def started(self, worker: int, index: int, attempt: int, at: float) -> None:
        """See `hub.Owner`."""
        record = self._by_index[index][0]
        record.started = at
        self._record([entries.AttemptStarted(worker=worker, index=record.row, attempt=attempt, at=at)])

    def progress(self, index: int, fraction: float) -> None:
        """See `hub.Owner`."""
        self._by_index[index][0].progress = fraction

    def attempt_ended(self, worker: int, report: AttemptReport, state: TaskState) -> None:
        """See `hub.Owner`."""
        record = self._by_index[report.index][0]
        report = msgspec.structs.replace(report, index=record.row)
        record.progress = None
        record.take_report(report)
        if state == TaskState.PENDING:
            record.state = state
        self._record([entries.AttemptEnded(worker=worker, report=report, state=state, recorded=time.time())])

    def task_changed(
        self, index: int, state: TaskState, why: Why, error: str, returned_attempt: int = 0
    ) -> None:
        """See `hub.Owner`."""
        record = self._by_index[index][0]
        if state == TaskState.PENDING:
            record.state = state
        self._record(
            [entries.TaskEnded(record.row, state, why, self._spoken(error), time.time(), returned_attempt)]
        )

    def ended(self, notice: actions.Notify) -> None:
        """See `hub.Owner`."""
        record, _ = self._by_index.pop(notice.index)
        record.why = notice.why
        record.error = self._spoken(notice.error)
        self._notices.append(_Notice(self._sequence, record, notice.state))

    def _spoken(self, error: str) -> str:
        """Turn the scheduler's index in the line of a dependency into the task's id."""
        if not error.startswith("task "):
            return error
        number, _, rest = error.removeprefix("task ").partition(",")
        row = self._rows.get(int(number)) if number.isdecimal() else None
        return error if row is None else f"task {row},{rest}"

    # --- hub.Resident --------------------------------------------------------

    @property
    def awaited(self) -> bool:
        """See `hub.Resident`."""
        return bool(self.watches)

    def acknowledge(self) -> None:
        """See `hub.Resident`."""
        notices = self._notices
        if not notices:
            return
        if notices[-1].sequence > self._demanded and self.watches:
            self._demanded = notices[-1].sequence
            self._committer.demand()
        durable = self._committer.durable
        while notices and notices[0].sequence <= durable:
            notice = notices.popleft()
            self.watches.set_final(notice.record, notice.state)

    def tick(self, now: float) -> None:
        """See `hub.Resident`."""
        self._pace.sample(now)
        self._store.poll()
        problem = self._committer.problem
        if problem and problem != self.problem:
            self._notice(f"{problem} (nothing is lost; trying again every second)")
        elif self.problem and not problem:
            self._notice("the journal can be written again")
        self.problem = problem
        self.behind = bool(problem) or self._committer.backlog_bytes > BACKLOG_PAUSE_BYTES
        self._house.turn(now, self._facts)
        if self._drain_asked and not self._draining:
            self._draining = True
            self._hub.drain(f"keystone-mpi drain {self.path.name}")

    def _facts(self) -> dict[str, Any]:
        """Return what ``keystone-mpi status`` says of a run that goes on."""
        now = time.monotonic()
        running = [
            record
            for record, _ in self._by_index.values()
            if record.state == TaskState.RUNNING and not self._hub.in_backlog(record.index)
        ]
        workers, _ = self._hub.crew()
        eta_s = self._pace.eta_s(now, len(self._by_index), self._hub.slots)
        self._told = {
            "running": len(running),
            "rate_per_s": self._pace.rate_per_s(now),
            "eta_s": None if eta_s != eta_s else eta_s,
            "slots": self._hub.slots,
            "workers": workers,
            "waiting": self._hub.why_waiting(now),
            "problem": self.problem,
            "task_progress": {
                record.task_id: record.progress for record in running if record.progress is not None
            },
        }
        return self._told

    def worker_joined(self, worker: int, facts: messages.Hello, slots: int, memory_bytes: int) -> None:
        """See `hub.Resident`."""
        self._record(
            [
                entries.WorkerJoined(
                    worker=worker,
                    rank=facts.rank,
                    host=facts.host,
                    slots=slots,
                    memory_bytes=memory_bytes,
                    pid=facts.pid,
                    at=time.time(),
                )
            ]
        )

    def worker_left(self, worker: int, why: str) -> None:
        """See `hub.Resident`."""
        self._record([entries.WorkerLeft(worker=worker, why=why, at=time.time())])

    def welcome(self, send: Callable[[Any], None]) -> None:
        """See `hub.Resident`."""
        send(
            messages.BookOpened(
                book=self.number, run_id=self.run_id, epoch=self.epoch, output_path=str(self.path)
            )
        )

    def broken(self, error: Exception) -> None:
        """See `hub.Resident`."""
        # What ended before the end is told all the same.
        with suppress(KeystoneError):  # it may be the journal that broke
            self._committer.wait(self._sequence, LAST_WORDS_S)
        self.acknowledge()
        for record, _ in self._by_index.values():
            record.state = TaskState.PENDING
        self.watches.fail(error)
