"""The rate is that of the recent past, and the end is told from durations seen."""

from __future__ import annotations

import math

import pytest

from keystone_mpi.engine.pace import Pace


def test_nothing_is_known_at_first() -> None:
    pace = Pace(0.0)
    assert pace.rate_per_s(0.0) == 0.0
    assert math.isnan(pace.eta_s(5.0, remaining=10, slots=2))
    assert pace.eta_s(5.0, remaining=0, slots=2) == 0.0


def test_the_rate_forgets_a_slow_start() -> None:
    pace = Pace(0.0)
    now = 0.0
    for second in range(600):
        now = float(second)
        if second >= 300:
            for _ in range(10):
                pace.add(0.1)
        pace.sample(now)
    assert pace.rate_per_s(now) == pytest.approx(10.0, rel=0.1)


def test_the_end_is_no_earlier_than_the_slots_allow() -> None:
    pace = Pace(0.0)
    for _ in range(4):
        pace.add(60.0)
    assert pace.eta_s(60.0, remaining=8, slots=4) >= 120.0


def test_unknown_durations_count_as_done_only() -> None:
    pace = Pace(0.0)
    pace.add(float("nan"))
    assert pace.done == 1
    assert pace.eta_s(1.0, remaining=1, slots=1) == pytest.approx(1.0)
