"""The scheduler alone: virtual clock, imaginary workers, no process and no message.

Rule: the cost of a task must not grow with the length of the queue nor with
the number of workers; so it is measured over both.
"""

from __future__ import annotations

import time

import msgspec

from keystone_mpi.core.model import Assignment
from keystone_mpi.core.simulate import RangeSource, simulate


class CoreTiming(msgspec.Struct, frozen=True):
    """One simulated run."""

    tasks: int
    workers: int
    tasks_per_s: float
    """Through the scheduler and the simulation around it, by a real clock."""


def measure_core(*, quick: bool) -> list[CoreTiming]:
    """Simulate runs of growing length and width; the last is the one that counts."""
    shapes = [(10_000, 100), (100_000, 100), (100_000, 1_000), (100_000, 10_000)]
    if not quick:
        shapes.append((1_000_000, 10_000))
    timings = []
    for tasks, workers in shapes:
        began = time.perf_counter()
        # The master looks for news every 10 ms of virtual time, as a busy one does.
        simulate(RangeSource(tasks), workers, _duration_s, tick_s=0.01)
        timings.append(CoreTiming(tasks, workers, tasks / (time.perf_counter() - began)))
    return timings


def _duration_s(attempt: Assignment) -> float:
    """Return 1 to 2 s, spread evenly and the same in every run."""
    return 1.0 + (attempt.index * 2654435761 % 1000) / 1000.0
