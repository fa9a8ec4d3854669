"""The committer: order, durability, and a disk that stalls, fills up and comes back."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import TaskState, Why
from keystone_mpi.records.committer import Committer
from keystone_mpi.records.entries import TaskEnded
from keystone_mpi.records.journal import JournalWriter, read_journal


def entry(index: int) -> TaskEnded:
    return TaskEnded(index=index, state=TaskState.CANCELLED, why=Why.BY_USER, error="", at=0.0)


def indices(path: Path) -> list[int]:
    return [found.index for _end, found in read_journal(path) if isinstance(found, TaskEnded)]


def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return condition()


def test_entries_become_durable_in_order_and_progress_is_told(tmp_path: Path) -> None:
    seen: list[int] = []
    committer = Committer(
        JournalWriter(tmp_path / "j", create=True),
        interval_s=0.01,
        on_progress=lambda: seen.append(committer.durable),
    )
    for start in range(0, 1000, 10):
        assert committer.submit([entry(i) for i in range(start, start + 10)]) == start + 10
    assert until(lambda: committer.durable == 1000)
    assert committer.backlog == 0
    assert committer.close(5)
    assert indices(tmp_path / "j") == list(range(1000))
    assert seen == sorted(seen)
    assert seen[-1] == 1000


def test_many_threads_submit_and_each_keeps_its_order(tmp_path: Path) -> None:
    committer = Committer(JournalWriter(tmp_path / "j", create=True), interval_s=0.005)

    def submit(base: int) -> None:
        for k in range(500):
            committer.submit([entry(base + k)])

    threads = [threading.Thread(target=submit, args=(base,)) for base in (0, 10_000, 20_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert committer.close(5)
    got = indices(tmp_path / "j")
    assert len(got) == 1500
    for base in (0, 10_000, 20_000):
        assert [i for i in got if base <= i < base + 10_000] == list(range(base, base + 500))


def test_the_interval_bounds_syncs_and_a_demand_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[float] = []
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        syncs.append(time.monotonic())
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    committer = Committer(JournalWriter(tmp_path / "j", create=True), interval_s=30.0)
    committer.submit([entry(0)])
    assert until(lambda: committer.durable == 1)  # nothing was synced for long: at once
    committer.submit([entry(1)])
    assert until(lambda: indices(tmp_path / "j") == [0, 1])  # written, so a kill -9 keeps it ...
    assert committer.durable == 1  # ... and not yet synced
    committer.demand()
    assert until(lambda: committer.durable == 2, 2.0)
    assert len(syncs) == 2
    last = committer.submit([entry(2)])
    assert committer.wait(last, 2.0)
    committer.submit([entry(3)])
    assert committer.close(5)
    assert indices(tmp_path / "j") == [0, 1, 2, 3]


def test_a_stalled_disk_does_not_hold_up_submitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    real = os.fdatasync

    def stalled(descriptor: int) -> None:
        gate.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", stalled)
    committer = Committer(JournalWriter(tmp_path / "j", create=True), interval_s=0.0)
    started = time.monotonic()
    for k in range(2000):
        committer.submit([entry(k)])
    assert time.monotonic() - started < 2.0
    assert committer.durable == 0
    assert committer.backlog == 2000
    assert committer.backlog_bytes > 0
    assert not committer.wait(1, 0.05)
    gate.set()
    assert until(lambda: committer.durable == 2000)
    assert committer.close(5)
    assert indices(tmp_path / "j") == list(range(2000))


def test_a_full_disk_is_told_and_overcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystone_mpi.records.committer._RETRY_S", 0.05)
    real = os.pwrite
    full = threading.Event()

    def limited(descriptor: int, data: bytes, offset: int) -> int:
        if full.is_set():
            if len(data) > 20:
                return real(descriptor, data[:20], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", limited)
    told: list[str] = []
    committer = Committer(
        JournalWriter(tmp_path / "j", create=True),
        interval_s=0.0,
        on_progress=lambda: told.append(committer.problem),
    )
    committer.submit([entry(0)])
    assert until(lambda: committer.durable == 1)
    full.set()
    committer.submit([entry(1), entry(2)])
    assert until(lambda: "No space left on device" in committer.problem)
    assert str(tmp_path / "j") in committer.problem
    committer.submit([entry(3)])
    assert committer.durable < 4
    full.clear()
    assert until(lambda: committer.durable == 4)
    assert committer.problem == ""
    assert committer.close(5)
    assert indices(tmp_path / "j") == [0, 1, 2, 3]
    assert any(told)
    assert told[-1] == ""


def test_close_gives_up_after_its_time_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    writer = JournalWriter(tmp_path / "j", create=True)
    monkeypatch.setattr(os, "pwrite", full)
    committer = Committer(writer, interval_s=0.0)
    committer.submit([entry(0)])
    assert not committer.close(0.2)
    assert "quota" in committer.problem
    with pytest.raises(InternalError, match="after close"):
        committer.submit([entry(1)])
    assert until(lambda: not any(t.name == "keystone-committer" for t in threading.enumerate()))


def test_a_defect_of_ours_ends_the_thread_and_surfaces_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path / "j", create=True)

    def sync() -> None:
        raise ValueError("surprise")

    monkeypatch.setattr(writer, "sync", sync)
    woken = threading.Event()
    committer = Committer(writer, interval_s=0.0, on_progress=woken.set)
    last = committer.submit([entry(0)])
    with pytest.raises(InternalError, match=r"(?s)Traceback.*in sync.*surprise") as caught:
        committer.wait(last, 10.0)
    assert isinstance(caught.value.__cause__, InternalError)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)
    assert woken.wait(10.0), "the master was not told"
    with pytest.raises(InternalError, match="surprise"):
        committer.submit([entry(1)])
    with pytest.raises(InternalError, match="surprise"):
        committer.push(10.0)
    with pytest.raises(InternalError, match="surprise"):
        assert committer.problem
    assert committer.durable == 0
    assert not committer.close(10.0)
    assert indices(tmp_path / "j") == [0]  # what the kernel had stays


def test_an_error_of_the_system_below_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystone_mpi.records.committer._RETRY_S", 0.02)
    writer = JournalWriter(tmp_path / "j", create=True)
    real = writer.sync
    failures = iter([OSError(errno.EIO, "bad disk"), OSError(errno.EIO, "bad disk")])

    def sync() -> None:
        failure = next(failures, None)
        if failure is not None:
            raise failure
        real()

    monkeypatch.setattr(writer, "sync", sync)
    told: list[str] = []
    committer = Committer(writer, interval_s=0.0, on_progress=lambda: told.append(committer.problem))
    last = committer.submit([entry(0)])
    assert committer.wait(last, 10.0)
    assert committer.close(10.0)
    assert any("bad disk" in problem for problem in told)
    assert indices(tmp_path / "j") == [0]


def test_an_idle_committer_sleeps(tmp_path: Path) -> None:
    committer = Committer(JournalWriter(tmp_path / "j", create=True), interval_s=0.01)
    committer.submit([entry(0)])
    assert until(lambda: committer.durable == 1)
    status = Path(f"/proc/self/task/{committer._thread.native_id}/status")

    def switches() -> int:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["voluntary_ctxt_switches"])

    def rests() -> bool:
        before = switches()
        time.sleep(0.3)
        return switches() == before

    # One that polls, every 5 ms or every interval, never shows such a stretch, however slow the machine.
    assert until(rests, 30.0)
    assert committer.close(5)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from keystone_mpi.records.committer import Committer
from keystone_mpi.records.journal import JournalWriter
from test_committer import entry

committer = Committer(JournalWriter(Path({path!r}), create=True), interval_s=0.002)
k = 0
while True:
    last = committer.submit([entry(k + i) for i in range(5)])
    k += 5
    if committer.durable:
        print(committer.durable, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 40, 300])
def test_what_was_called_durable_survives_kill_9(tmp_path: Path, lines: int) -> None:
    script = CHILD.format(tests=str(Path(__file__).parent), path=str(tmp_path / "j"))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = 0
    for _ in range(lines):
        told = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read()
    child.stdout.close()
    child.wait()
    whole = rest[: rest.rfind("\n") + 1].split()
    told = int(whole[-1]) if whole else told
    got = indices(tmp_path / "j")
    assert len(got) >= told > 0
    assert got == list(range(len(got)))


def test_a_push_hands_over_to_the_kernel_without_a_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
    committer = Committer(JournalWriter(tmp_path / "j", create=True), interval_s=30.0)
    committer.submit([entry(0)])
    assert until(lambda: committer.durable == 1)
    for index in range(1, 50):
        committer.submit([entry(index)])
        assert committer.push(5.0)
        assert indices(tmp_path / "j")[-1] == index, "another process does not see it yet"
    assert committer.durable == 1
    assert committer.close(5)


def test_a_push_waits_once_for_a_stalled_disk_and_then_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committer = Committer(JournalWriter(tmp_path / "j", create=True), interval_s=0.01)
    stalled = threading.Event()
    real = os.pwrite

    def slow(descriptor: int, data: bytes, offset: int) -> int:
        stalled.wait()
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    committer.submit([entry(0)])
    assert not committer.push(0.05)
    started = time.monotonic()
    for index in range(1, 100):
        committer.submit([entry(index)])
        assert not committer.push(0.05)
    assert time.monotonic() - started < 2.0, "every push waited for the stalled disk"
    stalled.set()
    assert until(lambda: committer.durable == 100)
    committer.submit([entry(100)])
    assert committer.push(5.0)
    assert committer.close(5)
    assert indices(tmp_path / "j") == list(range(101))
