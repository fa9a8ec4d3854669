"""The lease: one holder, dead ones replaced by exactly one successor, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keystone_mpi.core.errors import ClusterError, LeaseHeldError
from keystone_mpi.records import lease as lease_module
from keystone_mpi.records.lease import acquire, lease_path, process_start, read_lease


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "poisson.h5"


def rewrite(output: Path, age_s: float = 0.0, **changes: object) -> None:
    """Change what the lease file says and how old it is."""
    path = lease_path(output)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


HOLDER = """
import sys, time
from pathlib import Path
from keystone_mpi.records.lease import acquire
lease = acquire(Path(sys.argv[1]), run_id="other", epoch=1)
print("held", flush=True)
time.sleep(60)
"""


def start_holder(output: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def stop(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def test_held_renewed_released(output: Path) -> None:
    assert read_lease(output) is None
    with acquire(output, run_id="r", epoch=3, job_id="77", status={"done": 0}) as lease:
        info = read_lease(output)
        assert info is not None
        assert (info.run_id, info.epoch, info.pid, info.job_id) == ("r", 3, os.getpid(), "77")
        assert info.is_alive()
        time.sleep(0.02)
        lease.renew({"done": 5})
        renewed = read_lease(output)
        assert renewed is not None
        assert renewed.status == {"done": 5}
        assert renewed.token == info.token
        assert renewed.stamp > info.stamp
        lease.renew(epoch=4)
        assert read_lease(output).epoch == 4  # type: ignore[union-attr]
        assert read_lease(output).status == {"done": 5}  # type: ignore[union-attr]
    assert read_lease(output) is None
    lease.release()
    assert list(output.parent.iterdir()) == []


def test_a_live_holder_is_respected_and_named(output: Path) -> None:
    child = start_holder(output)
    try:
        with pytest.raises(
            LeaseHeldError, match=rf"process {child.pid} on .*epoch 1, renewed \d+ s ago.*drain"
        ):
            acquire(output, run_id="r", epoch=1)
    finally:
        stop(child)


def test_a_dead_holder_is_replaced_at_once(output: Path) -> None:
    stop(start_holder(output))
    info = read_lease(output)
    assert info is not None
    assert not info.is_alive()
    with acquire(output, run_id="r", epoch=2):
        assert read_lease(output).epoch == 2  # type: ignore[union-attr]
    assert list(output.parent.iterdir()) == []


def test_a_zombie_is_dead(output: Path) -> None:
    child = start_holder(output)
    child.send_signal(signal.SIGKILL)
    end = time.monotonic() + 5
    while process_start(child.pid) != -1 and time.monotonic() < end:
        time.sleep(0.01)
    info = read_lease(output)  # the child was not waited for yet
    assert info is not None
    assert not info.is_alive()
    stop(child)


def test_a_recycled_pid_is_not_taken_for_the_holder(output: Path) -> None:
    acquire(output, run_id="r", epoch=1)
    rewrite(output, pid_started=process_start(os.getpid()) - 1)
    with acquire(output, run_id="r", epoch=2):
        pass


@pytest.mark.parametrize("change", [{"boot_id": "another machine"}, {"pid_namespace": "pid:[1]"}])
def test_elsewhere_the_stamp_decides(output: Path, change: dict[str, str]) -> None:
    acquire(output, run_id="r", epoch=1)
    rewrite(output, age_s=50, host="n17", pid=1, **change)
    with pytest.raises(LeaseHeldError, match=r"process 1 on n17.*renewed 5\d s ago.*wait until.* 60 s old"):
        acquire(output, run_id="r", epoch=2)
    rewrite(output, age_s=61)
    with acquire(output, run_id="r", epoch=2):
        pass


def test_an_unreadable_lease_is_respected_for_a_minute(output: Path) -> None:
    lease_path(output).write_bytes(b"{ torn")
    with pytest.raises(LeaseHeldError, match="cannot be read"):
        acquire(output, run_id="r", epoch=1)
    os.utime(lease_path(output), (time.time() - 61, time.time() - 61))
    with acquire(output, run_id="r", epoch=1):
        pass


def test_a_holder_that_was_replaced_stops(output: Path) -> None:
    old = acquire(output, run_id="r", epoch=1)
    rewrite(output, age_s=100, boot_id="another machine")
    new = acquire(output, run_id="r", epoch=2)
    with pytest.raises(LeaseHeldError, match=r"taken over by process .*epoch 2, this is epoch 1"):
        old.renew({})
    old.release()
    assert read_lease(output).token == new.info.token  # type: ignore[union-attr]
    new.release()
    assert list(output.parent.iterdir()) == []


def test_a_removed_lease_comes_back_at_renewal(output: Path) -> None:
    with acquire(output, run_id="r", epoch=1) as lease:
        lease_path(output).unlink()
        lease.renew({"a": 1})
        assert read_lease(output).token == lease.info.token  # type: ignore[union-attr]


def test_a_full_disk_at_renewal_is_told_and_the_stamp_still_moves(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with acquire(output, run_id="r", epoch=1, status={"n": 1}) as lease:
        os.utime(lease_path(output), (1, 1))

        def full(path: Path, info: object) -> Path:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(lease_module, "_write_temp", full)
            with pytest.raises(ClusterError, match="No space left"):
                lease.renew({"n": 2})
        info = read_lease(output)
        assert info is not None
        assert info.status == {"n": 1}
        assert info.stamp > time.time() - 5


def test_without_hard_links(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with acquire(output, run_id="r", epoch=1), pytest.raises(LeaseHeldError):
        acquire(output, run_id="r", epoch=1)
    assert list(output.parent.iterdir()) == []


def test_litter_of_killed_processes_goes(output: Path) -> None:
    child = start_holder(output)
    stop(child)
    dead = lease_path(output).read_bytes()
    output.with_name(f".poisson.h5.lease-{lease_module._boot_id()[:8]}-{child.pid}-0a1b").touch()
    claim = output.with_name(".poisson.h5.lease-claim-0123")
    temp = output.with_name(".poisson.h5.lease-12-abcd")
    claim.write_bytes(dead)
    temp.write_bytes(dead)
    acquire(output, run_id="r", epoch=1).release()
    assert list(output.parent.iterdir()) == []


def test_a_claim_whose_maker_died_does_not_block(output: Path) -> None:
    stop(start_holder(output))
    dead = read_lease(output)
    assert dead is not None
    claim = output.with_name(f".poisson.h5.lease-claim-{dead.token}")
    claim.write_bytes(lease_path(output).read_bytes().replace(dead.token.encode(), b"0" * 24))
    acquire(output, run_id="r", epoch=1).release()
    assert list(output.parent.iterdir()) == []


RACER = """
import os, sys, time
from pathlib import Path
from keystone_mpi.core.errors import LeaseHeldError
from keystone_mpi.records.lease import acquire
output, gate, log = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
print("ready", flush=True)
wins = 0
for lap in range(int(sys.argv[4])):
    while not gate.with_name(f"go{lap}").exists():
        time.sleep(0.0002)
    try:
        acquire(output, run_id="race", epoch=lap)
        word = "won"
    except LeaseHeldError:
        word = "held"
    print(word, flush=True)
time.sleep(60)
"""


def test_two_processes_never_both_take_over_a_dead_lease(output: Path, tmp_path: Path) -> None:
    laps = 40
    stop(start_holder(output))
    dead = lease_path(output).read_bytes()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(output), str(tmp_path / "gate"), "log", str(laps)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for lap in range(laps):
            if lap % 2:
                lease_path(output).unlink(missing_ok=True)  # a race for a free one
            else:
                lease_path(output).write_bytes(dead.replace(b"other", f"dead{lap}".encode()))
            (tmp_path / f"go{lap}").touch()
            words = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
            assert sorted(words) == ["held", "held", "won"], (lap, words)
            info = read_lease(output)
            assert info is not None
            assert info.epoch == lap
            assert info.pid == racers[words.index("won")].pid
    finally:
        for racer in racers:
            stop(racer)
