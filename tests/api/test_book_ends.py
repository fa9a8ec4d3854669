"""The beginning and the end of a program's results file: it is held meanwhile and let go afterwards."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from keystone_mpi import TaskPipeline
from keystone_mpi.core.errors import ClusterError, LeaseHeldError
from keystone_mpi.engine import book_opening, housekeeping
from keystone_mpi.engine.store_client import StoreClient
from keystone_mpi.records import entries
from keystone_mpi.records.committer import Committer


def held(folder: Path) -> list[str]:
    """Files of the results, open or there, beside the results themselves."""
    there = [path.name for path in folder.glob("out.h5.*")]
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{folder}/out.h5"):
            there.append(f"open: {target}")
    return there + [thread.name for thread in threading.enumerate() if thread.name == "keystone-committer"]


def test_the_lease_is_renewed_while_the_last_batch_is_written(
    pipeline: TaskPipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = folder / "out.h5.lease"
    ages: list[float] = []
    finish = StoreClient.finish

    def slowly(store: StoreClient, timeout_s: float) -> Any:
        os.utime(lease, (time.time() - 50, time.time() - 50))
        time.sleep(3.0)
        ages.append(time.time() - lease.stat().st_mtime)
        return finish(store, timeout_s)

    monkeypatch.setattr(housekeeping, "RENEWAL_S", 0.5)
    monkeypatch.setattr(StoreClient, "finish", slowly)
    pipeline.submit_task("command", ["true"])
    pipeline.close()
    (age_s,) = ages
    assert age_s < 10, "another host would take the run over"
    assert held(folder) == []


def test_a_run_that_is_taken_over_at_the_end_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = TaskPipeline("out.h5")

    def slowly(_store: StoreClient, _timeout_s: float) -> Any:
        monkeypatch.setattr(type(opened._lease), "renew", taken_over)
        time.sleep(3.0)

    def taken_over(*_args: Any) -> None:
        raise LeaseHeldError("taken over by somebody")

    opened = pipeline._tasks.book
    monkeypatch.setattr(housekeeping, "RENEWAL_S", 0.5)
    monkeypatch.setattr(StoreClient, "finish", slowly)
    with pytest.raises(LeaseHeldError, match="taken over by somebody"):
        pipeline.close()
    assert opened._store._child is None


def test_a_broken_journal_lets_the_lease_and_the_store_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = TaskPipeline("out.h5")
    opened = pipeline._tasks.book
    pipeline.wait_for_task(pipeline.submit_task("command", ["true"]))
    opened._store.ensure_started()
    submit = Committer.submit

    def broken(committer: Committer, new: list[entries.Entry]) -> int:
        if isinstance(new[0], entries.RunClosed):
            raise LeaseHeldError("the journal is another's")
        return submit(committer, new)

    monkeypatch.setattr(Committer, "submit", broken)
    with pytest.raises(LeaseHeldError, match="the journal is another's"):
        pipeline.close()
    pipeline._tasks._earlier.close()
    assert held(folder) == ["out.h5.journal"]
    assert opened._store._child is None


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("broken", ["provenance", "journal"])
def test_a_file_that_cannot_be_opened_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str, resume: bool
) -> None:
    if resume:
        with TaskPipeline("out.h5") as first:
            first.submit_task("command", ["true"])
    assert held(folder) == []

    def fail(*_args: Any) -> None:
        raise ClusterError("not today")

    with monkeypatch.context() as patch:
        if broken == "provenance":
            patch.setattr(book_opening, "gather_provenance", fail)
        else:
            patch.setattr(Committer, "submit", fail)
        with pytest.raises(ClusterError, match="not today"):
            TaskPipeline("out.h5", resume=resume)
    assert held(folder) == []
    with TaskPipeline("out.h5", resume=resume) as again:
        again.submit_task("command", ["true"])


def test_a_cancelled_dependant_is_told_without_a_search(pipeline: TaskPipeline) -> None:
    """Ten thousand tasks that depend on one that failed are not searched ten thousand times."""

    class Unsearched(dict[int, int]):
        def items(self) -> Any:
            raise AssertionError("all rows are searched")

    pipeline._tasks.book._indices = Unsearched()
    first = pipeline.submit_task("command", ["false"], retries=0)
    second = pipeline.submit_task("command", ["true"], depends_on=[first])
    assert pipeline.wait_for_task(second)["error"].startswith(f"task {first}, ")
