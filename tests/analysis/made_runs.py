"""Results files for the tests of this folder: written as a master would, and enlarged to a million tasks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from keystone_mpi.core.model import AttemptReport, Outcome, TaskState, Why
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.records.entries import AttemptEnded, Entry, RunClosed, RunOpened, WorkerJoined
from keystone_mpi.records.journal import JournalWriter, journal_path
from keystone_mpi.records.store import finish, fold
from keystone_mpi.sweeps.load import load_sweep

T0 = 1_750_000_000.0


def task_end(
    index: int,
    *,
    attempt: int = 1,
    worker: int = 1,
    start: float = 0.0,
    took: float = 1.0,
    state: TaskState = TaskState.SUCCESS,
    **report: Any,
) -> AttemptEnded:
    """An attempt that ended `took` seconds after it started at T0 + `start`."""
    good = state is TaskState.SUCCESS
    values: dict[str, Any] = {
        "outcome": Outcome.SUCCESS if good else Outcome.FAILED,
        "exit_code": 0 if good else 1,
        "why": Why.NONE if good else Why.EXIT_CODE,
        "error": "" if good else "exit code 1",
        "command": "" if good else "solve --index 1",
        "started": T0 + start,
        "finished": T0 + start + took,
        "duration_s": took,
    }
    report = values | report
    return AttemptEnded(
        worker, AttemptReport(index=index, attempt=attempt, **report), state, T0 + start + took
    )


def write_run(
    folder: Path,
    sweep_text: str,
    entries: Sequence[Entry],
    *,
    hosts: Sequence[str] = ("node1",),
    slots: int = 2,
    name: str = "run.h5",
    closed: str = "complete",
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Write a run; with ``closed=""`` its journal stays, as of a master that died."""
    sweep_path = folder / f"{Path(name).stem}.toml"
    sweep_path.write_text(sweep_text)
    sweep = load_sweep(sweep_path)
    output = folder / name
    journal = journal_path(output)
    writer = JournalWriter(journal, create=True)
    writer.append(
        RunOpened(
            format_version=1,
            run_id=f"run-{name}",
            epoch=1,
            opened=T0,
            created=T0,
            task_count=len(sweep),
            base_generation="",
            base_task_count=0,
            added_points=[(0, len(sweep))],
            spec=sweep.spec,
            sweep_text=sweep.text,
            sweep_name=sweep.name,
            fingerprint=sweep.fingerprint,
            provenance=provenance or {"python": "3.11"},
        )
    )
    for number, host in enumerate(hosts, start=1):
        writer.append(
            WorkerJoined(
                worker=number, rank=number, host=host, slots=slots, memory_bytes=2**30, pid=100, at=T0 - 1
            )
        )
    for entry in entries:
        writer.append(entry)
    if closed:
        writer.append(RunClosed(closed, "", T0 + 1e6))
    writer.flush()
    writer.close()
    if closed:
        fold(output, journal, columns_from_spec(sweep.spec, [(0, len(sweep))]), final=True)
        finish(output)
    return output


SMALL = """
[sweep]
name = "small"
command = ["true", "{x}", "{y}"]
[params]
x = [0, 1]
y = [0.5, 1.5]
"""


def enlarge(source: Path, target: Path, side: int) -> Path:
    """Make a run of side x side tasks from one of 2 x 2, by plain h5py: seconds, not minutes."""
    shutil.copy(source, target)
    count = side * side
    task = np.arange(count)
    random = np.random.default_rng(7)
    took = random.uniform(0.5, 1.5, count)
    columns: dict[str, np.ndarray] = {
        "params/x": task // side,
        "params/y": (task % side) * 0.25,
        "results/value": random.normal(size=count),
        "results/steps": task % 100,
        "tasks/state": np.full(count, int(TaskState.SUCCESS)),
        "tasks/attempts": np.ones(count),
        "tasks/submitted": np.full(count, T0),
        "tasks/started": T0 + task * 0.01,
        "tasks/finished": T0 + task * 0.01 + took,
        "tasks/duration_s": took,
        "tasks/last_attempt": task,
        "tasks/results_from": task,
        "attempts/task_index": task,
        "attempts/number": np.ones(count),
        "attempts/worker": task % 2,
        "attempts/epoch": np.ones(count),
        "attempts/started": T0 + task * 0.01,
        "attempts/finished": T0 + task * 0.01 + took,
        "attempts/duration_s": took,
    }
    with h5py.File(target, "r+", libver=("earliest", "v108")) as file:
        file["task"].resize(count, axis=0)
        file["task"][:] = task
        file["task_id"].resize(count, axis=0)
        file["attempts/attempt"].resize(count, axis=0)
        for group in ("params", "results", "tasks", "attempts"):
            for name, dataset in file[group].items():
                if name in ("attempt",):
                    continue
                dataset.resize(count, axis=0)
                values = columns.get(f"{group}/{name}")
                if values is not None:
                    dataset[:] = values
        text = file["spec"][()].decode()
        spec = msgspec.json.decode(text)
        spec["space"]["params"] = [
            {"name": "x", "range": [0, side, 1]},
            {"name": "y", "linspace": [0, (side - 1) * 0.25, side]},
        ]
        file["spec"][()] = msgspec.json.encode(spec).decode()
    return target
