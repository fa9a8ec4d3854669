"""Opening a results file for a program: lease, earlier starts, journal.

Rule: everything that can be refused is refused before the first write, and an
existing file is never written over: it is continued, moved aside, or refused.

    path --> lease --> what a dead start left is put into the file --> journal (epoch + 1) --> Book
    earlier rows --identity--> the tasks of this start that they already are
"""

from __future__ import annotations

import secrets
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keystone_mpi.core.errors import LeaseHeldError, OutputError, UnknownTaskError
from keystone_mpi.core.model import TaskState, Why
from keystone_mpi.engine.book import LAST_WORDS_S, Book
from keystone_mpi.engine.hub import Hub
from keystone_mpi.engine.provenance import gather_provenance
from keystone_mpi.engine.session import (
    check_folder,
    forget_old_drain,
    job_name,
    move_aside,
    peek,
    recovered,
)
from keystone_mpi.engine.task_records import TaskRecord
from keystone_mpi.engine.task_requests import task_identity
from keystone_mpi.records import entries
from keystone_mpi.records.committer import Committer
from keystone_mpi.records.journal import JournalWriter, journal_path
from keystone_mpi.records.lease import acquire, read_lease
from keystone_mpi.records.programs import StoredRecipe, is_program, program_spec, read_program

if TYPE_CHECKING:
    from keystone_mpi.records.view import RunView


class Earlier:
    """The tasks of earlier starts.

    Parameters
    ----------
    view : RunView or None
        The file so far.
    """

    def __init__(self, view: RunView | None) -> None:
        self._view = view
        self.recipes: list[StoredRecipe] = []
        self.count = 0
        self.states = np.empty(0, np.int8)
        self._records: dict[int, TaskRecord] = {}
        self._by_identity: dict[bytes, deque[int]] = {}
        if view is None:
            return
        if not is_program(view.spec):
            raise OutputError(
                f"{view.path}: holds the results of the sweep {view.sweep_name!r}, not of a Python program "
                "(write to another file)"
            )
        self.recipes = read_program(view.spec).recipes
        self.count = view.task_count
        self.states = view.states.copy()
        self._last_attempt = view.last_attempt.copy()
        self._requests = view.requests()
        for row, request in enumerate(self._requests):
            stored = self.recipes[request.recipe]
            key = task_identity(stored.tool, stored.script, request.params)
            self._by_identity.setdefault(key, deque()).append(row)

    def match(self, identity: bytes) -> int | None:
        """Return the next row of a task that is the same, None when there is none left."""
        rows = self._by_identity.get(identity)
        return rows.popleft() if rows else None

    def give_back(self, identity: bytes, row: int) -> None:
        """Undo `match`: the call it was for was refused."""
        self._by_identity.setdefault(identity, deque()).appendleft(row)

    def recipe_of(self, row: int) -> StoredRecipe:
        """Return how a row's task was run."""
        return self.recipes[self._requests[row].recipe]

    def record(self, row: int) -> TaskRecord:
        """Return what is known of a row.

        Raises
        ------
        UnknownTaskError
            There is no such row.
        """
        found = self._records.get(row)
        if found is None:
            if not 0 <= row < self.count or self._view is None:
                raise UnknownTaskError(f"no task {row}")
            found = self._records[row] = self._make(self._view, row)
        return found

    def _make(self, view: RunView, row: int) -> TaskRecord:
        stored = self.recipe_of(row)
        task = view.task(row)
        record = TaskRecord(row, stored.tool, stored.script, task.params)
        record.options = dict(self._requests[row].options)
        record.state = TaskState(int(self.states[row]))
        if record.state == TaskState.RUNNING:
            record.state = TaskState.PENDING
        record.why = task.why
        record.error = task.error
        record.attempts = len(task.attempts)
        record.last_attempt = int(self._last_attempt[row])
        record.is_earlier = record.is_final
        record.from_file = True
        if task.attempts:
            last = task.attempts[-1]
            record.started, record.finished = last.started, last.finished
            record.duration_s = last.duration_s
            record.exit_code = last.exit_code
            record.host = last.host
            record.stdout_tail, record.stderr_tail = last.stdout_tail, last.stderr_tail
            record.artifacts, record.work_path = last.artifacts, last.work_path
        return record

    def reset(self, row: int) -> TaskRecord:
        """Return a record for running a row again."""
        old = self.record(row)
        record = TaskRecord(row, old.tool, old.script, old.params)
        record.attempts, record.last_attempt = old.attempts, old.last_attempt
        record.why = Why.NONE
        self._records[row] = record
        return record

    def close(self) -> None:
        """Let go of the file."""
        if self._view is not None:
            self._view.close()


