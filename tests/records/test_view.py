"""Views: one truth from file and journal, whoever folds, finishes or dies meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st
from written_runs import T0, Columns, Run, closed, done, failed, given, joined, make_columns

from keystone_mpi.core.errors import OutputError, UserError
from keystone_mpi.core.model import ArrayValue, Outcome, ShardValue, TaskState, Why
from keystone_mpi.records.entries import AttemptStarted, Entry, TaskEnded, WorkerLeft
from keystone_mpi.records.journal import read_journal
from keystone_mpi.records.lease import acquire, lease_path
from keystone_mpi.records.store import finish, fold
from keystone_mpi.records.store.shards import shards_path
from keystone_mpi.records.view import RunView, open_view, recover


def picture(view: RunView) -> dict[str, Any]:
    """Everything that must not depend on how far the journal was folded."""
    budget = view.used_budget
    tasks = [view.task(index) for index in range(view.task_count)]
    return {
        "run": (view.run_id, view.epoch, view.created, view.task_count, view.sweep_name, view.phase,
                view.reason),
        "texts": (view.spec, view.sweep_text, view.fingerprint, view.provenance),
        "states": view.states.tolist(),
        "whys": view.whys.tolist(),
        "last_attempt": view.last_attempt.tolist(),
        "durations": [None if np.isnan(value) else value for value in view.durations.tolist()],
        "budget": [column.tolist() for column in (budget.failed, budget.timed_out, budget.out_of_memory,
                                                  budget.worker_lost)],
        "counts": view.counts(),
        "times": repr((view.first_started, view.last_finished)),
        "params": {name: column.tolist() for name, column in view.param_columns().items()},
        "tasks": [
            repr((task.state, task.why, task.error, dict(sorted(task.params.items())),
                  {name: np.asarray(value).tolist() for name, value in sorted(task.results.items())}))
            for task in tasks
        ],
        "attempts": [[(a.number, a.outcome, a.host, repr(a.started), a.stdout_tail, a.error, a.cpus,
                       a.artifacts)
                      for a in task.attempts] for task in tasks],
        "workers": repr(view.workers),
        "in_flight": sorted((a.index, a.number, a.host) for a in view.in_flight),
        "failures": [(a.index, a.number) for a in view.recent_failures(3)],
    }  # fmt: skip


STORY: list[Entry] = [
    joined(1, "n1"),
    given((0, 1), (1, 1), (2, 1)),
    done(0, artifacts=("a", "b"), arrays={"u": ArrayValue("<f8", (2,), np.array([1.0, 2.0]).tobytes())}),
    joined(2, "n2"),
    AttemptStarted(1, 1, 1, T0 + 1),
    failed(1, retried=True),
    given((3, 1), worker=2),
    AttemptStarted(2, 3, 1, T0 + 2.5),
    failed(2, state=TaskState.TIMEOUT, outcome=Outcome.TIMEOUT, why=Why.NONE, error="timed out"),
    given((1, 2)),
    done(1, 2, worker=2),
    failed(4, state=TaskState.FAILURE, outcome=Outcome.OUT_OF_MEMORY, why=Why.OUT_OF_MEMORY),
    failed(5, retried=True, outcome=Outcome.WORKER_LOST, why=Why.LOST_WORKER),
    WorkerLeft(2, "lost", T0 + 30),
    TaskEnded(6, TaskState.CANCELLED, Why.BY_USER, "cancelled by the user", T0 + 31),
    TaskEnded(2, TaskState.PENDING, Why.NONE, "", T0 + 32),
    given((2, 2)),
    failed(7, state=TaskState.FAILURE, outcome=Outcome.WORKER_LOST, why=Why.LOST_WORKER),
]
TASKS = 9


def test_a_view_is_the_same_however_far_the_journal_was_folded(tmp_path: Path) -> None:
    pictures = []
    for folds in (set(), {4}, {8, 15}, {0, 1, 2, 3, 5, 8, 13}, {len(STORY) - 1}, set(range(len(STORY)))):
        folder = tmp_path / str(len(pictures))
        folder.mkdir()
        run = Run(folder, TASKS)
        with acquire(run.output, run_id="run-1", epoch=1):
            for position, entry in enumerate(STORY):
                run.add(entry)
                if position in folds:
                    fold(run.output, run.journal, Columns(TASKS), final=False)
            with open_view(run.output, make_columns) as view:
                pictures.append(picture(view))
    for got in pictures[1:]:
        assert got == pictures[0]
    first = pictures[0]
    assert first["states"] == [2, 2, 1, 1, 3, 0, 5, 3, 0]
    assert first["last_attempt"] == [1, 2, 2, 1, 1, 1, 0, 1, 0]
    assert first["in_flight"] == [(2, 2, "n1"), (3, 1, "n2")]
    assert first["budget"] == [
        [0, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0],  # task 2 was put back
        [0, 0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 1, 0],
    ]  # fmt: skip
    assert first["failures"] == [(7, 1), (5, 1), (4, 1)]
    assert first["params"]["mesh_size"] == [k * 8 for k in range(TASKS)]
    counts = first["counts"]
    assert (counts.total, counts.completed, counts.failed, counts.running, counts.pending) == (9, 2, 3, 2, 2)
    assert (counts.timed_out, counts.cancelled, counts.out_of_memory, counts.lost) == (0, 1, 1, 1)


EACH: dict[int, list[Entry]] = {
    0: [given((0, 1)), done(0)],
    1: [given((1, 1)), AttemptStarted(1, 1, 1, T0 + 1), failed(1, retried=True), given((1, 2), worker=2),
        done(1, 2, worker=2)],
    2: [given((2, 1)), failed(2, state=TaskState.TIMEOUT, outcome=Outcome.TIMEOUT),
        TaskEnded(2, TaskState.PENDING, Why.NONE, "", T0 + 32), given((2, 2)), failed(2, 2, retried=True)],
    3: [given((3, 1)), failed(3, outcome=Outcome.OUT_OF_MEMORY, retried=True, scalars={"residual": -1.0})],
    4: [TaskEnded(4, TaskState.CANCELLED, Why.BY_USER, "cancelled", T0)],
    5: [given((5, 1), worker=2), AttemptStarted(2, 5, 1, T0 + 4)],
}  # fmt: skip
"""What happens to each task, in its order."""


@settings(max_examples=12, deadline=None)
@given_values(
    st.permutations([task for task, entries in EACH.items() for _ in entries]),
    st.sets(st.integers(0, sum(map(len, EACH.values()))), max_size=3),
)
def test_any_interleaving_and_any_folds(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], folds: set[int]
) -> None:
    queues = {task: iter(entries) for task, entries in EACH.items()}
    entries = [joined(1, "n1"), joined(2, "n2"), *(next(queues[task]) for task in order)]
    folder = tmp_path_factory.mktemp("order")
    pictures = []
    for name in ("a.h5", "b.h5"):
        run = Run(folder, TASKS, name=name)
        with acquire(run.output, run_id="run-1", epoch=1):
            for position, entry in enumerate(entries):
                run.add(entry)
                if name == "b.h5" and position in folds:
                    fold(run.output, run.journal, Columns(TASKS), final=False)
            with open_view(run.output, make_columns) as view:
                pictures.append(picture(view))
        run.stop()
    assert pictures[0] == pictures[1]
    counts = pictures[0]["counts"]
    assert counts.completed + counts.failed + counts.running + counts.pending == counts.total
    assert pictures[0]["states"] == [2, 2, 0, 0, 5, 1, 0, 0, 0]


def test_a_finished_run(tmp_path: Path) -> None:
    run = Run(tmp_path, 2).add(joined(), done(0), failed(1), closed("complete", "all done")).stop()
    fold(run.output, run.journal, Columns(2), final=True)
    finish(run.output)
    with open_view(run.output) as view:
        assert view.phase == "complete"
        assert view.reason == "all done"
        assert not view.needs_recovery
        assert view.lease is None
        assert view.generation
        assert view.task(1).attempts[0].command == "solve --x 1"
        assert view.task(0).results == {"residual": 0.0}
        assert view.task(1).params == {"mesh_size": 8, "kappa": 0.5, "label": "p1", "fine": True}
        assert view.param_columns()["fine"].dtype == bool
        assert view.counts().all_complete


def test_tasks_are_found_by_id(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    with open_view(run.output) as view:
        assert view.index_of_id("2") == 2
        for bad in ("3", "-1", "x", "02", "", "²"):
            with pytest.raises(UserError, match=r"tasks are 0 to 2"):
                view.index_of_id(bad)
        with pytest.raises(UserError, match="no task 3"):
            view.task(3)


def test_nothing_there_and_not_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        open_view(tmp_path / "none.h5")
    (tmp_path / "notes.h5").write_text("hello")
    with pytest.raises(OutputError, match="not HDF5"):
        open_view(tmp_path / "notes.h5")
    (tmp_path / "torn.h5.journal").write_bytes(b"KEYST")
    with pytest.raises(OutputError, match="died before its first record"):
        open_view(tmp_path / "torn.h5")
    assert not recover(tmp_path / "torn.h5")
    assert not (tmp_path / "torn.h5.journal").exists()


MASTER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from written_runs import *
from keystone_mpi.records.lease import acquire
folder = Path(sys.argv[1])
lease = acquire(folder / "run.h5", run_id="run-1", epoch=1, status={{"rate": 5}})
run = Run(folder, 4).add(joined(), given((0, 1), (1, 1), (2, 1)), done(0))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def master(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = MASTER.format(tests=str(Path(__file__).parent))
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_running_and_then_a_dead_master(tmp_path: Path, master: subprocess.Popen[str]) -> None:
    output = tmp_path / "run.h5"
    with open_view(output, make_columns) as view:
        assert view.phase == "running"
        assert not view.needs_recovery
        assert view.lease is not None
        assert view.lease.status == {"rate": 5}
        assert view.states.tolist() == [2, 1, 1, 0]
        assert view.task(1).attempts[0].outcome is None
    assert not recover(output, make_columns)
    before = sorted(path.name for path in tmp_path.iterdir())
    master.send_signal(signal.SIGKILL)
    master.wait()
    with open_view(output, make_columns) as view:
        assert view.phase == "died"
        assert view.needs_recovery
        assert view.states.tolist() == [2, 0, 0, 0]
        assert view.last_attempt.tolist() == [1, 1, 1, 0]
        assert view.counts().running == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert recover(output, make_columns)
    assert not recover(output, make_columns)
    with open_view(output) as view:
        assert view.phase == "interrupted"
        assert view.states.tolist() == [2, 0, 0, 0]
        assert view.last_attempt.tolist() == [1, 1, 1, 0]
        assert [a.outcome for a in view.task(1).attempts] == [Outcome.INTERRUPTED]
        assert view.used_budget.failed.tolist() == [0, 0, 0, 0]
        assert view.task(3).params["mesh_size"] == 24
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_recovery_under_the_callers_own_lease(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).add(joined(), given((1, 1)), done(0)).stop()
    with acquire(run.output, run_id="run-1", epoch=2) as lease:
        assert recover(run.output, make_columns, lease=lease)
        assert lease_path(run.output).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_lease_left_behind_by_a_run_that_finished_goes(tmp_path: Path) -> None:
    run = Run(tmp_path, 1).add(joined(), done(0), closed()).stop()
    fold(run.output, run.journal, Columns(1), final=True)
    finish(run.output)
    lease = acquire(run.output, run_id="run-1", epoch=1)
    text = lease_path(run.output).read_text()
    lease_path(run.output).write_text(
        text.replace(f'"pid_started":{lease.info.pid_started}', '"pid_started":1')
    )
    assert not recover(run.output)
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_two_recoveries_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, 300).add(joined(), *(done(k) for k in range(200))).stop()
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from written_runs import make_columns; from keystone_mpi.records.view import recover;"
        "sys.exit(10 + recover(Path(sys.argv[1]), make_columns))"
    )
    arguments = [sys.executable, "-c", code, str(run.output), str(Path(__file__).parent)]
    children = [subprocess.Popen(arguments) for _ in range(3)]
    codes = sorted(child.wait(60) for child in children)
    assert codes == [10, 10, 11]
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
    with open_view(run.output) as view:
        assert view.counts().completed == 200


def test_a_continued_run(tmp_path: Path) -> None:
    first = (
        Run(tmp_path, 3).add(joined(1, "old"), done(0), failed(1), closed("interrupted", "drained")).stop()
    )
    base = fold(first.output, first.journal, Columns(3), final=True)
    finish(first.output)
    second = Run(
        tmp_path,
        5,
        epoch=2,
        base_generation=base.generation,
        base_task_count=3,
        added_points=[(3, 5)],
        spec=b"{}",
    )
    second.add(joined(1, "new"), TaskEnded(1, TaskState.PENDING, Why.NONE, "", T0))
    second.add(given((1, 2), (4, 1)), done(4))
    with acquire(second.output, run_id="run-1", epoch=2):
        pictures = []
        for _ in range(2):
            with open_view(second.output, make_columns) as view:
                pictures.append(picture(view))
            fold(second.output, second.journal, Columns(2, base=3), final=False)
    assert pictures[0] == pictures[1]
    assert pictures[0]["states"] == [2, 1, 0, 0, 2]
    assert pictures[0]["run"][:2] == ("run-1", 2)
    assert pictures[0]["params"]["mesh_size"] == [0, 8, 16, 24, 32]
    assert [[a[2] for a in task] for task in pictures[0]["attempts"]] == [
        ["old"],
        ["old", "new"],
        [],
        [],
        ["new"],
    ]


def test_whole_output_and_large_results_before_and_after_the_fold(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).add(joined())
    field = np.arange(12.0).reshape(3, 4)
    shards_path(run.output).mkdir()
    (shards_path(run.output) / "w").write_bytes(field.tobytes() + zlib.compress(b"err"))
    large = {
        "field": ShardValue("w", 0, 96, zlib.crc32(field.tobytes()), "<f8", (3, 4)),
        "@stderr": ShardValue(
            "w", 96, len(zlib.compress(b"err")), zlib.crc32(zlib.compress(b"err")), "bytes"
        ),
    }
    run.add(
        done(0, large=large, packed={"@stdout": zlib.compress(b"out")}), done(1, packed={"@stdout": b"bad"})
    )
    for _ in range(2):
        with open_view(run.output, make_columns) as view:
            assert view.output(0, 1, "stdout") == b"out"
            assert view.output(0, 1, "stderr") == b"err"
            assert view.output(0, 2, "stderr") is None
            assert view.output(1, 1, "stdout") in (b"", None)
            assert view.output(2, 1, "stdout") is None
            assert (view.task(0).results["field"] == field).all()
            assert view.task(1).results == {"residual": 1.5}
        fold(run.output, run.journal, Columns(3), final=False)


def test_an_open_view_keeps_its_moment(tmp_path: Path) -> None:
    run = Run(tmp_path, 2).add(joined(), done(0))
    fold(run.output, run.journal, Columns(2), final=False)
    with open_view(run.output) as view:
        run.add(done(1), closed()).stop()
        fold(run.output, run.journal, None, final=True)
        finish(run.output)
        assert view.states.tolist() == [2, 0]
        assert view.task(1).attempts == []


FOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from written_runs import *
from keystone_mpi.records.lease import acquire
from keystone_mpi.records.store import finish, fold
folder = Path(sys.argv[1])
output = folder / "run.h5"
acknowledged = open(folder / "acknowledged", "a", buffering=1)
epoch, base, rows = 1, "", 0
end = time.monotonic() + float(sys.argv[2])
with acquire(output, run_id="run-1", epoch=1) as lease:
    while time.monotonic() < end or epoch < 3:
        head = dict(base_generation=base, base_task_count=rows, added_points=[(rows, rows + 20)])
        run = Run(folder, rows + 20, epoch=epoch, **head)
        run.add(joined())
        for index in range(rows, rows + 20):
            run.add(given((index, 1)), done(index))
            acknowledged.write(f"{{index + 1}}\\n")
            if index % 4 == 0:
                fold(output, run.journal, Columns(20, base=rows), final=False)
        run.add(closed()).stop()
        base = fold(output, run.journal, Columns(20, base=rows), final=True).generation
        finish(output)
        epoch, rows = epoch + 1, rows + 20
"""


