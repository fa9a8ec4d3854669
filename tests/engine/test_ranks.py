"""Who is waited for at the end of a run, and how MPI ends then."""

from __future__ import annotations

import time
from typing import Any

import pytest

from keystone_mpi.engine.ranks import Ranks
from keystone_mpi.execution.environment import Promised
from keystone_mpi.transport.channel import Received
from keystone_mpi.transport.messages import Beat, Farewell, Goodbye


class Transport:
    """Two workers; what they say is put into `inbox`."""

    workers = (0, 1)

    def __init__(self) -> None:
        self.inbox: list[Received] = []
        self.sent: list[tuple[int, Any]] = []

    def send(self, worker: int, message: Any) -> None:
        self.sent.append((worker, message))

    def receive(self, timeout_s: float) -> list[Received]:
        received, self.inbox = self.inbox, []
        return received

    def wake(self) -> None:
        """Nobody waits in `receive`."""

    def close(self) -> None:
        """Nothing is open."""


class Ends:
    """Ranks and how MPI ended."""

    def __init__(self) -> None:
        self.how: list[str] = []
        self.transport = Transport()
        self.ranks = Ranks(
            Promised(launcher="mpich", rank=0, size=3),
            self.transport,  # type: ignore[arg-type] # what is used of it
            lambda: self.how.append("finalize"),
            lambda code: self.how.append(f"abort {code}"),
            None,
        )

    def said(self, worker: int, message: Any) -> None:
        self.transport.inbox.append(Received(worker, message))
        self.ranks.stay(0.0, print)

    def farewells(self, worker: int) -> int:
        return sum(1 for to, message in self.transport.sent if to == worker and isinstance(message, Farewell))


@pytest.fixture
def ends() -> Ends:
    return Ends()


def test_in_order(ends: Ends) -> None:
    for worker in (0, 1):
        ends.said(worker, Goodbye(0))
    ends.ranks.farewell(1.0, print)
    assert ends.ranks.dismiss()
    assert ends.how == ["finalize"]


def test_mpi_may_end_while_something_else_is_waited_for(ends: Ends) -> None:
    ends.ranks.begin_farewell()
    assert ends.farewells(0) == ends.farewells(1) == 1
    assert not ends.ranks.everybody_left
    for worker in (0, 1):
        ends.said(worker, Goodbye(0))
    assert ends.ranks.everybody_left
    assert ends.ranks.dismiss()
    ends.ranks.wake()
    began = time.monotonic()
    ends.ranks.stay(30.0, print)
    assert time.monotonic() - began < 10.0, "woken before it waited: it need not wait"
    ends.transport.inbox.append(Received(0, Beat()))
    ends.ranks.stay(0.0, print)
    assert ends.transport.inbox, "nothing is received when MPI is gone"
    assert ends.ranks.dismiss()
    ends.ranks.close()
    assert ends.how == ["finalize"]


def test_a_lost_worker_is_not_waited_for(ends: Ends) -> None:
    ends.ranks.lost(0)
    ends.said(1, Goodbye(0))
    ends.ranks.farewell(1.0, print)
    assert ends.ranks.waiting() == [1]
    assert not ends.ranks.dismiss()
    assert ends.how == ["abort 75"]


def test_a_lost_worker_that_wakes_up_is_sent_home_once(ends: Ends) -> None:
    ends.ranks.lost(0)
    ends.ranks.left(0)  # its work is forgotten
    ends.said(0, Beat())
    ends.said(0, Beat())
    assert ends.farewells(0) == 1
    assert ends.ranks.waiting() == [0, 1]
    for worker in (0, 1):
        ends.said(worker, Goodbye(0))
    assert ends.ranks.dismiss()
    assert ends.how == ["finalize"]


def test_one_that_had_said_goodbye_before_says_it_no_second_time(ends: Ends) -> None:
    for worker in (0, 1):
        ends.said(worker, Goodbye(0))
    ends.ranks.lost(0)
    ends.said(0, Beat())
    assert ends.farewells(0) == 0
    assert ends.ranks.dismiss()
    assert ends.how == ["finalize"]
