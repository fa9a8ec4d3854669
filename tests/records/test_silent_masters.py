"""A master that is silent, not dead: a reader lets it alone, and it notices who took over from it."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from written_runs import Run, closed, done, given, joined, make_columns

from keystone_mpi.core.errors import ClusterError, LeaseHeldError
from keystone_mpi.core.model import TaskState
from keystone_mpi.records.committer import Committer
from keystone_mpi.records.journal import JournalWriter, journal_path, seal
from keystone_mpi.records.lease import Lease, acquire, lease_path, read_lease
from keystone_mpi.records.view import open_view, recover

ELSEWHERE = {"boot_id": "another machine", "host": "n17", "pid": 1, "job_id": "12@alpha"}


class SilentMaster:
    """A master with one acknowledged task whose lease is of another machine and 61 s old."""

    def __init__(self, folder: Path) -> None:
        self.run = Run(folder, 3)
        self.output = self.run.output
        self.lease = acquire(self.output, run_id="run-1", epoch=1)
        self.lease.renew({})
        self.woken = threading.Event()
        self.committer = Committer(self.run.writer, interval_s=0.0, on_progress=self.woken.set)
        assert self.committer.wait(self.committer.submit([joined(), given((0, 1), (1, 1)), done(0)]), 10.0)
        age(self.output, 61.0, **ELSEWHERE)


@pytest.fixture
def silent(tmp_path: Path) -> Any:
    master = SilentMaster(tmp_path)
    yield master
    master.committer.close(0.1)


def age(output: Path, age_s: float, **changes: object) -> None:
    path = lease_path(output)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def taken_over(output: Path) -> Lease:
    """Do what a new start does before it opens a journal of its own."""
    lease = acquire(output, run_id="run-1", epoch=2)
    assert recover(output, make_columns, lease=lease)
    return lease


def completed(output: Path) -> int:
    with open_view(output, make_columns) as view:
        return view.counts().completed


def test_a_reader_lets_a_silent_master_alone(silent: SilentMaster) -> None:
    before = read_lease(silent.output)
    for is_gone in (None, lambda job: False):
        assert not recover(silent.output, make_columns, is_gone=is_gone)
    assert read_lease(silent.output) == before
    with open_view(silent.output, make_columns) as view:
        assert view.is_silent
        assert view.needs_recovery
        assert view.states.tolist()[0] == TaskState.SUCCESS
    silent.lease.renew({})  # it wakes up, and nothing has happened
    assert silent.committer.wait(silent.committer.submit([done(1)]), 10.0)
    assert completed(silent.output) == 2


def test_a_reader_recovers_what_the_batch_system_calls_gone(silent: SilentMaster) -> None:
    asked: list[str] = []

    def is_gone(job: str) -> bool:
        asked.append(job)
        return True

    assert recover(silent.output, make_columns, is_gone=is_gone)
    assert set(asked) == {"12@alpha"}
    assert [path.name for path in silent.output.parent.iterdir()] == [silent.output.name]


def test_a_start_takes_over_and_the_master_that_wakes_up_stops(silent: SilentMaster) -> None:
    new = taken_over(silent.output)
    with pytest.raises(LeaseHeldError, match=r"taken over by .*epoch 2.*keystone-mpi status"):
        silent.lease.renew({})
    new.release()
    with pytest.raises(LeaseHeldError, match=r"lease .* and the journal beside it are gone.*taken for dead"):
        silent.lease.renew({})
    assert not lease_path(silent.output).exists(), "it made itself a new lease on a run that is not its own"
    last = silent.committer.submit([done(1)])
    with pytest.raises(LeaseHeldError, match=r"journal .* was removed: this master was silent"):
        silent.committer.wait(last, 10.0)
    assert silent.woken.wait(10.0)
    assert silent.committer.durable < last
    with pytest.raises(LeaseHeldError):
        silent.committer.submit([done(2)])
    with pytest.raises(LeaseHeldError):
        assert silent.committer.problem
    assert completed(silent.output) == 1


def test_a_journal_of_the_next_start_at_the_same_place_is_not_ours(silent: SilentMaster) -> None:
    with taken_over(silent.output):
        writer = JournalWriter(journal_path(silent.output), create=True)
        last = silent.committer.submit([done(1)])
        with pytest.raises(LeaseHeldError, match="another start's"):
            silent.committer.wait(last, 10.0)
        writer.close()


def test_nothing_is_acknowledged_into_a_journal_that_is_being_recovered(silent: SilentMaster) -> None:
    """It wakes up between the last read of its journal and its removal."""
    seal(silent.run.journal)
    last = silent.committer.submit([done(1)])
    with pytest.raises(LeaseHeldError, match="put into the results file by another process"):
        silent.committer.wait(last, 10.0)
    with taken_over(silent.output):
        pass
    assert not journal_path(silent.output).exists()


def test_a_master_that_writes_on_while_it_is_recovered_is_read_to_the_end(
    silent: SilentMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keystone_mpi.records.view as view_module

    real = view_module.fold
    late = [done(1), done(2)]

    def fold(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        if late:
            silent.run.writer.append(late.pop(0))
            silent.run.writer.write()
        return result

    monkeypatch.setattr(view_module, "fold", fold)
    with taken_over(silent.output):
        pass
    assert completed(silent.output) == 3


def test_a_full_disk_does_not_hide_that_the_journal_is_gone(
    silent: SilentMaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_over(silent.output).release()

    def stale(*arguments: Any) -> int:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", stale)
        last = silent.committer.submit([done(1)])
        with pytest.raises(LeaseHeldError):
            silent.committer.wait(last, 10.0)


def test_a_place_that_cannot_be_looked_at_acknowledges_nothing_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, 3)
    real = os.open

    def broken(path: Any, *arguments: Any, **options: Any) -> int:
        if path == run.journal:
            raise OSError(5, "Input/output error")
        return real(path, *arguments, **options)

    run.writer.append(done(0))
    before = run.writer.durable_offset
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", broken)
        with pytest.raises(ClusterError, match="Input/output error"):
            run.writer.flush()
        assert run.writer.durable_offset == before
    assert run.writer.flush() > before
    run.stop()
    assert completed(run.output) == 1


def test_a_recovered_journal_stays_readable_when_the_recovery_dies(silent: SilentMaster) -> None:
    seal(silent.run.journal)
    assert stat.S_IMODE(os.stat(silent.run.journal).st_mode) & 0o222 == 0
    with taken_over(silent.output):
        pass
    assert completed(silent.output) == 1


def test_a_lease_that_somebody_removed_comes_back_while_the_journal_is_ours(silent: SilentMaster) -> None:
    lease_path(silent.output).unlink()
    silent.lease.renew({"n": 1})
    found = read_lease(silent.output)
    assert found is not None
    assert found.token == silent.lease.info.token


def test_a_finished_run_may_still_renew(tmp_path: Path) -> None:
    """The store removes the journal while the master is at its last words."""
    run = Run(tmp_path, 1).add(joined(), done(0), closed())
    with acquire(run.output, run_id="run-1", epoch=1) as lease:
        lease.renew({})
        run.stop()
        run.journal.unlink()
        lease.renew({"n": 1})
        assert lease_path(run.output).exists()


@pytest.mark.parametrize("only_known_dead", [False, True])
def test_the_batch_system_is_not_asked_about_a_living_process_here(
    tmp_path: Path, only_known_dead: bool
) -> None:
    output = tmp_path / "run.h5"

    def is_gone(job: str) -> bool:
        raise AssertionError(f"asked about job {job}")

    with (
        acquire(output, run_id="r", epoch=1, job_id="12@alpha"),
        pytest.raises(LeaseHeldError),
    ):
        acquire(output, run_id="r", epoch=2, is_gone=is_gone, only_known_dead=only_known_dead)


def test_a_young_lease_elsewhere_goes_when_its_job_is_gone(tmp_path: Path) -> None:
    output = tmp_path / "run.h5"
    acquire(output, run_id="r", epoch=1)
    age(output, 1.0, **ELSEWHERE)
    with pytest.raises(LeaseHeldError, match=r"process 1 on n17, job 12@alpha"):
        acquire(output, run_id="r", epoch=2, is_gone=lambda job: False)
    acquire(output, run_id="r", epoch=2, is_gone=lambda job: job == "12@alpha").release()
