"""Runs written by hand, as a master would: the material of the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.core.model import AttemptReport, Outcome, TaskState, Why
from keystone_mpi.records.entries import (
    AttemptEnded,
    Entry,
    RunClosed,
    RunOpened,
    TasksAssigned,
    WorkerJoined,
)
from keystone_mpi.records.journal import JournalWriter, journal_path
from keystone_mpi.records.store import Kind

T0 = 1_700_000_000.0


class Columns:
    """Parameters of `count` added tasks, the first of which is row `base` of the run."""

    def __init__(self, count: int, base: int = 0) -> None:
        self.count = count
        self.base = base

    def implied(self) -> dict[str, object]:
        return {}

    def kinds(self) -> Mapping[str, Kind]:
        return {"mesh_size": "int", "kappa": "float", "label": "str", "fine": "bool"}

    def columns(self, start_row: int, stop_row: int) -> Mapping[str, NDArray[Any]]:
        assert 0 <= start_row <= stop_row <= self.count
        k = np.arange(self.base + start_row, self.base + stop_row)
        labels = np.array([f"p{i % 3}" for i in k.tolist()], dtype=object)
        return {"mesh_size": k * 8, "kappa": k * 0.5, "label": labels, "fine": k % 2 == 1}


def make_columns(spec: bytes, points: list[tuple[int, int]]) -> Columns:
    return Columns(sum(stop - start for start, stop in points), base=points[0][0] if points else 0)


def opened(tasks: int, **changes: Any) -> RunOpened:
    values: dict[str, Any] = {
        "format_version": 1,
        "run_id": "run-1",
        "epoch": 1,
        "opened": T0,
        "created": T0,
        "task_count": tasks,
        "base_generation": "",
        "base_task_count": 0,
        "added_points": [(0, tasks)],
        "spec": b'{"name": "demo"}',
        "sweep_text": '[sweep]\nname = "demo"\n',
        "sweep_name": "demo",
        "fingerprint": {"argv": "aa"},
        "provenance": {"python": "3.11"},
    }
    return RunOpened(**(values | changes))


def joined(worker: int = 1, host: str = "n1") -> WorkerJoined:
    return WorkerJoined(worker=worker, rank=worker, host=host, slots=2, memory_bytes=2**30, pid=100, at=T0)


def given(*pairs: tuple[int, int], worker: int = 1) -> TasksAssigned:
    return TasksAssigned(worker=worker, at=T0 + 1, attempts=list(pairs))


def done(index: int, attempt: int = 1, *, worker: int = 1, **report: Any) -> AttemptEnded:
    """An attempt that succeeded."""
    values: dict[str, Any] = {
        "outcome": Outcome.SUCCESS,
        "started": T0 + index,
        "finished": T0 + index + 0.5,
        "duration_s": 0.5,
        "exit_code": 0,
        "scalars": {"residual": index * 1.5},
        "stdout_tail": f"done {index}\n",
        "stdout_bytes": 7,
        "max_rss_bytes": 1000 + index,
        "cpus": (0, 2),
    }
    return AttemptEnded(
        worker,
        AttemptReport(index=index, attempt=attempt, **(values | report)),
        TaskState.SUCCESS,
        T0 + index + 1,
    )


def failed(
    index: int,
    attempt: int = 1,
    *,
    retried: bool = False,
    state: TaskState = TaskState.FAILURE,
    **report: Any,
) -> AttemptEnded:
    """An attempt that failed; its task waits for another one when `retried`."""
    values: dict[str, Any] = {
        "outcome": Outcome.FAILED,
        "started": T0 + index,
        "finished": T0 + index + 0.25,
        "duration_s": 0.25,
        "exit_code": 3,
        "why": Why.EXIT_CODE,
        "error": "exit code 3",
        "stderr_tail": "boom",
        "stderr_bytes": 4,
        "command": "solve --x 1",
    }
    return AttemptEnded(
        1,
        AttemptReport(index=index, attempt=attempt, **(values | report)),
        TaskState.PENDING if retried else state,
        T0 + index + 1,
    )


def closed(state: str = "complete", reason: str = "") -> RunClosed:
    return RunClosed(state, reason, T0 + 1000)


class Run:
    """An output path with a journal that is being written."""

    def __init__(self, folder: Path, tasks: int, name: str = "run.h5", **head: Any) -> None:
        self.output = folder / name
        self.journal = journal_path(self.output)
        self.tasks = tasks
        self.writer = JournalWriter(self.journal, create=True)
        self.add(opened(tasks, **head))

    def add(self, *entries: Entry) -> Run:
        for entry in entries:
            self.writer.append(entry)
        self.writer.flush()
        return self

    def stop(self) -> Run:
        self.writer.close()
        return self
