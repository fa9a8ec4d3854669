"""What the Slurm tests share: job scripts, workers of a file, waiting for progress."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import h5py

from keystone_mpi.core.model import FINAL_STATES
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.records.view import open_view

SOLVER = 'echo "{x} $KEYSTONE_ATTEMPT" >> started.log; sleep %s; echo "{{\\"v\\": {x}, \\"i\\": {index}}}"'


def solver(sleep_s: float) -> list[str]:
    """Return a command that notes its start, works for a while and prints two results."""
    return ["/bin/sh", "-c", SOLVER % sleep_s]


def workers(path: Path) -> list[tuple[str, int]]:
    """(host, slots) of every worker."""
    with h5py.File(path) as file:
        return sorted(zip(file["workers/host"].asstr()[:], map(int, file["workers/slots"][:]), strict=True))


def hosts_of_tasks(path: Path) -> Counter[str]:
    """How many attempts each host ran."""
    with h5py.File(path) as file:
        hosts = file["workers/host"].asstr()[:]
        return Counter(hosts[worker] for worker in file["attempts/worker"][:])


def ended(path: Path) -> dict[int, int]:
    """Tasks that a reader is told are final, and their states; empty when there is nothing to read."""
    if not (path.exists() or path.with_name(f"{path.name}.journal").exists()):
        return {}
    view = open_view(path, columns_from_spec)
    with view:
        return {task: int(state) for task, state in enumerate(view.states) if state in FINAL_STATES}


def started(folder: Path) -> list[tuple[int, int]]:
    """(x, attempt) of every solver that ever started."""
    path = folder / "started.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(x), int(attempt)) for x, attempt in (line.split() for line in lines)]


def status(slurm, path: Path) -> dict:  # type: ignore[type-arg,no-untyped-def]
    """What ``keystone-mpi status --json`` says."""
    return json.loads(slurm(["keystone-mpi", "status", "--json", path]).check().stdout)
