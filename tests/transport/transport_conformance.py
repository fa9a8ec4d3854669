"""What every transport promises, written once and inherited by each one's test.

A subclass provides `master` and one connected worker end. Both ends may live
in different processes; then the worker side runs `serve_echo`.
"""

from __future__ import annotations

import os
import threading
import time

import pytest

from keystone_mpi.core.model import AttemptKey, AttemptReport, Outcome
from keystone_mpi.transport.channel import MasterEnd, Received, WorkerEnd
from keystone_mpi.transport.messages import (
    Assign,
    AttemptsFinished,
    Farewell,
    Goodbye,
    Recall,
    TaskOrder,
    TasksReturned,
    WorkerFailed,
)

TIME_LIMIT_S = 30.0


def serve_echo(end: WorkerEnd) -> None:
    """Answer messages until `Farewell`; the worker's half of the suite."""
    while True:
        for message in end.receive(1.0):
            match message:
                case Assign(orders=orders):
                    end.send(
                        AttemptsFinished(
                            [
                                AttemptReport(
                                    order.index,
                                    order.attempt,
                                    Outcome.SUCCESS,
                                    scalars=order.params,
                                )
                                for order in orders
                            ]
                        )
                    )
                case Recall(attempts=attempts):
                    end.send(TasksReturned(attempts))
                case Farewell():
                    end.send(Goodbye())
                    end.close()
                    return
                case _:
                    end.send(WorkerFailed(f"unexpected {message!r}"))


def collect(master: MasterEnd, count: int) -> list[Received]:
    """Receive until `count` messages have come."""
    received: list[Received] = []
    deadline = time.monotonic() + TIME_LIMIT_S
    while len(received) < count:
        assert time.monotonic() < deadline, f"{len(received)} of {count} messages came"
        received += master.receive(0.5)
    return received


class TransportConformance:
    """Inherited by the test of each transport."""

    @pytest.fixture
    def master(self) -> MasterEnd:
        raise NotImplementedError

    def order(self, index: int, **params: object) -> TaskOrder:
        return TaskOrder(index=index, attempt=1, params=params)

    def test_a_message_returns_whole(self, master: MasterEnd) -> None:
        params = {"x": 0.1, "n": 2**53 + 1, "flag": True, "text": "naïve \0 \U0001f600", "nothing": None}
        for worker in master.workers:
            master.send(worker, Assign([self.order(7, **params)]))
        received = collect(master, len(master.workers))
        assert sorted(item.worker for item in received) == sorted(master.workers)
        for item in received:
            assert isinstance(item.message, AttemptsFinished)
            assert item.message.reports[0].scalars == params
            assert item.message.reports[0].duration_s != item.message.reports[0].duration_s  # NaN travels

    def test_order_is_kept(self, master: MasterEnd) -> None:
        worker = master.workers[-1]
        for index in range(500):
            master.send(worker, Assign([self.order(index)]))
        indices = [
            report.index
            for item in collect(master, 500)
            if isinstance(item.message, AttemptsFinished)
            for report in item.message.reports
        ]
        assert indices == list(range(500))

    @pytest.mark.parametrize("size_bytes", [0, 1, 60_000, 70_000, 5_000_000])
    def test_any_size(self, master: MasterEnd, size_bytes: int) -> None:
        worker = master.workers[-1]
        master.send(worker, Assign([self.order(1, text="x" * size_bytes)]))
        (item,) = collect(master, 1)
        assert isinstance(item.message, AttemptsFinished)
        assert item.message.reports[0].scalars["text"] == "x" * size_bytes

    def test_sending_never_blocks(self, master: MasterEnd) -> None:
        worker = master.workers[-1]
        for index in range(20):
            master.send(worker, Assign([self.order(index, text="x" * 1_000_000)]))
        assert len(collect(master, 20)) == 20

    def test_keys_arrive_as_keys(self, master: MasterEnd) -> None:
        worker = master.workers[-1]
        master.send(worker, Recall([AttemptKey(3, 1), AttemptKey(4, 2)]))
        (item,) = collect(master, 1)
        assert item.message == TasksReturned([AttemptKey(3, 1), AttemptKey(4, 2)])
        assert isinstance(item.message, TasksReturned)
        assert item.message.attempts[0].task == 3

    def test_waiting_ends_at_its_time(self, master: MasterEnd) -> None:
        started = time.monotonic()
        assert master.receive(0.2) == []
        assert 0.19 <= time.monotonic() - started < TIME_LIMIT_S

    def test_wake_ends_a_wait(self, master: MasterEnd) -> None:
        timer = threading.Timer(0.2, master.wake)
        timer.start()
        started = time.monotonic()
        assert master.receive(TIME_LIMIT_S) == []
        assert time.monotonic() - started < TIME_LIMIT_S / 2
        timer.join()

    def test_waiting_costs_nothing(self, master: MasterEnd) -> None:
        before = os.times()
        master.receive(2.0)
        after = os.times()
        busy_s = (after.user - before.user) + (after.system - before.system)
        assert busy_s < 0.2, "a waiting master spins"
