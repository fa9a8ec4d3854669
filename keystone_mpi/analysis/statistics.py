"""How well a run used its slots: pure arithmetic on plain arrays.

Rule: no file, no clock, no pandas. The Python API and the analysis of a file
call the same function, so both say the same numbers. NaN and 0 stand for what
is not known.

    speedup      total_duration / elapsed_s      elapsed_s: first start to last end, per start of the run
    efficiency   speedup / usable_slots          usable_slots: how many tasks could run side by side
    overhead     a slot's gap between the end of one attempt and the start of the next, while work was left
    tail         from the moment the first slot found nothing more to do, to the end
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.core.model import UNSUCCESSFUL_STATES, TaskState

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DENOMINATORS = {
    "speedup": "elapsed_s: first start to last end, summed over the starts of the run",
    "efficiency": "usable_slots: slots / cores per task, at most the number of tasks",
}


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts that ended, one element each."""

    task: Ints
    worker: Ints
    """Row of the worker in `Workers`; -1: unknown."""
    started: Floats
    finished: Floats
    duration_s: Floats
    cores: Ints
    """0: not pinned, counts as one."""
    epoch: Ints
    """Start of the run that made it."""

    def of(self, chosen: NDArray[Any]) -> Attempts:
        """Return some of them."""
        return Attempts(
            self.task[chosen], self.worker[chosen], self.started[chosen], self.finished[chosen],
            self.duration_s[chosen], self.cores[chosen], self.epoch[chosen],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers, one element each."""

    slots: Ints
    epoch: Ints
    joined: Floats
    left: Floats
    """NaN: has not left."""
    rank: Ints
    host: list[str] = field(default_factory=list)


def compute_statistics(
    states: NDArray[Any],
    attempts: Attempts,
    workers: Workers,
    *,
    submitted: Floats | None = None,
    first_started: Floats | None = None,
) -> dict[str, Any]:
    """Compute all numbers of a run.

    Parameters
    ----------
    states : array of int
        `TaskState` of every task.
    attempts : Attempts
    workers : Workers
    submitted, first_started : array of float, optional
        Per task, seconds since the epoch; for the queue wait.

    Returns
    -------
    dict
        ``total_tasks, completed, failed, running, pending, total_duration,
        avg_duration, max_duration, speedup, efficiency`` as
        ``get_parallel_execution_stats``, their denominators ``elapsed_s`` and
        ``usable_slots`` (said in ``denominators``), and ``slots, utilisation,
        retry_duration, dispatch_overhead_s, queue_wait_s, tail_s,
        tail_idle_slot_s, workers``.
    """
    known = np.isfinite(attempts.started) & np.isfinite(attempts.finished) & np.isfinite(attempts.duration_s)
    ran = attempts.of(known)
    last = _last_of_each_task(ran.task)
    durations = ran.duration_s[last]
    total = float(durations.sum())
    spans = _spans(ran, workers)
    elapsed_s = float(sum(span.length_s for span in spans))
    slots = _weighted([span.slots for span in spans], [span.length_s for span in spans])
    cores = np.maximum(ran.cores, 1)
    busy_s = ran.duration_s * cores
    cores_per_task = float(busy_s.sum() / ran.duration_s.sum()) if ran.duration_s.sum() > 0 else 1.0
    usable = min(slots / max(cores_per_task, 1.0), float(len(states))) if slots else 0.0
    speedup = total / elapsed_s if elapsed_s > 0 else 0.0
    capacity_s = sum(span.length_s * span.slots for span in spans)
    tail_s, tail_idle_slot_s = _tail(ran, spans)
    counts = np.bincount(np.asarray(states, np.int64), minlength=len(TaskState))
    return {
        "total_tasks": len(states),
        "completed": int(counts[TaskState.SUCCESS]),
        "failed": int(sum(counts[state] for state in UNSUCCESSFUL_STATES)),
        "running": int(counts[TaskState.RUNNING]),
        "pending": int(counts[TaskState.PENDING]),
        "total_duration": total,
        "avg_duration": float(durations.mean()) if len(durations) else 0.0,
        "min_duration": float(durations.min()) if len(durations) else 0.0,
        "median_duration": float(np.median(durations)) if len(durations) else 0.0,
        "max_duration": float(durations.max()) if len(durations) else 0.0,
        "speedup": speedup,
        "efficiency": speedup / usable if usable else 0.0,
        "elapsed_s": elapsed_s,
        "usable_slots": usable,
        "denominators": dict(DENOMINATORS),
        "slots": slots,
        "starts": len(spans),
        "attempts": len(attempts.task),
        "retry_duration": float(ran.duration_s.sum()) - total,
        "utilisation": float(busy_s.sum() / capacity_s) if capacity_s > 0 else 0.0,
        "dispatch_overhead_s": _summary(dispatch_gaps(ran, workers)),
        "queue_wait_s": _summary(_waits(submitted, first_started)),
        "tail_s": tail_s,
        "tail_idle_slot_s": tail_idle_slot_s,
        "workers": _per_worker(ran, busy_s, workers, spans),
    }


@dataclass(frozen=True, slots=True)
class _Span:
    """First start to last end within one start of the run."""

    epoch: int
    first: float
    last: float
    slots: int

    @property
    def length_s(self) -> float:
        return self.last - self.first


def _spans(ran: Attempts, workers: Workers) -> list[_Span]:
    spans = []
    for epoch in np.unique(ran.epoch).tolist():
        here = ran.epoch == epoch
        slots = int(workers.slots[workers.epoch == epoch].sum())
        spans.append(_Span(epoch, float(ran.started[here].min()), float(ran.finished[here].max()), slots))
    return spans


def _last_of_each_task(task: Ints) -> Ints:
    """Return the position of the last attempt of every task that has one."""
    if not len(task):
        return np.empty(0, np.int64)
    reversed_task = task[::-1]
    _, positions = np.unique(reversed_task, return_index=True)
    return len(task) - 1 - positions


def concurrency(started: Floats, finished: Floats) -> int:
    """Return how many attempts ran at the same time, at most.

    Touching ones do not overlap.
    """
    if not len(started):
        return 0
    times = np.concatenate([finished, started])
    steps = np.concatenate([np.full(len(finished), -1), np.full(len(started), 1)])
    order = np.lexsort((steps, times))
    return max(1, int(np.cumsum(steps[order]).max()))


def dispatch_gaps(ran: Attempts, workers: Workers) -> Floats:
    """Return the gaps in which a slot waited for its next attempt.

    On a worker that runs k attempts side by side, the start number i + k
    follows the end number i: any pairing of ends with later starts has the
    same sum.
    """
    if not len(ran.worker):
        return np.empty(0)
    gaps = []
    order = np.argsort(ran.worker, kind="stable")
    sorted_worker = ran.worker[order]
    bounds = np.flatnonzero(np.r_[True, sorted_worker[1:] != sorted_worker[:-1]])
    for first, stop in zip(bounds, [*bounds[1:], len(order)], strict=True):
        here = order[first:stop]
        worker = int(sorted_worker[first])
        if not 0 <= worker < len(workers.slots):
            continue
        started, finished = np.sort(ran.started[here]), np.sort(ran.finished[here])
        side_by_side = min(concurrency(started, finished), max(1, int(workers.slots[worker])))
        if len(here) > side_by_side:
            gaps.append(np.maximum(started[side_by_side:] - finished[: len(here) - side_by_side], 0.0))
    return np.concatenate(gaps) if gaps else np.empty(0)


def _tail(ran: Attempts, spans: list[_Span]) -> tuple[float, float]:
    """Return the length of the last span's tail and the slot time that idled in it."""
    if not spans:
        return 0.0, 0.0
    span = spans[-1]
    here = ran.of(ran.epoch == span.epoch)
    side_by_side = min(concurrency(here.started, here.finished), len(here.finished))
    ends = np.sort(here.finished)[len(here.finished) - side_by_side :]
    return float(span.last - ends[0]), float((span.last - ends).sum())


def _waits(submitted: Floats | None, first_started: Floats | None) -> Floats:
    if submitted is None or first_started is None:
        return np.empty(0)
    waits = first_started - submitted
    return np.maximum(waits[np.isfinite(waits)], 0.0)


def _summary(values: Floats) -> dict[str, float]:
    if not len(values):
        return {"mean": 0.0, "median": 0.0, "max": 0.0}
    return {"mean": float(values.mean()), "median": float(np.median(values)), "max": float(values.max())}


def _weighted(values: list[int], weights: list[float]) -> float:
    total = sum(weights)
    if total <= 0:
        return float(values[-1]) if values else 0.0
    return float(sum(value * weight for value, weight in zip(values, weights, strict=True)) / total)


def _per_worker(ran: Attempts, busy_s: Floats, workers: Workers, spans: list[_Span]) -> list[dict[str, Any]]:
    """Return what each worker did: utilisation is busy core time over slots times its presence."""
    count = len(workers.slots)
    valid = (ran.worker >= 0) & (ran.worker < count)
    busy = np.bincount(ran.worker[valid], weights=busy_s[valid], minlength=count)
    number = np.bincount(ran.worker[valid], minlength=count)
    by_epoch = {span.epoch: span for span in spans}
    found = []
    for row in range(count):
        span = by_epoch.get(int(workers.epoch[row]))
        present_s = 0.0
        if span is not None:
            left = float(workers.left[row])
            until = span.last if left != left else min(left, span.last)
            present_s = max(0.0, until - max(float(workers.joined[row]), span.first))
        capacity_s = present_s * float(workers.slots[row])
        found.append(
            {
                "worker": row,
                "start": int(workers.epoch[row]),
                "rank": int(workers.rank[row]),
                "host": workers.host[row] if row < len(workers.host) else "",
                "slots": int(workers.slots[row]),
                "attempts": int(number[row]),
                "busy_s": float(busy[row]),
                "present_s": present_s,
                "utilisation": float(min(1.0, busy[row] / capacity_s)) if capacity_s > 0 else 0.0,
            }
        )
    return found


def lanes(started: Floats, finished: Floats) -> Ints:
    """Lay attempts of one worker out in lanes, so that none overlap.

    Each goes to the lowest lane that is free; a new one is opened when all are taken.
    """
    import heapq

    order = np.argsort(started, kind="stable")
    lane = np.zeros(len(started), np.int64)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    opened = 0
    tolerance_s = 1e-4
    for position in order.tolist():
        start = started[position]
        while busy and busy[0][0] <= start + tolerance_s:
            _, number = heapq.heappop(busy)
            heapq.heappush(free, number)
        if free:
            number = heapq.heappop(free)
        else:
            number, opened = opened, opened + 1
        lane[position] = number
        heapq.heappush(busy, (float(finished[position]), number))
    return lane


def busy_over_time(started: Floats, finished: Floats, first: float, last: float, bins: int) -> Floats:
    """Return the mean number of attempts that ran in each of `bins` equal stretches of time."""
    width = (last - first) / bins
    if width <= 0:
        return np.zeros(bins)
    edges = np.linspace(first, last, bins + 1)

    def area(times: Floats) -> Floats:
        """Integral, from the first edge to each edge, of how many of `times` lie behind."""
        ordered = np.sort(np.clip(times, first, last))
        sums = np.concatenate([[0.0], np.cumsum(ordered)])
        behind = np.searchsorted(ordered, edges, side="right")
        integral: Floats = edges * behind - sums[behind]
        return integral

    busy: Floats = np.maximum(np.diff(area(started) - area(finished)) / width, 0.0)
    return busy
