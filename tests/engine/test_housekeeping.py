"""The lease and the request to drain, on a file system that stalls, fails, or was taken over."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from keystone_mpi.core.errors import ClusterError, LeaseHeldError
from keystone_mpi.engine.housekeeping import RENEWAL_S, SLOW_S, Housekeeping
from keystone_mpi.engine.troubles import Troubles


class Disk:
    """Stands for the lease and for the folder that it lies in."""

    path = Path("run.h5.lease")

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.error: Exception | None = None
        self.renewed: list[dict[str, Any]] = []
        self.looks = 0

    def renew(self, facts: dict[str, Any]) -> None:
        self.answers.wait(30)
        if self.error is not None:
            raise self.error
        self.renewed.append(facts)

    def look(self) -> None:
        self.looks += 1


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def house(disk: Disk, told: list[str]) -> Housekeeping:
    return Housekeeping(disk, disk.look, Troubles(told.append))  # type: ignore[arg-type] # a stand-in


def turn(house: Housekeeping, now: float) -> None:
    """Take a turn and let its thread end."""
    house.turn(now, lambda: {"at": now})
    assert house._thread is not None
    house._thread.join(30)


def test_every_turn_looks_and_every_fifth_second_renews(house: Housekeeping, disk: Disk) -> None:
    for now in range(11):
        turn(house, float(now))
    assert disk.looks == 11
    assert disk.renewed == [{"at": 0.0}, {"at": RENEWAL_S}, {"at": 2 * RENEWAL_S}]


def test_a_stall_holds_nobody_up_and_is_told_once(house: Housekeeping, disk: Disk, told: list[str]) -> None:
    disk.answers.clear()
    for now in range(30):
        house.turn(float(now), dict)
    assert disk.looks == 1, "one turn at a time"
    assert told == [
        "lease run.h5.lease: its file system does not answer (nothing is lost; trying again every second)"
    ]
    disk.answers.set()
    assert house._thread is not None
    house._thread.join(30)
    house.turn(SLOW_S + 30, dict)
    assert told[1:] == ["the lease can be written again"]


def test_what_fails_is_told_and_tried_again(house: Housekeeping, disk: Disk, told: list[str]) -> None:
    disk.error = ClusterError("lease run.h5.lease cannot be renewed: No space left on device")
    for now in (0.0, 5.0, 10.0):
        turn(house, now)
    assert len(told) == 1
    disk.error = None
    turn(house, 15.0)
    turn(house, 20.0)
    assert told[1:] == ["the lease can be written again"]


@pytest.mark.parametrize("error", [LeaseHeldError("taken over"), ZeroDivisionError("ours")])
def test_a_lease_that_is_anothers_ends_the_run(house: Housekeeping, disk: Disk, error: Exception) -> None:
    disk.error = error
    turn(house, 0.0)
    with pytest.raises(type(error)):
        house.turn(1.0, dict)
