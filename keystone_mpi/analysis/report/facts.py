"""What the report shows, as plain JSON-able data.

Rule: bounded, whatever the size of the run: attempts beyond `DETAILED` become
a density picture, tasks beyond `POINTS` a random sample, and both are said.

    Run --> numbers, timeline, utilisation, durations, scatter, failures, provenance
"""

from __future__ import annotations

import base64
import math
import shlex
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.analysis.comparing import plain
from keystone_mpi.analysis.failures import FailureGroup
from keystone_mpi.analysis.run import Run
from keystone_mpi.analysis.statistics import Attempts, busy_over_time, lanes
from keystone_mpi.core.model import Outcome

DETAILED = 50_000
"""Attempts that are drawn one by one."""
DENSITY_ROWS = 256
DENSITY_BINS = 480
UTILISATION_BINS = 240
HISTOGRAM_BINS = 40
POINTS = 4000
GROUPS = 12
EXAMPLES = 3
"""Failures of a group that are shown with their output."""
TAIL_CHARACTERS = 3000
MOST_CATEGORIES = 50
WORKER_ROWS = 400


def timeline(run: Run) -> dict[str, Any]:
    """Return the attempts in lanes, or their density."""
    attempts = run.attempt_arrays()
    known = np.flatnonzero(np.isfinite(attempts.started) & np.isfinite(attempts.finished))
    shown = attempts.of(known)
    flights = run.contents.in_flight()
    if not len(known) and not flights:
        return {"kind": "none", "count": 0}
    began = [float(shown.started.min())] if len(known) else []
    first = min([*began, *(started for _, _, started in flights)])
    last = max([float(shown.finished.max())] if len(known) else [first])
    last = max([last, *(started for _, _, started in flights)])
    found: dict[str, Any] = {
        "first": first,
        "length_s": max(last - first, 1e-6),
        "count": len(known),
    }
    if len(known) > DETAILED:
        return found | _density(run, shown, first, last)
    lane, labels = _lanes(run, shown)
    outcome, number = run.attempt_column("outcome"), run.attempt_column("number")
    order = np.lexsort((shown.started, lane))
    return found | {
        "kind": "detail",
        "lanes": labels,
        "lane": _packed(lane[order], np.uint16),
        "start": _packed((shown.started - first)[order], np.float64),
        "took": _packed((shown.finished - shown.started)[order], np.float32),
        "outcome": _packed(outcome[known][order], np.uint8),
        "task": _packed(shown.task[order], np.uint32),
        "number": _packed(number[known][order], np.uint16),
        "outcomes": [member.name.lower().replace("_", " ") for member in Outcome],
        "running": len(flights),
    }


