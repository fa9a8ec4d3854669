"""Replaying: what a finished file says, as the journal entries that would make it.

Rule: the inverse of the fold, a bounded number of attempts at a time. Whoever
replays a file into another run's journal translates the rows; what that run
holds already is left out.

    Snapshot --workers, attempts with their results, tasks that ended without one--> Entry, Entry, ...
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.core.model import FINAL_STATES, ArrayValue, AttemptReport, Outcome, TaskState, Why
from keystone_mpi.records.attempts import AttemptView, attempts_of_rows
from keystone_mpi.records.entries import AttemptEnded, Entry, TaskEnded, WorkerJoined, WorkerLeft
from keystone_mpi.records.store.reading import Snapshot, ValueColumn
from keystone_mpi.records.store.values import BOOL_MISSING, INT_MISSING, from_array

CHUNK_ATTEMPTS = 2000
PACK_LEVEL = 1

_DECIDES = {
    Outcome.SUCCESS: TaskState.SUCCESS,
    Outcome.FAILED: TaskState.FAILURE,
    Outcome.TIMEOUT: TaskState.TIMEOUT,
    Outcome.OUT_OF_MEMORY: TaskState.FAILURE,
    Outcome.WORKER_LOST: TaskState.FAILURE,
    Outcome.CANCELLED: TaskState.CANCELLED,
}

Identity = tuple[int, str, str, int]
"""What tells attempts apart across runs: row, start, end, exit code."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the run that is replayed into holds already."""

    attempts: set[Identity] = field(default_factory=set)
    last_attempt: dict[int, int] = field(default_factory=dict)
    """Row -> highest attempt number; absent: 0."""
    ended: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Row -> state and cause, of tasks that have their final state."""
    forgiven: dict[int, int] = field(default_factory=dict)
    """Row -> attempts up to this number do not count against its retries; absent: 0."""


def known_of(snapshot: Snapshot) -> Known:
    """Read what a file holds."""
    columns = [
        snapshot.column("attempts", name).tolist()
        for name in ("task_index", "started", "finished", "exit_code")
    ]
    states = snapshot.column("tasks", "state")
    whys = snapshot.column("tasks", "why")
    final = np.flatnonzero(np.isin(states, [int(state) for state in FINAL_STATES]))
    numbers = snapshot.column("tasks", "attempts")
    forgiven = snapshot.column("tasks", "forgiven")
    return Known(
        attempts={_identity(*values) for values in zip(*columns, strict=True)},
        last_attempt={int(row): int(numbers[row]) for row in np.flatnonzero(numbers)},
        forgiven={int(row): int(forgiven[row]) for row in np.flatnonzero(forgiven)},
        ended={int(row): (int(states[row]), int(whys[row])) for row in final},
    )


def _identity(row: int, started: float, finished: float, exit_code: int) -> Identity:
    return row, repr(started), repr(finished), exit_code


def replay(
    snapshot: Snapshot, rows: NDArray[np.int64], known: Known, *, first_worker: int
) -> Iterator[Entry]:
    """Yield the entries that another run lacks.

    Parameters
    ----------
    snapshot : Snapshot
        The file to replay.
    rows : array of int64
        Row in the other run of each row here; -1: leave it out.
    known : Known
        What the other run holds; updated by what is yielded.
    first_worker : int
        Number under which the first worker of this file joins the other run.
    """
    hosts = [str(host) for host in snapshot.column("workers", "host")]
    workers_told = False
    results = _Results(snapshot)
    last_rows = snapshot.column("tasks", "last_attempt")
    results_from = snapshot.column("tasks", "results_from")
    states = snapshot.column("tasks", "state")
    whys = snapshot.column("tasks", "why")
    errors = snapshot.column("tasks", "error")
    put_back = _put_back(snapshot, rows, known)
    told: set[int] = set()
    """Rows there whose final state an attempt tells."""
    count = snapshot.count("attempts", "attempt")
    for start in range(0, count, CHUNK_ATTEMPTS):
        numbers = np.arange(start, min(start + CHUNK_ATTEMPTS, count), dtype=np.int64)
        views = attempts_of_rows(snapshot, numbers, hosts)
        wanted = [
            (int(number), view)
            for number, view in zip(numbers, views, strict=True)
            if rows[view.index] >= 0
            and _identity(int(rows[view.index]), view.started, view.finished, view.exit_code)
            not in known.attempts
        ]
        if wanted and not workers_told:
            workers_told = True
            yield from _workers(snapshot, first_worker)
        held = results.read([view.index for number, view in wanted if results_from[view.index] == number])
        for number, view in wanted:
            row = int(rows[view.index])
            if view.number > put_back.get(view.index, view.number):
                del put_back[view.index]
                yield _forgive(row, known)
            state = TaskState.PENDING
            task_state = TaskState(int(states[view.index]))
            if (
                last_rows[view.index] == number
                and _DECIDES.get(view.outcome or Outcome.SUCCESS) == task_state
            ):
                state = task_state
                if (int(whys[view.index]), str(errors[view.index])) == (int(view.why), view.error):
                    told.add(view.index)
            attempt = max(view.number, known.last_attempt.get(row, 0) + 1)
            known.last_attempt[row] = attempt
            report = _report(snapshot, view, row, attempt, number)
            if results_from[view.index] == number:
                report = results.add(report, view.index, held)
            yield AttemptEnded(
                worker=first_worker + view.worker if view.worker >= 0 else -1,
                report=report,
                state=state,
                recorded=view.recorded,
            )
    finished = snapshot.column("tasks", "finished")
    for there in put_back:
        told.discard(there)
        yield _forgive(int(rows[there]), known)
    for there in np.flatnonzero(np.isin(states, [int(state) for state in FINAL_STATES])).tolist():
        row, ending = int(rows[there]), (int(states[there]), int(whys[there]))
        if row >= 0 and there not in told and known.ended.get(row) != ending:
            yield TaskEnded(
                index=row,
                state=TaskState(ending[0]),
                why=Why(ending[1]),
                error=str(errors[there]),
                at=float(finished[there]),
            )


def _put_back(snapshot: Snapshot, rows: NDArray[np.int64], known: Known) -> dict[int, int]:
    """Return tasks that were run again although they had failed: row here -> last forgiven attempt."""
    forgiven = snapshot.column("tasks", "forgiven")
    return {
        int(there): int(forgiven[there])
        for there in np.flatnonzero(forgiven)
        if rows[there] >= 0 and known.forgiven.get(int(rows[there]), 0) < forgiven[there]
    }


def _forgive(row: int, known: Known) -> Entry:
    """What was told of a task so far no longer counts against its retries; it has no final state."""
    known.ended.pop(row, None)
    return TaskEnded(index=row, state=TaskState.PENDING, why=Why.NONE, error="", at=time.time())


def _workers(snapshot: Snapshot, first: int) -> Iterator[Entry]:
    names = ("rank", "host", "slots", "memory_bytes", "pid", "joined", "left", "why_left")
    columns = [snapshot.column("workers", name).tolist() for name in names]
    for number, values in enumerate(zip(*columns, strict=True)):
        rank, host, slots, memory_bytes, pid, joined, left, why_left = values
        yield WorkerJoined(
            worker=first + number,
            rank=rank,
            host=host,
            slots=slots,
            memory_bytes=memory_bytes,
            pid=pid,
            at=joined,
        )
        if left == left:
            yield WorkerLeft(worker=first + number, why=why_left, at=left)


def _report(snapshot: Snapshot, view: AttemptView, row: int, attempt: int, number: int) -> AttemptReport:
    return AttemptReport(
        index=row,
        attempt=attempt,
        outcome=Outcome.INTERRUPTED if view.outcome is None else view.outcome,
        started=view.started,
        finished=view.finished,
        duration_s=view.duration_s,
        exit_code=view.exit_code,
        signal=view.signal,
        why=view.why,
        user_s=view.user_s,
        system_s=view.system_s,
        max_rss_bytes=view.max_rss_bytes,
        cpus=view.cpus,
        stdout_tail=view.stdout_tail,
        stderr_tail=view.stderr_tail,
        stdout_bytes=view.stdout_bytes,
        stderr_bytes=view.stderr_bytes,
        error=view.error,
        packed=_kept_output(snapshot, number),
        artifacts=view.artifacts,
        work_path=view.work_path,
        command=view.command,
    )


def _kept_output(snapshot: Snapshot, number: int) -> dict[str, bytes]:
    packed: dict[str, bytes] = {}
    for stream in ("stdout", "stderr"):
        if not snapshot.has("attempts", f"{stream}_kept_offset"):
            continue
        at = np.array([number], np.int64)
        offset = int(snapshot.rows("attempts", f"{stream}_kept_offset", at)[0])
        size_bytes = int(snapshot.rows("attempts", f"{stream}_kept_bytes", at)[0])
        if offset >= 0:
            data = snapshot.output(stream, offset, size_bytes) if size_bytes else b""
            packed[f"@{stream}"] = zlib.compress(data, PACK_LEVEL)
    return packed


class _Results:
    """Reads /results of some tasks at a time."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        columns = snapshot.value_columns("results")
        self._scalars = [column for column in columns if not column.rank]
        self._arrays = [column for column in columns if column.rank]

    def read(self, tasks: list[int]) -> dict[int, dict[str, Any]]:
        """Return the scalars of tasks, by row; a missing one is left out, a float's NaN is not."""
        at = np.array(sorted(set(tasks)), np.int64)
        held: dict[int, dict[str, Any]] = {int(row): {} for row in at}
        if not len(at):
            return held
        for column in self._scalars:
            values = from_array(self._snapshot.rows("results", column.dataset, at), column.kind)
            for row, value in zip(at.tolist(), values, strict=True):
                if value is not None and value != "":
                    held[row][column.key] = value
        return held

    def add(self, report: AttemptReport, task: int, held: dict[int, dict[str, Any]]) -> AttemptReport:
        """Return the report with the results of its task."""
        arrays: dict[str, ArrayValue] = {}
        for column in self._arrays:
            array = self._array(column, task)
            if array is not None:
                name = column.origin
                arrays[name] = ArrayValue(array.dtype.str, array.shape, array.tobytes())
        return AttemptReport(
            **{
                **{name: getattr(report, name) for name in report.__struct_fields__},
                "scalars": held.get(task, {}),
                "arrays": arrays,
            }
        )

    def _array(self, column: ValueColumn, task: int) -> NDArray[Any] | None:
        """Return an array without its padding; None when there is nothing else."""
        stored: NDArray[Any] = np.asarray(self._snapshot.value("results", column, task))
        present: NDArray[np.bool_]
        match column.kind:
            case "float":
                present = ~np.isnan(stored)
            case "int":
                present = stored != INT_MISSING
            case "bool":
                present = stored != BOOL_MISSING
            case _:
                present = stored != ""
        if not present.any():
            return None
        corner = tuple(
            slice(0, int(np.flatnonzero(present.any(axis=tuple(set(range(stored.ndim)) - {axis})))[-1]) + 1)
            for axis in range(stored.ndim)
        )
        found = stored[corner]
        if column.kind == "bool":
            return np.ascontiguousarray(found).astype(bool)
        if column.kind == "str":
            return np.array(found.tolist(), dtype=np.str_)
        return np.ascontiguousarray(found)
