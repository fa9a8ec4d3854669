"""Whole runs on a virtual clock: they end well, and the cost of a task does not grow."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import keystone_mpi.core.scheduler
from keystone_mpi.core.events import WorkerJoined
from keystone_mpi.core.model import Assignment, TaskRequest
from keystone_mpi.core.simulate import RangeSource, SimulationResult, simulate

CORE_PATH = keystone_mpi.core.scheduler.__file__.removesuffix("scheduler.py")
GIB = 1 << 30


def spread_s(scale_s: float) -> Callable[[Assignment], float]:
    """Durations from one to two times `scale_s`, the same for the same task."""
    return lambda attempt: scale_s * (1.0 + random.Random(attempt.index).random())


def lines_executed(run: Callable[[], SimulationResult]) -> int:
    """Count the lines of the core that a run executes: a cost that no other load disturbs."""
    count = 0

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
        return on_line

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith(CORE_PATH) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def lines_per_task(tasks: int, workers: int, make: Callable[[int], TaskRequest], scale_s: float) -> float:
    joined = [WorkerJoined(number, 8, 16 * GIB) for number in range(workers)]
    # Start-up and end are taken out by the difference of two sizes.
    few = lines_executed(lambda: simulate(RangeSource(tasks, make), joined, spread_s(scale_s), lookahead=256))
    many = lines_executed(
        lambda: simulate(RangeSource(2 * tasks, make), joined, spread_s(scale_s), lookahead=256)
    )
    return (many - few) / tasks


def one_core(index: int) -> TaskRequest:
    return TaskRequest(index)


def mixed(index: int) -> TaskRequest:
    return TaskRequest(index, cores=(1, 1, 1, 4, 8)[index % 5], memory_bytes=(0, 0, GIB, 4 * GIB)[index % 4])


@pytest.mark.parametrize("make", [one_core, mixed])
@pytest.mark.parametrize("scale_s", [0.002, 10.0])
def test_the_cost_of_a_task_does_not_grow_with_the_queue(
    make: Callable[[int], TaskRequest], scale_s: float
) -> None:
    short = lines_per_task(250, 5, make, scale_s)
    long = lines_per_task(2500, 5, make, scale_s)
    assert long < 1.3 * short


@pytest.mark.parametrize(("make", "factor"), [(one_core, 1.3), (mixed, 2.0)])
@pytest.mark.parametrize("scale_s", [0.002, 10.0])
def test_the_cost_of_a_task_does_not_grow_with_the_workers(
    make: Callable[[int], TaskRequest], factor: float, scale_s: float
) -> None:
    few = lines_per_task(1000, 3, make, scale_s)
    many = lines_per_task(1000, 30, make, scale_s)
    assert many < factor * few


@pytest.mark.parametrize("make", [one_core, mixed])
@pytest.mark.parametrize("scale_s", [0.001, 0.1, 10.0])
def test_every_task_runs_and_the_cores_are_kept_busy(
    make: Callable[[int], TaskRequest], scale_s: float
) -> None:
    joined = [WorkerJoined(number, 8, 32 * GIB) for number in range(4)]
    result = simulate(RangeSource(3000, make), joined, spread_s(scale_s), lookahead=512)
    assert (result.tasks, result.reason) == (3000, "complete")
    assert result.utilisation > 0.95


def test_wide_tasks_among_narrow_ones_start_about_in_order() -> None:
    started: list[int] = []

    def duration_s(attempt: Assignment) -> float:
        started.append(attempt.index)
        return 10.0

    make = lambda index: TaskRequest(index, cores=4 if index % 10 == 0 else 1)  # noqa: E731
    simulate(RangeSource(2000, make), [WorkerJoined(n, 4) for n in range(8)], duration_s, lookahead=512)
    assert len(started) == 2000
    # Each wide task starts not much later than its place in the order.
    places = {index: place for place, index in enumerate(started)}
    assert max(places[index] - index for index in range(0, 2000, 10)) < 600


def test_short_tasks_travel_many_in_a_message() -> None:
    result = simulate(RangeSource(20_000), 4, spread_s(0.001), slots=2)
    assert result.tasks == 20_000
    assert result.assigns < 20_000 / 20


def test_the_longest_backlog_helps_out_at_the_end() -> None:
    # One worker's first task in its backlog takes very long: the others take over the rest.
    slow = {40}
    result = simulate(RangeSource(400), 4, lambda attempt: 30.0 if attempt.index in slow else 0.01, slots=1)
    assert result.tasks == 400
    assert result.makespan_s < 31.0


def test_a_tick_stands_for_a_busy_master() -> None:
    exact = simulate(RangeSource(2000), 50, spread_s(1.0))
    ticked = simulate(RangeSource(2000), 50, spread_s(1.0), tick_s=0.1)
    assert ticked.tasks == exact.tasks == 2000
    assert ticked.passes < exact.passes / 2
    assert exact.makespan_s < ticked.makespan_s < 1.3 * exact.makespan_s


def test_a_simulation_is_repeatable() -> None:
    first, second = (simulate(RangeSource(500, mixed), 5, spread_s(0.05), slots=8) for _ in range(2))
    assert first == second
