"""kill -9 of a rank, its launcher, its slot processes: nothing is left, every order comes back once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from execution_support import Bench, is_alive, slot_pids, wait_until

from keystone_mpi.core.model import Outcome, Why
from keystone_mpi.execution.launcher_client import (
    AttemptFinished,
    AttemptStarted,
    LauncherRestarted,
    OrdersReturned,
    SlotLost,
)
from keystone_mpi.execution.processes import find_by_tag, sweep_by_tag

STUBBORN = """
trap '' TERM HUP INT
(trap '' TERM HUP INT; while :; do sleep 1; done) &
setsid sh -c "trap '' TERM HUP INT; while :; do sleep 1; done" &
(setsid sh -c 'trap "" TERM HUP INT; (while :; do sleep 1; done) & exit' &)
while :; do sleep 1; done
"""
"""Ignores what can be ignored, with children in other groups and sessions, and an orphan."""


def test_slot_process_killed(bench: Bench) -> None:
    orders = [bench.shell(STUBBORN), bench.order("true"), bench.order("true")]
    other = bench.order("sleep", "1000")
    bench.client.submit(0, orders)
    bench.wait_for_kind(AttemptStarted)
    (slot,) = slot_pids(bench.client)
    bench.client.submit(1, [other])
    bench.wait_for(lambda e: isinstance(e, AttemptStarted) and e.slot == 1)
    os.kill(slot, signal.SIGKILL)
    report = bench.report(orders[0])
    assert (report.outcome, report.why) == (Outcome.WORKER_LOST, Why.LOST_WORKER)
    assert report.error == "its slot process was killed (signal 9)"
    assert bench.wait_for_kind(SlotLost).slot == 0
    assert bench.wait_for_kind(OrdersReturned).keys == [orders[1].key, orders[2].key]
    # When it is told, nothing of the lost attempt is left, and the neighbour runs on.
    assert len(bench.tagged()) == 1
    assert bench.client.outstanding(1) == [other.key]
    assert bench.run(bench.order("true")).outcome is Outcome.SUCCESS


def test_a_defect_of_a_slot_process_shows_its_traceback(bench: Bench) -> None:
    order = bench.order("sleep", "1000")
    bench.client.submit(0, [order])
    bench.wait_for_kind(AttemptStarted)
    # Whatever else it is told: a second setup is a defect of ours.
    bench.client._send(bench.client._slots[0], [bench.client._setup])
    report = bench.report(order)
    assert report.outcome is Outcome.WORKER_LOST
    assert report.error == "its slot process failed: ValueError: a slot process is set up once"
    assert report.stderr_tail.startswith("Traceback (most recent call last)")
    assert "slot_process.py" in report.stderr_tail
    assert bench.run(bench.order("true")).outcome is Outcome.SUCCESS


def test_idle_slot_process_killed(bench: Bench) -> None:
    assert bench.run(bench.order("true")).outcome is Outcome.SUCCESS
    (slot,) = slot_pids(bench.client)
    os.kill(slot, signal.SIGKILL)
    bench.wait_for_kind(SlotLost)
    assert bench.run(bench.order("true")).outcome is Outcome.SUCCESS
    assert not [e for e in bench.events if isinstance(e, AttemptFinished) and e.report.error]


def test_launcher_killed(bench: Bench) -> None:
    stubborn, waiting, other = bench.shell(STUBBORN), bench.order("true"), bench.shell(STUBBORN)
    bench.client.submit(0, [stubborn, waiting])
    bench.client.submit(1, [other])
    for slot in (0, 1):
        bench.wait_for(lambda e, slot=slot: isinstance(e, AttemptStarted) and e.slot == slot)
    old_slots = slot_pids(bench.client)
    old_launcher = bench.client.launcher_pid
    os.kill(old_launcher, signal.SIGKILL)
    for order in (stubborn, other):
        report = bench.report(order)
        assert report.outcome is Outcome.WORKER_LOST
        assert report.error == "the launcher was killed (signal 9)"
    assert bench.wait_for_kind(OrdersReturned).keys == [waiting.key]
    bench.wait_for_kind(LauncherRestarted)
    bench.wait_gone()
    wait_until(lambda: not any(map(is_alive, old_slots)), 5.0)
    assert bench.client.launcher_pid != old_launcher
    assert bench.run(waiting).outcome is Outcome.SUCCESS


def test_launcher_and_slots_killed_at_once(bench: Bench) -> None:
    order = bench.shell(STUBBORN)
    bench.client.submit(0, [order])
    bench.wait_for_kind(AttemptStarted)
    for pid in (*slot_pids(bench.client), bench.client.launcher_pid):
        os.kill(pid, signal.SIGKILL)
    assert bench.report(order).outcome is Outcome.WORKER_LOST
    bench.wait_gone()
    assert bench.run(bench.order("true")).outcome is Outcome.SUCCESS


def test_killed_again_and_again(bench: Bench) -> None:
    """Every order comes back exactly once, whatever is killed in between."""
    submitted: set[tuple[int, int]] = set()
    for round_number in range(6):
        orders = [bench.shell("sleep 0.02") for _ in range(6)]
        submitted |= {order.key for order in orders}
        bench.client.submit(0, orders[:3])
        bench.client.submit(1, orders[3:])
        bench.events += bench.client.read_events(0.03 * round_number)
        victims = slot_pids(bench.client) if round_number % 2 else [bench.client.launcher_pid]
        for pid in victims[:1]:
            os.kill(pid, signal.SIGKILL)

    def back() -> list[tuple[int, int]]:
        bench.events += bench.client.read_events(0.1)
        keys = []
        for event in bench.events:
            if isinstance(event, AttemptFinished):
                keys.append((event.report.index, event.report.attempt))
            elif isinstance(event, OrdersReturned):
                keys += event.keys
        return keys

    wait_until(lambda: set(back()) == submitted)
    assert len(back()) == len(submitted)


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    run_id = uuid.uuid4().hex
    program = Path(__file__).with_name("rank_program.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path), run_id, STUBBORN],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.communicate()
    sweep_by_tag(run_id)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [False, True])
def test_rank_killed(rank: subprocess.Popen[str], number: signal.Signals, whole_group: bool) -> None:
    assert rank.stdout is not None
    launcher, scratch = rank.stdout.readline().split()
    run_id = rank.args[3]  # type: ignore[index]
    assert len(find_by_tag(run_id)) >= 8
    if whole_group:
        os.killpg(rank.pid, number)
    else:
        rank.send_signal(number)
    wait_until(lambda: not find_by_tag(run_id), 5.0)
    wait_until(lambda: not is_alive(int(launcher)), 5.0)
    wait_until(lambda: not Path(scratch).exists(), 5.0)


def test_rank_and_launcher_killed_at_once(rank: subprocess.Popen[str]) -> None:
    """The slot processes clean up by themselves."""
    assert rank.stdout is not None
    launcher, scratch = rank.stdout.readline().split()
    run_id = rank.args[3]  # type: ignore[index]
    os.kill(int(launcher), signal.SIGKILL)
    rank.kill()
    wait_until(lambda: not find_by_tag(run_id), 5.0)
    wait_until(lambda: not Path(scratch).exists(), 5.0)


def test_launcher_keeps_nothing_of_the_rank_open(rank: subprocess.Popen[str]) -> None:
    """Who waits for the end of the rank's output must not wait for its launcher."""
    assert rank.stdout is not None
    launcher = rank.stdout.readline().split()[0]
    targets = [os.readlink(f"/proc/{launcher}/fd/{fd}") for fd in os.listdir(f"/proc/{launcher}/fd")]
    ours = os.readlink(f"/proc/self/fd/{rank.stdout.fileno()}")
    assert ours not in targets
    assert targets.count("/dev/null") == 3
    assert os.getsid(int(launcher)) == int(launcher)


