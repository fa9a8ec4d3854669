"""The tasks of one pipeline: their rows and ids, waiting for their ends, the end of all.

Rule: usable from any thread of the program. A task that an earlier start of the
run has finished is recognised by tool, script and parameters, and keeps its row.

    CheckedTask --add--> row, id --> Book          ids --find--> TaskRecord --ends--> in order of their ends
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import (
    ClosedError,
    KeystoneError,
    OutputError,
    RequestError,
    UnknownTaskError,
)
from keystone_mpi.core.model import TaskState
from keystone_mpi.engine.book import NewTask
from keystone_mpi.engine.book_opening import open_book
from keystone_mpi.engine.hub import Hub
from keystone_mpi.engine.program import PROGRAM, tell
from keystone_mpi.engine.task_records import TaskRecord
from keystone_mpi.engine.task_requests import CheckedTask
from keystone_mpi.sweeps.fingerprint import fingerprint_difference


class PipelineTasks:
    """See the module's rule.

    Parameters
    ----------
    hub : Hub
    path : Path
        The results file.
    name : str
        Of the program.
    resume, fresh, accept_changed : bool
        See `TaskPipeline`.
    tell_path : bool
        Say where the results go, with the first task.
    """

    def __init__(
        self,
        hub: Hub,
        path: Path,
        *,
        name: str,
        resume: bool,
        fresh: bool,
        accept_changed: bool,
        tell_path: bool,
    ) -> None:
        self.hub = hub
        self.path = path
        self._accept_changed = accept_changed
        self._tell_path = tell_path
        self.book, self._earlier = open_book(hub, path, name=name, resume=resume, fresh=fresh, notice=tell)
        self._records: dict[str, TaskRecord] = {}
        self._next_row = self._earlier.count
        self.closed = False
        self._told = False
        """The program knows why the engine ended."""

    def check_dependencies(self, tasks: Sequence[CheckedTask]) -> None:
        """Refuse tasks that depend on what was not submitted before."""
        for task in tasks:
            for task_id in task.depends_on:
                self.find(task_id)

    def add(self, tasks: Sequence[CheckedTask], *, sequential: bool = False) -> list[str]:
        """Give the tasks their rows and hand them to the engine."""
        self.check_dependencies(tasks)
        matched: list[tuple[bytes, int]] = []
        with self.book.lock:
            self.check_open()
            try:
                rows = [self._row_of(task, matched) for task in tasks]
            except OutputError:
                for identity, row in reversed(matched):
                    self._earlier.give_back(identity, row)
                raise
            new: list[NewTask] = []
            before: int | None = None
            ids = []
            for task, known_row in zip(tasks, rows, strict=True):
                entry = self._enter(task, known_row)
                record = self._records[entry.record.task_id]
                ids.append(record.task_id)
                if not record.is_earlier:
                    after = (before,) if sequential and before is not None else ()
                    depends = tuple(int(task_id) for task_id in task.depends_on)
                    new.append(msgspec.structs.replace(entry, depends_on=depends, start_after=after))
                    before = record.row
            if new:
                self.book.add(new)
        if self._tell_path:
            self._tell_path = False
            tell(f"results go to {os.path.relpath(self.path)}")
        return ids

    def _row_of(self, task: CheckedTask, matched: list[tuple[bytes, int]]) -> int | None:
        """Return the earlier row that this task is; None when it is new."""
        identity = task.identity
        row = self._earlier.match(identity)
        if row is None:
            return None
        matched.append((identity, row))
        changes = fingerprint_difference(self._earlier.recipe_of(row).fingerprint, task.recipe.fingerprint)
        if changes and not self._accept_changed:
            raise OutputError(
                f"{self.path}: what runs task {row} ({task.tool} {task.script}) has changed since: "
                f"{'; '.join(changes)} (accept_changed=True keeps its results, fresh=True starts over)"
            )
        return row

    def _enter(self, task: CheckedTask, row: int | None) -> NewTask:
        is_new = row is None
        was_final = False
        if row is None:
            row = self._next_row
            self._next_row += 1
            record = TaskRecord(row, task.tool, task.script, task.params)
        else:
            record = self._earlier.record(row)
            if record.state != TaskState.SUCCESS:
                was_final = record.is_final
                record = self._earlier.reset(row)
        record.options = task.options
        record.cores = task.request.cores
        self._records[record.task_id] = record
        request = task.request
        return NewTask(
            record=record, recipe=task.recipe, launch_params=task.launch_params, budget=request.budget,
            timeout_s=request.timeout_s, memory_bytes=request.memory_bytes, priority=request.priority,
            depends_on=(), start_after=(), is_new=is_new, was_final=was_final,
        )  # fmt: skip

    # --- asking and waiting --------------------------------------------------

    def find(self, task_id: str) -> TaskRecord:
        """Return the record of an id of this or an earlier start.

        Raises
        ------
        UnknownTaskError
            There is no such task.
        """
        record = self._records.get(task_id) if isinstance(task_id, str) else None
        if record is not None:
            return record
        if isinstance(task_id, str) and task_id.isascii() and task_id.isdigit():
            row = int(task_id)
            if str(row) == task_id and row < self._earlier.count:
                return self._earlier.record(row)
        known = f"ids are '0' to '{self._next_row - 1}'" if self._next_row else "none was submitted yet"
        raise UnknownTaskError(f"unknown task id {task_id!r} in {self.path.name}: {known}")

    def find_all(self, task_ids: Iterable[str]) -> list[TaskRecord]:
        """Return the records of ids, each once."""
        if isinstance(task_ids, str):
            raise RequestError(f"task ids must be a list of ids, not the text {task_ids!r}")
        return [self.find(task_id) for task_id in dict.fromkeys(task_ids)]

    def look_at(self, records: Iterable[TaskRecord]) -> None:
        """Bring up to date what the engine does not tell by itself: hosts, and who waits on a worker."""
        for record in records:
            record.is_ahead = record.state == TaskState.RUNNING and self.hub.in_backlog(record.index)
            if not record.host and record.worker >= 0:
                record.host = self.hub.host_of(record.worker)

    def ends(
        self,
        records: Sequence[TaskRecord],
        timeout: float | None,
        interval_s: float | None = None,
        on_interval: Callable[[], None] | None = None,
    ) -> Iterator[TaskRecord]:
        """Yield the records as they end.

        Raises
        ------
        TimeoutError
            Some have not ended in time.
        """
        PROGRAM.callbacks.raise_problem()
        deadline = None if timeout is None else time.monotonic() + timeout
        watch = self.book.watches.watch(records)
        self.hub.wake()  # it syncs the journal at once while somebody waits
        left = len(records)
        try:
            while left:
                pause_s = None if deadline is None else deadline - time.monotonic()
                if interval_s is not None:
                    pause_s = interval_s if pause_s is None else min(pause_s, interval_s)
                try:
                    record = watch.next(pause_s)
                except KeystoneError:
                    self._told = True
                    raise
                PROGRAM.callbacks.raise_problem()
                if record is not None:
                    left -= 1
                    yield record
                elif deadline is not None and time.monotonic() >= deadline:
                    tasks = "task" if len(records) == 1 else "tasks"
                    raise TimeoutError(
                        f"{left} of {len(records)} {tasks} had not ended after "
                        f"{timeout:g} s; nothing was changed, they run on"
                    )
                elif on_interval is not None:
                    on_interval()
        finally:
            self.book.watches.forget(watch)
        PROGRAM.callbacks.raise_problem()

    def check_open(self) -> None:
        """Refuse what comes after the end."""
        if self.closed:
            raise ClosedError(f"this pipeline ({self.path.name}) is closed; make another TaskPipeline")
        if self.hub.problem is not None:
            self._told = True
            raise self.hub.problem

    # --- the end -------------------------------------------------------------

    def own(self) -> list[TaskRecord]:
        """Return the tasks of this start."""
        return list(self._records.values())

    def is_own(self, record: TaskRecord) -> bool:
        """Tell whether a task belongs to this start."""
        return self._records.get(record.task_id) is record

    def close(self, *, wait: bool) -> None:
        """Finish or cancel what has not ended, then end the file."""
        open_tasks = [record for record in self.own() if not record.is_final]
        if self.hub.alive:
            if not wait:
                for record in open_tasks:
                    self.book.cancel(record, "the end of the pipeline")
            told = self._told
            try:
                for _ in self.ends(self.own(), None):
                    continue
            except KeystoneError:
                if self.hub.problem is None:
                    raise
                self._told = told  # said below, when the file is finished
        stopped = (
            (TaskState.PENDING, TaskState.RUNNING)
            if wait
            else (TaskState.PENDING, TaskState.RUNNING, TaskState.CANCELLED)
        )
        interrupted = any(record.state in stopped for record in open_tasks)
        problem = self.hub.problem
        self.finish(interrupted=interrupted, reason="closed by the program")
        if wait and problem is not None and (interrupted or not self.hub.stops.level) and not self._told:
            raise problem

    def finish(self, *, interrupted: bool, reason: str) -> None:
        """End the file; nothing of this start runs any more."""
        with self.book.lock:
            if self.closed:
                return
            self.closed = True
        if self.hub.problem is not None:
            reason = self.hub.stops.reason or str(self.hub.problem)
        problem = self.book.finish(
            "interrupted" if interrupted else "complete", reason if interrupted else ""
        )
        self._earlier.close()
        if problem:
            tell(f"{self.path}: not all results are in the file yet ({problem}); its journal has them")
