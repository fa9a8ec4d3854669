"""The picture of a run at one moment: a generation of the file, and the journal behind it.

Rule: only what is asked for is read and merged, once. Arrays have one element
per task, whether the file knows that task yet or not.

    Snapshot (file) + Tail (journal) + LeaseInfo --> RunView: phase, states, counts, tasks, workers
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystone_mpi.core.errors import UserError
from keystone_mpi.core.model import Outcome, TaskState, Why
from keystone_mpi.records.attempts import (
    AttemptView,
    attempt_of_entry,
    attempt_of_flight,
    attempts_of_rows,
    kept_output,
    results_of_report,
    results_of_row,
)
from keystone_mpi.records.entries import AddedTask, RunOpened
from keystone_mpi.records.journal_rest import damaged_path
from keystone_mpi.records.lease import LeaseInfo
from keystone_mpi.records.programs import read_request, with_added_params, with_recipes
from keystone_mpi.records.store import ColumnSource
from keystone_mpi.records.tail import Tail, TaskUpdate, task_update
from keystone_mpi.records.view_parts import Counts, TaskView, UsedBudget, WorkerView

if TYPE_CHECKING:
    from keystone_mpi.records.store.reading import Snapshot

_COUNTED_OUTCOMES = (Outcome.FAILED, Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.WORKER_LOST)


class RunView:
    """One run at one moment; made by `open_view`, to be closed."""

    def __init__(
        self,
        path: Path,
        snapshot: Snapshot | None,
        head: RunOpened | None,
        tail: Tail,
        lease: LeaseInfo | None,
        source: ColumnSource | None,
    ) -> None:
        self.path = path
        self.lease = lease
        """Who holds, or held, the run; None: nobody."""
        self._is_held = lease is not None and lease.is_alive()
        self._snapshot = snapshot
        self._head = head
        """First entry of the journal; None: there is no journal."""
        self._tail = tail
        self._source = source
        self._update: TaskUpdate = task_update(tail.ended)
        known_epoch = snapshot.present.journal_epoch if snapshot is not None else 0
        newest = head if head is not None and head.epoch != known_epoch else None
        """The journal's head where the file does not know it yet."""
        if newest is not None:
            self.run_id = newest.run_id
            self.epoch = newest.epoch
            self.created = newest.created
            self.task_count = newest.task_count
            self.sweep_name = newest.sweep_name
        elif snapshot is not None:
            self.run_id = snapshot.present.run_id
            self.epoch = snapshot.present.journal_epoch
            self.created = snapshot.created
            self.task_count = snapshot.present.task_count
            self.sweep_name = snapshot.attribute("sweep_name")
        self.task_count += len(tail.added)
        self._newest = newest
        self._base_count = snapshot.present.task_count if snapshot is not None else 0

    def close(self) -> None:
        """Let go of the file; what was read before stays usable."""
        if self._snapshot is not None:
            self._snapshot.close()

    def __enter__(self) -> RunView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -------------------------------------------------------------- the run

    @property
    def phase(self) -> str:
        """Return ``running``, ``complete``, ``interrupted`` or ``died``."""
        if self._head is None:
            assert self._snapshot is not None
            state = self._snapshot.present.state
            if state != "running":
                return state
            return "running" if self._is_held else "died"
        if self._is_held:
            return "running"
        return self._tail.closed.state if self._tail.closed is not None else "died"

    @property
    def needs_recovery(self) -> bool:
        """Whether a master is gone and its journal is still there."""
        return self._head is not None and not self._is_held

    @property
    def is_silent(self) -> bool:
        """Whether its master, on another machine, was not heard of for long: dead, suspended or cut off."""
        return self.needs_recovery and self.lease is not None and not self.lease.is_known_dead()

    @property
    def lost(self) -> list[str]:
        """What the file had to do without, for people."""
        from keystone_mpi.records.store.shards import describe_lost

        damaged = damaged_path(self.path)
        found = [f"{damaged.name} holds records that could not be read"] if damaged.exists() else []
        unreadable = self._snapshot.attribute("unreadable_shards") if self._snapshot is not None else ""
        return [*found, describe_lost(self.path, unreadable)] if unreadable else found

    @property
    def generation(self) -> str:
        """Identity of the file's content, for `RunOpened.base_generation`; empty: no file."""
        return self._snapshot.present.generation if self._snapshot is not None else ""

    @property
    def reason(self) -> str:
        """Why the run ended as it did; empty when nothing was said."""
        if self._tail.closed is not None:
            return self._tail.closed.reason
        return self._snapshot.attribute("state_reason") if self._snapshot and self._newest is None else ""

    @cached_property
    def spec(self) -> bytes:
        """The normalised sweep (JSON)."""
        spec = self._newest.spec if self._newest else self._text("spec").encode()
        return with_recipes(spec, self._tail.recipes)

    @cached_property
    def sweep_text(self) -> str:
        """The sweep file as it was written."""
        return self._newest.sweep_text if self._newest else self._text("sweep_text")

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Digest of each part of what runs the tasks."""
        if self._newest:
            return self._newest.fingerprint
        return msgspec.json.decode(self._text("fingerprint") or "{}", type=dict[str, str])

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Versions, hosts and settings."""
        if self._newest:
            return self._newest.provenance
        return msgspec.json.decode(self._text("provenance") or "{}", type=dict[str, Any])

    @cached_property
    def workers(self) -> list[WorkerView]:
        """Workers of all starts of the run, in the order in which they joined."""
        found: list[WorkerView] = []
        if self._snapshot is not None:
            names = (
                "id",
                "epoch",
                "rank",
                "host",
                "slots",
                "memory_bytes",
                "pid",
                "joined",
                "left",
                "why_left",
            )
            columns = [self._snapshot.column("workers", name).tolist() for name in names]
            found = [WorkerView(*row) for row in zip(*columns, strict=True)]
        for entry in self._tail.joined:
            found.append(
                WorkerView(
                    worker=entry.worker,
                    epoch=self.epoch,
                    rank=entry.rank,
                    host=entry.host,
                    slots=entry.slots,
                    memory_bytes=entry.memory_bytes,
                    pid=entry.pid,
                    joined=entry.at,
                    left=float("nan"),
                    why_left="",
                )
            )
        left = {entry.worker: entry for entry in self._tail.left}
        for position, view in enumerate(found):
            if view.epoch == self.epoch and view.worker in left:
                gone = left[view.worker]
                found[position] = replace(view, left=gone.at, why_left=gone.why)
        return found

    # ------------------------------------------------------------ all tasks

    @cached_property
    def states(self) -> NDArray[np.int8]:
        """State of every task; RUNNING only while the run is going on."""
        states = self._task_column("state", np.int8, int(TaskState.PENDING))
        for row, change in self._tail.changes.items():
            states[row] = change.state
        if self.phase == "running":
            for index, _attempt in self._tail.in_flight:
                if states[index] == TaskState.PENDING:
                    states[index] = TaskState.RUNNING
        return states

    @cached_property
    def whys(self) -> NDArray[np.int8]:
        """Cause of every task's state."""
        whys = self._task_column("why", np.int8, int(Why.NONE))
        for row, change in self._tail.changes.items():
            whys[row] = change.why
        return whys

    @cached_property
    def last_attempt(self) -> NDArray[np.int32]:
        """Highest attempt number of every task, handed out ones included; 0: none."""
        numbers = self._task_column("attempts", np.int32, 0)
        rows = self._update.rows
        numbers[rows] = np.maximum(numbers[rows], self._update.attempts)
        for index, attempt in self._tail.in_flight:
            numbers[index] = max(int(numbers[index]), attempt)
        return numbers

    @cached_property
    def durations(self) -> NDArray[np.float64]:
        """Wall time of every task's last attempt in seconds; NaN: unknown."""
        durations = self._task_column("duration_s", np.float64, np.nan)
        durations[self._update.rows] = self._update.duration_s
        return durations

    @cached_property
    def used_budget(self) -> UsedBudget:
        """Attempts that count against the retry budgets: those after a task was last put back."""
        forgiven = self._task_column("forgiven", np.int32, 0)
        newly = self._tail.forgiven_attempts()
        if newly:
            former = self._task_column("attempts", np.int32, 0)
            for row, attempt in newly.items():
                forgiven[row] = max(int(former[row]), attempt)
        ended = self._tail.ended
        rows = np.fromiter((e.report.index for e in ended), np.int64, len(ended))
        numbers = np.fromiter((e.report.attempt for e in ended), np.int32, len(ended))
        outcomes = np.fromiter((e.report.outcome for e in ended), np.int8, len(ended))
        if self._snapshot is not None:
            stored = self._snapshot.column("attempts", "outcome")
            counted = np.flatnonzero(np.isin(stored, _COUNTED_OUTCOMES))
            outcomes = np.concatenate([stored[counted], outcomes])
            rows = np.concatenate([self._snapshot.rows("attempts", "task_index", counted), rows])
            numbers = np.concatenate([self._snapshot.rows("attempts", "number", counted), numbers])
        counts = numbers > forgiven[rows]
        rows, outcomes = rows[counts], outcomes[counts]

        def per_task(outcome: Outcome) -> NDArray[np.uint8]:
            totals = np.bincount(rows[outcomes == outcome], minlength=self.task_count)
            return np.minimum(totals, 255).astype(np.uint8)

        return UsedBudget(*(per_task(outcome) for outcome in _COUNTED_OUTCOMES))

    @cached_property
    def in_flight(self) -> list[AttemptView]:
        """Attempts handed out and not ended: running, when the run is; else cut off."""
        flights = self._tail.in_flight.items()
        return [attempt_of_flight(key, flight, self.epoch, self._hosts_by_id) for key, flight in flights]

    @property
    def first_started(self) -> float:
        """Start of the first attempt of the run; NaN: none started."""
        stored = self._task_column("started", np.float64, np.nan)
        candidates = np.concatenate([stored, self._update.first_started])
        flights = [flight.started for flight in self._tail.in_flight.values()]
        candidates = np.concatenate([candidates, np.array(flights, np.float64)])
        return float(np.fmin.reduce(candidates, initial=np.nan))

    @property
    def last_finished(self) -> float:
        """End of the last attempt that ended; NaN: none did."""
        stored = self._task_column("finished", np.float64, np.nan)
        return float(np.fmax.reduce(np.concatenate([stored, self._update.finished]), initial=np.nan))

    def counts(self) -> Counts:
        """Count the tasks by state."""
        by_state = np.bincount(self.states, minlength=len(TaskState)).tolist()
        failure = self.states == TaskState.FAILURE
        return Counts(
            total=self.task_count,
            completed=by_state[TaskState.SUCCESS],
            failed=by_state[TaskState.FAILURE] + by_state[TaskState.TIMEOUT] + by_state[TaskState.CANCELLED],
            running=by_state[TaskState.RUNNING],
            pending=by_state[TaskState.PENDING],
            timed_out=by_state[TaskState.TIMEOUT],
            cancelled=by_state[TaskState.CANCELLED],
            out_of_memory=int((failure & (self.whys == Why.OUT_OF_MEMORY)).sum()),
            lost=int((failure & (self.whys == Why.LOST_WORKER)).sum()),
        )

    def param_columns(self) -> dict[str, NDArray[Any]]:
        """Return the parameters of all tasks, one array per name."""
        found: dict[str, NDArray[Any]] = {}
        if self._snapshot is not None:
            for column in self._snapshot.value_columns("params"):
                array = self._snapshot.value_array("params", column)
                found[column.key] = array.astype(bool) if column.kind == "bool" else array
        added = self.task_count - self._base_count
        if added and self._source is not None and not self._tail.added:
            for name, array in self._source.columns(0, added).items():
                if self._base_count == 0:
                    found[name] = array
                elif name in found:
                    found[name] = np.concatenate([found[name], array])
        base = self.task_count - len(self._tail.added)
        return with_added_params(found, base, [task for task, _ in self._tail.added])

    # ------------------------------------------------------------- one task

    def index_of_id(self, task_id: str) -> int:
        """Return the row of the task called `task_id`.

        Raises
        ------
        UserError
            There is none.
        """
        if task_id.isascii() and task_id.isdigit() and str(int(task_id)) == task_id:
            index = int(task_id)
            if index < self.task_count:
                return index
        raise UserError(f"{self.path}: no task {task_id!r}; tasks are 0 to {self.task_count - 1}")

    def task(self, index: int) -> TaskView:
        """Return everything known of one task."""
        if not 0 <= index < self.task_count:
            raise UserError(f"{self.path}: no task {index}; tasks are 0 to {self.task_count - 1}")
        change = self._tail.changes.get(index)
        if change is not None:
            error = change.error
        elif index < self._base_count and self._snapshot is not None:
            error = str(self._snapshot.rows("tasks", "error", np.array([index]))[0])
        else:
            error = ""
        return TaskView(
            index=index,
            task_id=str(index),
            params=self._params(index),
            state=TaskState(int(self.states[index])),
            why=Why(int(self.whys[index])),
            error=error,
            results=self._results(index),
            attempts=self._attempts(index),
        )

    def recent_failures(self, limit: int) -> list[AttemptView]:
        """Return the attempts that failed last, newest first."""
        bad = {Outcome.FAILED, Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.WORKER_LOST}
        found: list[AttemptView] = []
        for entry in reversed(self._tail.ended):
            if len(found) >= limit:
                break
            if entry.report.outcome in bad:
                found.append(attempt_of_entry(entry, self.epoch, self._hosts_by_id))
        missing = limit - len(found)
        if missing > 0 and self._snapshot is not None:
            outcomes = self._snapshot.column("attempts", "outcome")
            rows = np.flatnonzero(np.isin(outcomes, list(bad)))[-missing:]
            found += attempts_of_rows(self._snapshot, rows, self._hosts)[::-1]
        return found

    def output(self, index: int, attempt: int, stream: str) -> bytes | None:
        """Return the whole ``stdout`` or ``stderr`` of an attempt; None when only the tail was kept."""
        return kept_output(self.path, self._snapshot, self._tail, index, attempt, stream)

    # ---------------------------------------------------------------- parts

    def _text(self, name: str) -> str:
        return self._snapshot.text(name) if self._snapshot is not None else ""

    def _task_column(self, name: str, dtype: Any, fill: float) -> NDArray[Any]:
        """Read a column of /tasks and lengthen it by the rows that the file does not have yet."""
        column = np.full(self.task_count, fill, dtype)
        if self._snapshot is not None:
            column[: self._base_count] = self._snapshot.column("tasks", name)
        return column

    @cached_property
    def _hosts(self) -> list[str]:
        """Host of each row of /workers."""
        return [view.host for view in self.workers]

    @cached_property
    def _hosts_by_id(self) -> dict[int, str]:
        """Host of each worker of the present epoch."""
        return {view.worker: view.host for view in self.workers if view.epoch == self.epoch}

    def request(self, index: int) -> AddedTask | None:
        """Return a task as a program submitted it; None in the file of a sweep."""
        base = self.task_count - len(self._tail.added)
        if index >= base:
            return self._tail.added[index - base][0]
        if self._snapshot is None or not self._snapshot.has("tasks", "request"):
            return None
        return read_request(str(self._snapshot.rows("tasks", "request", np.array([index]))[0]))

    def requests(self) -> list[AddedTask]:
        """Return all tasks of a program as it submitted them."""
        stored = self._snapshot is not None and self._snapshot.has("tasks", "request")
        texts = self._snapshot.column("tasks", "request").tolist() if stored and self._snapshot else []
        known = [read_request(text) or AddedTask(-1, {}) for text in texts]
        return known + [task for task, _ in self._tail.added]

    def _params(self, index: int) -> dict[str, Any]:
        request = self.request(index)
        if request is not None:
            return dict(request.params)
        if index < self._base_count and self._snapshot is not None:
            columns = self._snapshot.value_columns("params")
            return {column.key: self._snapshot.value("params", column, index) for column in columns}
        if self._source is None:
            return {}
        row = index - self._base_count
        columns_at = self._source.columns(row, row + 1)
        return {
            name: array[0].item() if hasattr(array[0], "item") else array[0]
            for name, array in columns_at.items()
        }

    def _results(self, index: int) -> dict[str, Any]:
        stored_success = False
        if index < self._base_count and self._snapshot is not None:
            row = int(self._snapshot.rows("tasks", "results_from", np.array([index]))[0])
            if row >= 0:
                outcome = self._snapshot.rows("attempts", "outcome", np.array([row]))[0]
                stored_success = bool(outcome == Outcome.SUCCESS)
        position = int(np.searchsorted(self._update.rows, index))
        if position < len(self._update.rows) and self._update.rows[position] == index:
            best = self._tail.ended[int(self._update.best[position])].report
            if best.outcome is Outcome.SUCCESS or not stored_success:
                return results_of_report(self.path, best)
        if index < self._base_count and self._snapshot is not None:
            return results_of_row(self._snapshot, index)
        return {}

    def _attempts(self, index: int) -> list[AttemptView]:
        found: list[AttemptView] = []
        if self._snapshot is not None:
            rows = np.flatnonzero(self._snapshot.column("attempts", "task_index") == index)
            found = attempts_of_rows(self._snapshot, rows, self._hosts)
        found += [
            attempt_of_entry(entry, self.epoch, self._hosts_by_id)
            for entry in self._tail.ended
            if entry.report.index == index
        ]
        found += [view for view in self.in_flight if view.index == index]
        return sorted(found, key=lambda view: view.number)