def _lanes(run: Run, shown: Attempts) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Give every attempt a lane; the lanes of a worker lie together."""
    lane = np.zeros(len(shown.task), np.int64)
    labels: list[dict[str, Any]] = []
    workers = run.worker_arrays()
    order = sorted(
        np.unique(shown.worker).tolist(),
        key=lambda row: (int(workers.rank[row]), row) if row >= 0 else (1 << 30, row),
    )
    # A worker of a later start takes the lanes of the same rank and host of an earlier one.
    places: dict[tuple[str, int], list[int]] = {}
    for row in order:
        host = run.hosts[row] if row >= 0 else "unknown"
        places.setdefault((host, int(workers.rank[row]) if row >= 0 else -1), []).append(row)
    base = 0
    for (host, rank), rows in places.items():
        here = np.flatnonzero(np.isin(shown.worker, rows))
        own = lanes(shown.started[here], shown.finished[here])
        lane[here] = base + own
        number = int(own.max(initial=0)) + 1
        labels.append({"host": host, "rank": rank, "first": base, "count": number})
        base += number
    return lane, labels


def _density(run: Run, shown: Attempts, first: float, last: float) -> dict[str, Any]:
    """Return how busy groups of workers were, per stretch of time."""
    workers = run.worker_arrays()
    rows = np.unique(shown.worker)
    group_count = min(len(rows), DENSITY_ROWS)
    group_of = np.minimum(np.searchsorted(rows, shown.worker) * group_count // len(rows), group_count - 1)
    busy = np.zeros((group_count, DENSITY_BINS))
    labels = []
    for group in range(group_count):
        here = group_of == group
        members = np.unique(shown.worker[here])
        slots = max(1, int(workers.slots[members[members >= 0]].sum()))
        side = busy_over_time(shown.started[here], shown.finished[here], first, last, DENSITY_BINS)
        busy[group] = np.minimum(side / max(slots, float(side.max())), 1.0)
        host = run.hosts[int(members[0])] if members[0] >= 0 else "unknown"
        rank = int(workers.rank[members[0]]) if members[0] >= 0 else -1
        labels.append({"host": host, "rank": rank, "workers": len(members), "first": group, "count": 1})
    return {
        "kind": "density",
        "lanes": labels,
        "bins": DENSITY_BINS,
        "busy": _packed(np.round(busy * 255).ravel(), np.uint8),
    }


def utilisation(run: Run) -> dict[str, Any]:
    """Return how many attempts ran over time, and how many slots there were."""
    attempts = run.attempt_arrays()
    known = np.isfinite(attempts.started) & np.isfinite(attempts.finished)
    if not known.any():
        return {"values": [], "slots": 0, "length_s": 0.0}
    started, finished = attempts.started[known], attempts.finished[known]
    first, last = float(started.min()), float(finished.max())
    bins = int(min(UTILISATION_BINS, max(20, known.sum())))
    cores = np.maximum(attempts.cores[known], 1)
    busy = np.zeros(bins)
    for each in np.unique(cores).tolist():
        here = cores == each
        busy += each * busy_over_time(started[here], finished[here], first, last, bins)
    workers = run.worker_arrays()
    slots = max((int(workers.slots[workers.epoch == e].sum()) for e in np.unique(workers.epoch)), default=0)
    return {"values": [round(value, 3) for value in busy.tolist()], "slots": slots, "length_s": last - first}


def durations(run: Run) -> dict[str, Any]:
    """Return a histogram of the attempts' wall times; on a logarithmic axis where they spread widely."""
    took = run.attempt_arrays().duration_s
    took = took[np.isfinite(took) & (took >= 0)]
    if not len(took):
        return {"counts": [], "edges": [], "log": False}
    low, high = float(took.min()), float(took.max())
    log = low > 0 and high / low > 100
    bins = int(min(HISTOGRAM_BINS, max(5, math.sqrt(len(took)) * 2)))
    if high <= low:
        edges = np.linspace(low * 0.9, low * 1.1 + 1e-9, 6)
    else:
        edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    counts, _ = np.histogram(took, edges)
    return {
        "counts": counts.tolist(),
        "edges": edges.tolist(),
        "log": bool(log),
        "median": float(np.median(took)),
    }


def scatter(run: Run) -> dict[str, Any]:
    """Return parameters and results of the tasks, or of a sample of them."""
    count = len(run)
    # At random, but always the same ones: a regular step would beat with the axes of a grid.
    chosen = np.arange(count)
    if count > POINTS:
        chosen = np.sort(np.random.default_rng(1).choice(count, POINTS, replace=False))
    columns: dict[str, Any] = {}
    names: dict[str, list[str]] = {"params": [], "results": []}
    for name in run.params:
        column = _column(run.values(name)[chosen])
        if column is not None:
            columns[f"p:{name}"] = column
            names["params"].append(name)
    for name in [*run.contents.scalars, "duration_s"]:
        if name in run.params or (name == "duration_s" and name in names["results"]):
            continue
        column = _column(run.values(name)[chosen])
        if column is not None and column["numeric"]:
            columns[f"r:{name}"] = column
            names["results"].append(name)
    return {
        "columns": columns,
        "params": names["params"],
        "results": names["results"],
        "task": run.rows[chosen].tolist(),
        "of": count,
    }


