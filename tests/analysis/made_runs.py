"""Results files for the tests of this folder: written as a master would, of up to a million tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from keystone_mpi.core.model import AttemptReport, Outcome, TaskState, Why
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.records.entries import AttemptEnded, Entry, RunClosed, RunOpened, WorkerJoined
from keystone_mpi.records.journal import JournalWriter, journal_path
from keystone_mpi.records.store import finish, fold
from keystone_mpi.sweeps.load import load_sweep

T0 = 1_750_000_000.0
FIXTURES = Path(__file__).parent / "fixtures"

EVIL = (
    "</script><script>window.pwned = 1</script><!-- <img src=x onerror='window.pwned = 2'> & \u2028 \x1b[31m"
)
"""What a solver should not print, and may."""

EVIL_SWEEP = """
[sweep]
name = "evil <img src=x onerror=alert(1)> &amp;"
command = ["echo", "{mesh}", "{label}"]
[params]
mesh = [16, 32, 64]
label = ["plain", "</script><script>window.pwned = 4</script>", "<b>&amp;"]
"""


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


LARGE = """
[sweep]
name = "large"
command = ["true", "{{x}}", "{{y}}"]
[params]
x = {{ range = [0, {side}, 1] }}
y = {{ linspace = [0, {last}, {side}] }}
"""


def write_large(folder: Path, side: int) -> Path:
    """Write a run of side x side tasks, all done: by the store, then filled by plain h5py in seconds."""
    count = side * side
    path = write_run(
        folder,
        LARGE.format(side=side, last=(side - 1) * 0.25),
        [task_end(i, scalars={"value": 1.0, "steps": 3}) for i in range(2)],
        hosts=("a", "b"),
        slots=64,
        name="large.h5",
    )
    task = np.arange(count)
    random = np.random.default_rng(7)
    took = random.uniform(0.5, 1.5, count)
    columns: dict[str, np.ndarray] = {
        "results/value": random.normal(size=count),
        "results/steps": task % 100,
        "tasks/state": np.full(count, int(TaskState.SUCCESS)),
        "tasks/attempts": np.ones(count),
        "tasks/started": T0 + task * 0.01,
        "tasks/finished": T0 + task * 0.01 + took,
        "tasks/duration_s": took,
        "tasks/last_attempt": task,
        "tasks/results_from": task,
        "attempts/attempt": task,
        "attempts/task_index": task,
        "attempts/number": np.ones(count),
        "attempts/worker": task % 2,
        "attempts/epoch": np.ones(count),
        "attempts/started": T0 + task * 0.01,
        "attempts/finished": T0 + task * 0.01 + took,
        "attempts/duration_s": took,
    }
    with h5py.File(path, "r+", libver=("earliest", "v108")) as file:
        for dataset in file["attempts"].values():
            dataset.resize(count, axis=0)
        for name, values in columns.items():
            file[name][:] = values
    return path