def test_looking_while_another_process_folds_finishes_and_continues(tmp_path: Path) -> None:
    script = FOLDER.format(tests=str(Path(__file__).parent))
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), "3"], stderr=subprocess.PIPE, text=True
    )
    acknowledged = tmp_path / "acknowledged"
    looks = 0
    seen: set[tuple[int, str]] = set()
    try:
        while child.poll() is None:
            lines = acknowledged.read_bytes().split(b"\n") if acknowledged.exists() else [b""]
            told = int(lines[-2]) if len(lines) > 1 else 0
            if not told:
                time.sleep(0.01)
                continue
            with open_view(tmp_path / "run.h5", make_columns) as view:
                counts = view.counts()
                assert counts.completed >= told  # what was acknowledged before the look is in it
                assert counts.total == view.epoch * 20
                assert view.phase in ("running", "complete")
                assert (view.states[:told] == 2).all()
                assert view.param_columns()["mesh_size"].tolist() == [k * 8 for k in range(counts.total)]
                assert view.task(told - 1).results == {"residual": (told - 1) * 1.5}
                seen.add((view.epoch, view.phase))
            looks += 1
    finally:
        child.kill()
        _out, errors = child.communicate()
    assert child.returncode == 0, errors
    assert looks > 10
    assert len(seen) > 2
    acknowledged.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_view_changes_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).add(joined(), done(0))
    fold(run.output, run.journal, Columns(3), final=False)
    run.add(done(1))
    tmp_path.chmod(0o555)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    try:
        with open_view(run.output, make_columns) as view:
            picture(view)
    finally:
        tmp_path.chmod(0o755)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_the_journal_of_another_run_beside_the_file_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, 1).add(joined(), done(0), closed()).stop()
    fold(run.output, run.journal, Columns(1), final=True)
    finish(run.output)
    Run(tmp_path, 1, run_id="run-2").stop()
    monkeypatch.setattr("keystone_mpi.records.view._RETRIES", 3)
    with pytest.raises(Exception, match="do not fit together"):
        open_view(run.output)
    assert len(list(read_journal(run.journal))) == 1
    with h5py.File(run.output) as file:
        assert file.attrs["run_id"] == "run-1"
    assert os.access(run.output, os.R_OK)


def test_an_attempt_that_was_given_back_neither_ran_nor_forgives(tmp_path: Path) -> None:
    """A worker held the second attempt in its backlog, and was asked for it."""
    run = Run(tmp_path, 2).add(joined(), given((0, 1)), failed(0, 1, retried=True), given((0, 2)))
    run.add(TaskEnded(0, TaskState.PENDING, Why.NONE, "", T0, returned_attempt=2))
    run.stop()
    with open_view(run.output, make_columns) as view:
        assert view.states.tolist() == [0, 0]
        assert view.used_budget.failed.tolist() == [1, 0]
        assert view.last_attempt.tolist() == [1, 0]
    assert recover(run.output, make_columns)
    with open_view(run.output) as view:
        assert view.used_budget.failed.tolist() == [1, 0]
        assert [attempt.outcome for attempt in view.task(0).attempts] == [Outcome.FAILED]