def open_book(
    hub: Hub,
    path: Path,
    *,
    name: str,
    resume: bool,
    fresh: bool,
    notice: Callable[[str], None],
) -> tuple[Book, Earlier]:
    """Take hold of a results file.

    Parameters
    ----------
    hub : Hub
    path : Path
        Absolute.
    name : str
        Of the program, for people.
    resume, fresh : bool
        Continue an existing file; move it aside.
    notice : callable
        Told of what a person should see.

    Raises
    ------
    OutputError
        It exists and is neither to be continued nor moved aside, or is not ours.
    LeaseHeldError
        Another master is at work on it.
    """
    check_folder(path)
    earlier_view = peek(path)
    if earlier_view is not None:
        ours = is_program(earlier_view.spec)
        earlier_view.close()
        if not resume and not fresh:
            raise OutputError(
                f"{path}: exists already (resume=True continues it, fresh=True moves it aside, "
                "or choose another file)"
            )
        if resume and not ours:
            raise OutputError(
                f"{path}: holds the results of the sweep {earlier_view.sweep_name!r}, not of a program "
                "(write to another file, or fresh=True)"
            )
    holder = read_lease(path)
    continues = earlier_view is not None and not fresh
    run_id = earlier_view.run_id if continues and earlier_view is not None else secrets.token_hex(8)
    epoch = earlier_view.epoch + 1 if continues and earlier_view is not None else 1
    with ExitStack() as undo:
        lease = acquire(path, run_id=run_id, epoch=epoch, job_id=job_name())
        undo.callback(lease.release)
        if holder is not None:
            notice(f"took over from {holder.holder()}, which is gone")
        forget_old_drain(path, lease)
        view = recovered(path, lease, earlier_view, notice)
        if view is not None:
            undo.callback(view.close)
            if fresh:
                view.close()
                notice(f"the old results are now {move_aside(path).name}")
                view = None
        earlier = Earlier(view)
        committer = _begin(hub, path, name, run_id, epoch, view, earlier)
        undo.callback(committer.close, LAST_WORDS_S)
        book = Book(
            hub,
            path=path,
            run_id=run_id,
            epoch=epoch,
            lease=lease,
            committer=committer,
            recipes=earlier.recipes,
            earlier_record=earlier.record,
            notice=notice,
        )
        undo.pop_all()
    return book, earlier


def _begin(
    hub: Hub, path: Path, name: str, run_id: str, epoch: int, view: RunView | None, earlier: Earlier
) -> Committer:
    """Open the journal and write its first entry; leaves none behind when that cannot be."""
    now = time.time()
    opened = entries.RunOpened(
        format_version=entries.JOURNAL_FORMAT,
        run_id=run_id,
        epoch=epoch,
        opened=now,
        created=now if view is None else view.created,
        task_count=earlier.count,
        base_generation="" if view is None else view.generation,
        base_task_count=earlier.count,
        added_points=[],
        spec=program_spec(name, earlier.recipes),
        sweep_text=_program_text(),
        sweep_name=name,
        fingerprint={},
        provenance=gather_provenance(list(sys.argv)),
    )
    committer = Committer(JournalWriter(journal_path(path), create=True), on_progress=hub.wake)
    try:
        committer.submit([opened])
    except BaseException as error:
        committer.close(LAST_WORDS_S)
        if not isinstance(error, LeaseHeldError):  # else it is another's by now
            journal_path(path).unlink(missing_ok=True)
        raise
    return committer


def _program_text() -> str:
    """Return the program itself, which is to its results what a sweep file is."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")[:1_000_000] if file else ""
    except OSError:
        return ""
