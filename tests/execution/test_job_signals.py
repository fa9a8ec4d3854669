"""A signal to all processes of a job, as Slurm sends it: what ends after it counts for nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from execution_support import Bench, slot_pids, wait_until

from keystone_mpi.core.model import Outcome
from keystone_mpi.execution.job_signals import START_NOTHING_S, JobSignals, patience_of
from keystone_mpi.execution.launcher_client import AttemptStarted, OrdersReturned
from keystone_mpi.execution.processes import descendants
from keystone_mpi.execution.slot_messages import SlotOrder

SOME_TIME_S = 0.5
"""An attempt of this age was there when the list of whom to signal was made."""


@pytest.fixture
def running(bench: Bench, tmp_path: Path) -> Callable[[str], tuple[SlotOrder, int]]:
    """Start a shell script in slot 0; gives its order and the slot process."""

    def start(script: str) -> tuple[SlotOrder, int]:
        ready = tmp_path / "ready"
        order = bench.shell(script.replace("READY", f"touch {ready}"))
        bench.client.submit(0, [order])
        bench.wait_for_kind(AttemptStarted)
        wait_until(ready.exists)
        (slot,) = slot_pids(bench.client)
        return order, slot

    return start


def signal_all(slot: int, number: signal.Signals, *, pause_s: float = 0.0) -> None:
    """Do as Slurm does: children before parents, the slot process last."""
    for pid in [*reversed(descendants(slot)), slot]:
        with contextlib.suppress(ProcessLookupError):  # the signal to its child has ended it, too
            os.kill(pid, number)
        time.sleep(pause_s)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("READY; exec sleep 100", id="dies"),
        pytest.param("trap 'echo saved; exit 0' TERM INT; READY; while :; do sleep 0.05; done", id="saves"),
        pytest.param("trap : TERM INT; READY; sleep 100; echo '{\"v\": 1}'", id="goes on"),
        pytest.param("READY; sh -c 'sleep 100; exit 143'; exit $?", id="says so"),
    ],
)
def test_what_ends_after_it_was_interrupted(
    bench: Bench, running: Callable[[str], tuple[SlotOrder, int]], script: str, number: signal.Signals
) -> None:
    order, slot = running(script)
    time.sleep(SOME_TIME_S)
    signal_all(slot, number)
    report = bench.report(order)
    assert report.outcome is Outcome.INTERRUPTED, report
    assert report.error == f"{number.name} was sent to all processes of the job"
    assert not report.scalars


def test_a_signal_that_comes_to_the_solver_first(
    monkeypatch: pytest.MonkeyPatch, make_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    bench = make_bench()
    order = bench.shell(f"touch {tmp_path}/ready; exec sleep 100")
    bench.client.submit(0, [order])
    wait_until((tmp_path / "ready").exists)
    (slot,) = slot_pids(bench.client)
    signal_all(slot, signal.SIGTERM, pause_s=0.3)
    assert bench.report(order).outcome is Outcome.INTERRUPTED


@pytest.mark.parametrize(("age_s", "is_stopped"), [(0.0, True), (0.1, True), (0.5, False), (1000.0, False)])
def test_a_solver_that_only_just_started_may_have_been_missed(
    monkeypatch: pytest.MonkeyPatch, age_s: float, is_stopped: bool
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    now = 100.0
    monkeypatch.setattr("keystone_mpi.execution.job_signals.time.monotonic", lambda: now)
    try:
        signals = JobSignals(-1)
        assert signals.ask_to_start() == 0.0
        assert not signals.is_unheeded
        now += age_s
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.is_unheeded
        assert signals.heed() == is_stopped
        assert not signals.is_unheeded
        assert signals.came
        now += START_NOTHING_S / 2
        assert signals.ask_to_start() == START_NOTHING_S / 2
        now += START_NOTHING_S
        assert signals.ask_to_start() == 0.0
        assert not signals.came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_nothing_starts_for_a_while(
    bench: Bench, running: Callable[[str], tuple[SlotOrder, int]], tmp_path: Path
) -> None:
    """The master stops within this time, and takes back what waits; else the job was not meant."""
    order, slot = running("READY; exec sleep 100")
    recalled, kept = (bench.shell(f"touch {tmp_path}/{name}") for name in ("recalled", "kept"))
    bench.client.submit(0, [recalled])
    began = time.monotonic()
    signal_all(slot, signal.SIGTERM)
    assert bench.report(order).outcome is Outcome.INTERRUPTED
    bench.client.submit(0, [kept])
    bench.client.recall(0, [recalled.key])
    assert bench.wait_for_kind(OrdersReturned).keys == [recalled.key]
    assert bench.report(kept).outcome is Outcome.SUCCESS
    assert time.monotonic() - began >= START_NOTHING_S
    assert [(tmp_path / name).exists() for name in ("recalled", "kept")] == [False, True]


def test_a_solver_killed_alone_failed(bench: Bench, running: Callable[[str], tuple[SlotOrder, int]]) -> None:
    order, slot = running("READY; exec sleep 100")
    (solver,) = descendants(slot)
    os.kill(solver, signal.SIGTERM)
    report = bench.report(order)
    assert (report.outcome, report.signal) == (Outcome.FAILED, signal.SIGTERM)
    assert bench.run(bench.order("true")).outcome is Outcome.SUCCESS


@pytest.mark.parametrize(
    ("in_job", "exit_code", "age_s", "patience_s"),
    [
        (False, 0, 1000.0, 0.0),
        (False, 1, 1000.0, 0.0),
        (False, -signal.SIGTERM, 1000.0, 0.1),
        (True, 0, 1.0, 0.005),
        (True, 0, 1000.0, 0.05),
        (True, 3, 1000.0, 0.05),
        (True, 128 + signal.SIGTERM, 0.1, 1.0),
        (True, -signal.SIGINT, 0.1, 1.0),
        (True, -signal.SIGKILL, 1.0, 0.005),
    ],
)
def test_how_long_a_signal_is_waited_for(
    in_job: bool, exit_code: int, age_s: float, patience_s: float
) -> None:
    assert patience_of(exit_code, age_s, in_job=in_job) == pytest.approx(patience_s)
