"""Attempts and results of single tasks, as views show them.

Rule: the same `AttemptView` whether it comes from a row of the file, an entry of
the journal or an attempt that still runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.core.model import ArrayValue, AttemptReport, Outcome, ShardValue, Why
from keystone_mpi.records.entries import AttemptEnded
from keystone_mpi.records.tail import Flight, Tail

if TYPE_CHECKING:
    from keystone_mpi.records.store.reading import Snapshot


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt of a task."""

    index: int
    number: int
    epoch: int
    """Start of the run that made it, 1 for the first."""
    host: str
    outcome: Outcome | None
    """None while it is in flight."""
    why: Why
    started: float
    finished: float
    recorded: float
    duration_s: float
    exit_code: int
    signal: int
    user_s: float
    system_s: float
    max_rss_bytes: int
    cpus: tuple[int, ...]
    stdout_bytes: int
    stderr_bytes: int
    stdout_tail: str
    stderr_tail: str
    error: str
    command: str
    work_path: str
    artifacts: tuple[str, ...]
    worker: int = -1
    """Row of the worker in `RunView.workers` for stored attempts, identity within the epoch for others."""
    assigned: float = math.nan
    """When it was handed out; known for attempts in flight only."""


_NUMBERS = (
    "number", "epoch", "worker", "outcome", "why", "started", "finished", "recorded", "duration_s",
    "exit_code", "signal", "user_s", "system_s", "max_rss_bytes", "stdout_bytes", "stderr_bytes",
)  # fmt: skip
_TEXTS = ("cpus", "stdout_tail", "stderr_tail", "error", "command", "work_path", "artifacts")


def attempts_of_rows(snapshot: Snapshot, rows: NDArray[np.int64], hosts: Sequence[str]) -> list[AttemptView]:
    """Read attempts from ascending rows of /attempts."""
    if not len(rows):
        return []
    names = ("task_index", *_NUMBERS, *_TEXTS)
    columns = [snapshot.rows("attempts", name, rows).tolist() for name in names]
    found = []
    for values in zip(*columns, strict=True):
        row = dict(zip(names, values, strict=True))
        worker = row["worker"]
        row |= {
            "index": row.pop("task_index"),
            "host": hosts[worker] if 0 <= worker < len(hosts) else "",
            "outcome": Outcome(row["outcome"]),
            "why": Why(row["why"]),
            "cpus": tuple(int(cpu) for cpu in row["cpus"].split(",") if cpu),
            "artifacts": tuple(name for name in row["artifacts"].split("\n") if name),
        }
        found.append(AttemptView(**row))
    return found


def attempt_of_entry(entry: AttemptEnded, epoch: int, hosts: Mapping[int, str]) -> AttemptView:
    """Show an attempt whose end is in the journal."""
    report = entry.report
    return AttemptView(
        index=report.index,
        number=report.attempt,
        epoch=epoch,
        host=hosts.get(entry.worker, ""),
        outcome=report.outcome,
        why=report.why,
        started=report.started,
        finished=report.finished,
        recorded=entry.recorded,
        duration_s=report.duration_s,
        exit_code=report.exit_code,
        signal=report.signal,
        user_s=report.user_s,
        system_s=report.system_s,
        max_rss_bytes=report.max_rss_bytes,
        cpus=report.cpus,
        stdout_bytes=report.stdout_bytes,
        stderr_bytes=report.stderr_bytes,
        stdout_tail=report.stdout_tail,
        stderr_tail=report.stderr_tail,
        error=report.error,
        command=report.command,
        work_path=report.work_path,
        artifacts=report.artifacts,
        worker=entry.worker,
    )


def attempt_of_flight(
    key: tuple[int, int], flight: Flight, epoch: int, hosts: Mapping[int, str]
) -> AttemptView:
    """Show an attempt that has not ended."""
    return AttemptView(
        index=key[0],
        number=key[1],
        epoch=epoch,
        host=hosts.get(flight.worker, ""),
        outcome=None,
        why=Why.NONE,
        started=flight.started,
        finished=math.nan,
        recorded=math.nan,
        duration_s=math.nan,
        exit_code=-1,
        signal=0,
        user_s=0.0,
        system_s=0.0,
        max_rss_bytes=0,
        cpus=(),
        stdout_bytes=0,
        stderr_bytes=0,
        stdout_tail="",
        stderr_tail="",
        error="",
        command="",
        work_path="",
        artifacts=(),
        worker=flight.worker,
        assigned=flight.assigned,
    )


def results_of_row(snapshot: Snapshot, index: int) -> dict[str, Any]:
    """Read the results of one task from the file, without those that are missing."""
    found: dict[str, Any] = {}
    for column in snapshot.value_columns("results"):
        value = snapshot.value("results", column, index)
        if column.rank:
            if not _is_absent(value):
                found[column.key] = value
        elif value is not None and value != "" and value == value:  # NaN is a missing float
            found[column.key] = value
    return found


def _is_absent(array: NDArray[Any]) -> bool:
    match array.dtype.kind:
        case "f":
            return bool(np.isnan(array).all())
        case "i":
            return bool((array == (-1 if array.dtype.itemsize == 1 else -(2**63))).all())
        case _:
            return not any(array.ravel().tolist())


def results_of_report(output_path: Path, report: AttemptReport) -> dict[str, Any]:
    """Return the results that are still only in the journal and the shards."""
    from keystone_mpi.records.store.arrays import storable
    from keystone_mpi.records.store.shards import ShardReader

    found: dict[str, Any] = {name: value for name, value in report.scalars.items() if value is not None}
    shards = ShardReader(output_path, only_looks=True)
    values: dict[str, ArrayValue | ShardValue] = {**report.arrays, **report.large}
    for name, value in values.items():
        dtype = storable(value.dtype, tuple(value.shape))
        data = value.data if isinstance(value, ArrayValue) else shards.read(value)
        if name.startswith("@") or dtype is None or data is None:
            continue
        try:
            array = np.frombuffer(data, dtype).reshape(value.shape)
        except ValueError:
            continue
        found[name] = array if array.shape else array.item()
    return found


def kept_output(
    output_path: Path, snapshot: Snapshot | None, tail: Tail, index: int, attempt: int, stream: str
) -> bytes | None:
    """Return the whole output of an attempt; None when it was not kept."""
    from keystone_mpi.records.store.shards import ShardReader, unpack

    for entry in tail.ended:
        report = entry.report
        if (report.index, report.attempt) == (index, attempt):
            key = f"@{stream}"
            packed = report.packed.get(key)
            if packed is None and key in report.large:
                packed = ShardReader(output_path, only_looks=True).read(report.large[key])
            return None if packed is None else b"".join(unpack(packed))
    if snapshot is None or not snapshot.has("attempts", f"{stream}_kept_offset"):
        return None
    rows = np.flatnonzero(snapshot.column("attempts", "task_index") == index)
    rows = rows[snapshot.rows("attempts", "number", rows) == attempt]
    if not len(rows):
        return None
    offset = int(snapshot.rows("attempts", f"{stream}_kept_offset", rows[-1:])[0])
    size_bytes = int(snapshot.rows("attempts", f"{stream}_kept_bytes", rows[-1:])[0])
    if offset < 0:
        return None
    return snapshot.output(stream, offset, size_bytes) if size_bytes else b""