def test_close_with_running_attempts(bench: Bench) -> None:
    orders = [bench.shell(STUBBORN), bench.order("true")]
    bench.client.submit(0, orders)
    bench.wait_for_kind(AttemptStarted)
    assert bench.close(0.2) == 0
    assert bench.tagged() == []
    assert bench.report(orders[0]).outcome is Outcome.INTERRUPTED
    assert bench.wait_for_kind(OrdersReturned).keys == [orders[1].key]


def test_close_before_anything(bench: Bench) -> None:
    assert bench.close() == 0


def test_sweep_spares_others(tmp_path: Path) -> None:
    run_id, other_id = uuid.uuid4().hex, uuid.uuid4().hex

    def start(run: str, worker: str) -> subprocess.Popen[bytes]:
        env = {"PATH": os.environ["PATH"], "KEYSTONE_RUN": run, "KEYSTONE_WORKER": worker}
        return subprocess.Popen(["sleep", "1000"], env=env)

    ours, of_worker_12, of_other_run = start(run_id, "1"), start(run_id, "12"), start(other_id, "1")
    longer_id = start(run_id + "0", "1")
    try:
        wait_until(lambda: len(find_by_tag(run_id)) == 2)
        assert sweep_by_tag(run_id, 1) == 0
        assert ours.wait(5.0) == -signal.SIGKILL
        assert find_by_tag(run_id) == [of_worker_12.pid]
        assert sweep_by_tag(run_id) == 0
        assert of_worker_12.wait(5.0) == -signal.SIGKILL
        assert of_other_run.poll() is None
        assert longer_id.poll() is None
    finally:
        for process in (ours, of_worker_12, of_other_run, longer_id):
            process.kill()
            process.wait()
