"""The numbers of a run, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone_mpi.analysis.statistics import (
    Attempts,
    Workers,
    busy_over_time,
    compute_statistics,
    concurrency,
    lanes,
)
from keystone_mpi.core.model import TaskState

S, F, P, R = TaskState.SUCCESS, TaskState.FAILURE, TaskState.PENDING, TaskState.RUNNING


def attempts(rows: list[tuple[int, int, float, float]], **columns: Any) -> Attempts:
    """Attempts from (task, worker, started, finished)."""
    task, worker, started, finished = (np.array(column) for column in zip(*rows, strict=True))
    count = len(rows)
    return Attempts(
        task=task.astype(np.int64),
        worker=worker.astype(np.int64),
        started=started.astype(float),
        finished=finished.astype(float),
        duration_s=(finished - started).astype(float),
        cores=np.array(columns.get("cores", [0] * count), np.int64),
        epoch=np.array(columns.get("epoch", [1] * count), np.int64),
    )


def workers(*slots: int, epoch: tuple[int, ...] = ()) -> Workers:
    count = len(slots)
    return Workers(
        slots=np.array(slots, np.int64),
        epoch=np.array(epoch or (1,) * count, np.int64),
        joined=np.zeros(count),
        left=np.full(count, np.nan),
        rank=np.arange(1, count + 1),
        host=[f"n{number}" for number in range(count)],
    )


def test_two_workers_by_hand() -> None:
    # n0: 0-4, 5-9;  n1: 0-2, 2.5-4.5
    ran = attempts([(0, 0, 0, 4), (1, 0, 5, 9), (2, 1, 0, 2), (3, 1, 2.5, 4.5)])
    states = np.array([S, S, S, F, P, R])
    submitted = np.zeros(6)
    first = np.array([0, 5, 0, 2.5, np.nan, np.nan])
    found = compute_statistics(states, ran, workers(1, 1), submitted=submitted, first_started=first)
    assert found["total_tasks"] == 6
    assert (found["completed"], found["failed"], found["running"], found["pending"]) == (3, 1, 1, 1)
    assert found["total_duration"] == 12
    assert (found["avg_duration"], found["min_duration"], found["max_duration"]) == (3, 2, 4)
    assert found["elapsed_s"] == 9
    assert found["speedup"] == pytest.approx(12 / 9)
    assert found["usable_slots"] == 2
    assert found["efficiency"] == pytest.approx(12 / 18)
    assert set(found["denominators"]) == {"speedup", "efficiency"}
    assert found["utilisation"] == pytest.approx(12 / 18)
    assert found["dispatch_overhead_s"] == {"mean": 0.75, "median": 0.75, "max": 1.0}
    assert found["queue_wait_s"] == {"mean": 1.875, "median": 1.25, "max": 5.0}
    assert found["tail_s"] == 4.5  # n1 is idle from 4.5 to 9
    assert found["tail_idle_slot_s"] == 4.5
    assert [worker["utilisation"] for worker in found["workers"]] == pytest.approx([8 / 9, 4 / 9])
    assert [worker["attempts"] for worker in found["workers"]] == [2, 2]


def test_only_the_last_attempt_of_a_task_is_its_time() -> None:
    ran = attempts([(0, 0, 0, 3), (0, 0, 3, 5), (1, 0, 5, 6)])
    found = compute_statistics(np.array([S, S]), ran, workers(1))
    assert found["total_duration"] == 3
    assert found["retry_duration"] == 3
    assert found["speedup"] == pytest.approx(0.5)
    assert found["utilisation"] == 1.0


def test_usable_slots_are_no_more_than_tasks_and_count_cores() -> None:
    ran = attempts([(0, 0, 0, 10), (1, 0, 0, 10)])
    found = compute_statistics(np.array([S, S]), ran, workers(8))
    assert (found["usable_slots"], found["efficiency"]) == (2, 1.0)
    wide = attempts([(0, 0, 0, 10), (1, 0, 0, 10)], cores=[4, 4])
    found = compute_statistics(np.array([S, S, P, P]), wide, workers(8))
    assert (found["usable_slots"], found["efficiency"], found["utilisation"]) == (2, 1.0, 1.0)


def test_the_night_between_two_starts_does_not_count() -> None:
    ran = attempts([(0, 0, 0, 10), (1, 1, 86400, 86410)], epoch=[1, 2])
    found = compute_statistics(np.array([S, S]), ran, workers(1, 1, epoch=(1, 2)))
    assert (found["elapsed_s"], found["slots"], found["speedup"], found["starts"]) == (20, 1, 1, 2)


def test_nothing_ran_yet() -> None:
    none = np.empty(0)
    empty = Attempts(none.astype(int), none.astype(int), none, none, none, none.astype(int), none.astype(int))
    found = compute_statistics(np.array([P, P]), empty, workers())
    assert (found["pending"], found["speedup"], found["efficiency"], found["elapsed_s"]) == (2, 0, 0, 0)


def test_attempts_of_unknown_time_or_worker_are_left_out_of_the_sums() -> None:
    ran = attempts([(0, -1, 0, 2), (1, 0, np.nan, np.nan), (2, 0, 0, 4)])
    found = compute_statistics(np.array([S, P, S]), ran, workers(2))
    assert found["total_duration"] == 6
    assert found["workers"][0]["attempts"] == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 20)), min_size=1, max_size=40),
    st.integers(1, 30),
)
def test_lanes_never_overlap_and_density_keeps_the_area(spans: list[tuple[float, float]], bins: int) -> None:
    started = np.array([start for start, _ in spans])
    finished = started + np.array([took for _, took in spans])
    lane = lanes(started, finished)
    for number in np.unique(lane):
        order = np.argsort(started[lane == number], kind="stable")
        ends, starts = finished[lane == number][order], started[lane == number][order]
        assert (starts[1:] >= ends[:-1] - 2e-4).all()
    assert lane.max() + 1 <= concurrency(started, finished) + 0
    first, last = started.min(), finished.max()
    busy = busy_over_time(started, finished, first, last, bins)
    assert busy.sum() * (last - first) / bins == pytest.approx((finished - started).sum())
    assert busy.max() <= len(spans) + 1e-9
