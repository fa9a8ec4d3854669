"""What a stretch of journal says: entries gathered into what the file or a view needs.

Rule: pure bookkeeping in memory; the later entry wins. The fold applies a tail
to the HDF5 file, the view applies the same tail to arrays, so both tell one story.

    journal entries --add--> Tail: ended attempts, task changes, in-flight attempts, workers, close
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from keystone_mpi.core.model import AttemptReport, Outcome, TaskState, Why
from keystone_mpi.records.entries import (
    AddedTask,
    AttemptEnded,
    AttemptStarted,
    Entry,
    RecipeAdded,
    RunClosed,
    RunOpened,
    TaskEnded,
    TasksAdded,
    TasksAssigned,
    WorkerJoined,
    WorkerLeft,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

INTERRUPTED_ERROR = "the run stopped while this attempt was assigned or running"


class Flight(msgspec.Struct):
    """An attempt that was handed out and has not ended."""

    worker: int
    assigned: float
    started: float = math.nan


class TaskChange(msgspec.Struct, frozen=True):
    """The state a task has from now on."""

    state: TaskState
    why: Why
    error: str


class Tail(msgspec.Struct):
    """Entries of one journal, gathered.

    `opened`, `closed`, `in_flight` stay over `clear`; the rest is what came
    since then.
    """

    opened: RunOpened | None = None
    closed: RunClosed | None = None
    in_flight: dict[tuple[int, int], Flight] = {}
    """(task index, attempt number) -> where and since when."""
    ended: list[AttemptEnded] = []
    changes: dict[int, TaskChange] = {}
    forgiven: dict[int, int] = {}
    """Task that was put back -> length of `ended` by then: attempts before it no longer cost budget."""
    joined: list[WorkerJoined] = []
    left: list[WorkerLeft] = []
    recipes: list[bytes] = []
    """Further recipes of a program."""
    added: list[tuple[AddedTask, float]] = []
    """Further tasks of a program, and when they were submitted."""
    entries: int = 0

    def add(self, entry: Entry) -> None:
        """Take one entry in, in journal order."""
        self.entries += 1
        match entry:
            case AttemptEnded():
                report = entry.report
                self.in_flight.pop((report.index, report.attempt), None)
                self.ended.append(entry)
                if entry.state is TaskState.SUCCESS:
                    self.changes[report.index] = _SUCCESS
                else:
                    self.changes[report.index] = TaskChange(entry.state, report.why, report.error)
            case TasksAssigned():
                for pair in entry.attempts:
                    self.in_flight[pair] = Flight(entry.worker, entry.at)
            case AttemptStarted():
                key = (entry.index, entry.attempt)
                flight = self.in_flight.get(key)
                if flight is None:
                    self.in_flight[key] = Flight(entry.worker, entry.at, entry.at)
                else:
                    flight.started = entry.at
                    flight.worker = entry.worker
            case TaskEnded(returned_attempt=attempt) if attempt:
                self.in_flight.pop((entry.index, attempt), None)
            case TaskEnded():
                self.changes[entry.index] = TaskChange(entry.state, entry.why, entry.error)
                if entry.state is TaskState.PENDING:
                    self.forgiven[entry.index] = len(self.ended)
            case WorkerJoined():
                self.joined.append(entry)
            case WorkerLeft():
                self.left.append(entry)
            case TasksAdded():
                self.added += [(task, entry.at) for task in entry.tasks]
            case RecipeAdded():
                self.recipes.append(entry.recipe)
            case RunOpened():
                self.opened = entry
            case RunClosed():
                self.closed = entry
            case _:
                raise AssertionError(f"unknown journal entry {entry!r}")

    def clear(self) -> None:
        """Forget what has been applied to the file."""
        self.ended = []
        self.changes = {}
        self.forgiven = {}
        self.joined = []
        self.left = []
        self.recipes = []
        self.added = []
        self.entries = 0

    def close_with(self, state: str, reason: str) -> None:
        """Take over a close that an earlier fold has put into the file."""
        self.closed = RunClosed(state, reason, math.nan)

    def forgiven_attempts(self) -> dict[int, int]:
        """Return, per task that was put back, the highest attempt in `ended` that is forgiven; 0: none."""
        found = dict.fromkeys(self.forgiven, 0)
        if found:
            for position, entry in enumerate(self.ended):
                report = entry.report
                if position < self.forgiven.get(report.index, 0):
                    found[report.index] = max(found[report.index], report.attempt)
        return found

    def interrupt_in_flight(self, at: float) -> None:
        """Turn attempts in flight into INTERRUPTED ones: their master died.

        The states of their tasks are left alone; they are PENDING unless
        something final was recorded for them.
        """
        for (index, attempt), flight in self.in_flight.items():
            report = AttemptReport(
                index=index,
                attempt=attempt,
                outcome=Outcome.INTERRUPTED,
                started=flight.started,
                error=INTERRUPTED_ERROR,
            )
            self.ended.append(AttemptEnded(flight.worker, report, TaskState.PENDING, at))
        self.in_flight = {}


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Pause cyclic garbage collection: reading a journal makes many objects and no cycles.

    It would take a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_SUCCESS = TaskChange(TaskState.SUCCESS, Why.NONE, "")


class TaskUpdate(msgspec.Struct, frozen=True):
    """Values of one row per task that ended attempts; all arrays have the length of `rows`."""

    rows: NDArray[np.int64]
    attempts: NDArray[np.int32]
    """Highest attempt number."""
    last: NDArray[np.int64]
    """Position in the list of ended attempts of the last one."""
    best: NDArray[np.int64]
    """Position of the one whose results count: the last successful, else the last."""
    best_is_success: NDArray[np.bool_]
    first_started: NDArray[np.float64]
    finished: NDArray[np.float64]
    duration_s: NDArray[np.float64]


def task_update(ended: list[AttemptEnded]) -> TaskUpdate:
    """Reduce ended attempts, in journal order, to one row per task."""
    count = len(ended)
    index = np.fromiter((e.report.index for e in ended), np.int64, count)
    number = np.fromiter((e.report.attempt for e in ended), np.int32, count)
    outcome = np.fromiter((e.report.outcome for e in ended), np.int8, count)
    started = plausible_times(np.fromiter((e.report.started for e in ended), np.float64, count))
    finished = plausible_times(np.fromiter((e.report.finished for e in ended), np.float64, count))
    duration_s = np.fromiter((e.report.duration_s for e in ended), np.float64, count)
    order = np.argsort(index, kind="stable")
    sorted_index = index[order]
    starts = (
        np.flatnonzero(np.r_[True, sorted_index[1:] != sorted_index[:-1]]) if count else np.empty(0, np.int64)
    )
    rows = sorted_index[starts]
    last = order[np.r_[starts[1:], count] - 1] if count else starts
    # Successful attempts outrank others; among equals the later one.
    rank = np.where(outcome[order] == Outcome.SUCCESS, count, 0) + np.arange(count)
    best_rank = np.maximum.reduceat(rank, starts) if count else starts
    best = order[best_rank % max(count, 1)] if count else starts
    return TaskUpdate(
        rows=rows,
        attempts=np.maximum.reduceat(number[order], starts) if count else np.empty(0, np.int32),
        last=last,
        best=best,
        best_is_success=outcome[best] == Outcome.SUCCESS,
        first_started=np.fmin.reduceat(started[order], starts) if count else np.empty(0),
        finished=finished[last],
        duration_s=duration_s[last],
    )


def plausible_times(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn times that no clock of ours can have shown into NaN.

    Readers decode these as dates and refuse a whole file for one absurd value.
    """
    with np.errstate(invalid="ignore"):
        return np.where((times >= 0) & (times < 4e9), times, np.nan)