def _column(values: NDArray[Any]) -> dict[str, Any] | None:
    """Return a column for the page; None when a picture of it says nothing."""
    if values.dtype.kind in "if":
        numbers = [value if math.isfinite(value) else None for value in values.tolist()]
        if all(value is None for value in numbers):
            return None
        return {"numeric": True, "values": numbers}
    texts = [str(value) for value in values.tolist()]
    if len(set(texts)) > MOST_CATEGORIES:
        return None
    return {"numeric": False, "values": texts}


def failure_details(run: Run, groups: list[FailureGroup]) -> list[dict[str, Any]]:
    """Return the groups of failures with examples: output tails and the command that reruns each."""
    from keystone_mpi.records.attempts import attempts_of_rows

    path = str(run.path)
    contents = run.contents
    found = []
    for group in groups[:GROUPS]:
        examples = []
        for task in group.tasks[:EXAMPLES]:
            row = int(task)
            attempt = int(contents.fixed_rows("tasks", "last_attempt", np.array([row]))[0])
            views = (
                attempts_of_rows(contents.snapshot, np.array([attempt]), run.hosts) if attempt >= 0 else []
            )
            view = views[0] if views else None
            examples.append(
                {
                    "task": task,
                    "params": {name: plain(contents.param_at(name, row)) for name in run.params},
                    "error": str(contents.fixed_rows("tasks", "error", np.array([row]))[0]),
                    "host": view.host if view else "",
                    "number": view.number if view else 0,
                    "duration_s": view.duration_s if view else math.nan,
                    "command": view.command if view else "",
                    "stdout": view.stdout_tail[-TAIL_CHARACTERS:] if view else "",
                    "stderr": view.stderr_tail[-TAIL_CHARACTERS:] if view else "",
                    "rerun": shlex.join(["keystone-mpi", "rerun", path, task]),
                    "show": shlex.join(["keystone-mpi", "show", path, task]),
                }
            )
        found.append({"group": group, "examples": examples})
    return found


def provenance(run: Run) -> list[tuple[str, str]]:
    """Return where the run came from, as label and text."""
    said = run.provenance
    git = said.get("git") or {}
    dirty = ", with changes that are not committed" if git.get("dirty") else ""
    rows = [
        ("run", run.contents.run_id),
        ("keystone_mpi", said.get("keystone_mpi", "")),
        ("Python", said.get("python", "")),
        ("MPI", said.get("mpi", "")),
        ("solver", ", ".join(solver_versions(run))),
        (
            "packages",
            ", ".join(f"{name} {version}" for name, version in (said.get("packages") or {}).items()),
        ),
        ("command line", shlex.join(said.get("command_line") or [])),
        ("folder", said.get("folder", "")),
        ("git commit", f"{git['commit']}{dirty}" if git.get("commit") else ""),
        ("platform", said.get("platform", "")),
        ("hosts", ", ".join(dict.fromkeys(run.hosts)) or ", ".join(said.get("hosts") or [])),
        ("modules", ", ".join(said.get("modules") or [])),
    ]
    rows += [(name, str(value)) for name, value in (said.get("slurm") or {}).items()]
    rows += [(name, str(value)) for name, value in (said.get("environment") or {}).items()]
    return [(label, str(text)) for label, text in rows if text]


def solver_versions(run: Run) -> list[str]:
    """Return the versions that the solver told: results called ``solver_version`` or ``version``."""
    for name in ("solver_version", "version"):
        if name in run.contents.scalars:
            values = run.values(name)
            return sorted({str(value) for value in values.tolist() if str(value) not in ("", "nan")})[:10]
    return []


def workers_table(statistics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the workers that did anything, the least used first, at most `WORKER_ROWS`."""
    rows = [worker for worker in statistics["workers"] if worker["present_s"] > 0 or worker["attempts"]]
    return sorted(rows, key=lambda worker: worker["utilisation"])[:WORKER_ROWS]


def _packed(values: NDArray[Any], dtype: Any) -> str:
    """Encode an array for the page: little-endian bytes in base64."""
    info = np.dtype(dtype).newbyteorder("<")
    if info.kind == "u":
        values = np.clip(values, 0, np.iinfo(info).max)
    return base64.b64encode(np.ascontiguousarray(values.astype(info)).tobytes()).decode("ascii")
