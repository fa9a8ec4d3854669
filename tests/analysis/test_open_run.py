"""open_run: the same answers from a finished run, one that is going on and one that died."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas
import pytest
from made_runs import FIXTURES, SMALL, T0, task_end, write_large, write_run

import keystone_mpi
from keystone_mpi.analysis import libraries
from keystone_mpi.core.errors import OutputError, UserError
from keystone_mpi.core.model import TaskState
from keystone_mpi.records.entries import AttemptStarted, RunOpened, TasksAssigned, WorkerJoined
from keystone_mpi.records.journal import JournalWriter, journal_path
from keystone_mpi.records.lease import acquire
from keystone_mpi.records.store.schema import FORMAT_VERSION


def test_every_format_version_has_a_fixture_that_can_be_read(tmp_path: Path) -> None:
    for version in range(1, FORMAT_VERSION + 1):
        path = tmp_path / f"v{version}.h5"
        path.write_bytes(gzip.decompress((FIXTURES / f"v{version}.h5.gz").read_bytes()))
        with h5py.File(path) as file:
            assert file.attrs["format_version"] == version
        with keystone_mpi.open_run(path) as run:
            assert len(run) == 12
            assert run.params == ["n", "kappa", "model", "twice"]
            assert run.stats()["completed"] == 10
            assert run.stats()["failed"] == 2
            assert run.tasks.energy.sum() == pytest.approx(
                sum(n * k for n in (1, 3) for k in (0.5, 1.5)) * 2 + 4
            )
            assert len(run.attempts) == 14
            assert run.to_xarray().sizes["n"] == 3


def test_tables(first_version: Path) -> None:
    with keystone_mpi.open_run(first_version) as run:
        tasks, attempts, workers = run.tasks, run.attempts, run.workers
        assert repr(run).endswith("12 tasks, complete>")
    assert list(tasks.columns[:4]) == ["n", "kappa", "model", "twice"]
    assert tasks.state.value_counts()["SUCCESS"] == 10
    assert tasks.index.name == "task"
    assert str(tasks.started.dtype).startswith("datetime64[ns, UTC]")
    failed = tasks[tasks.state == "FAILURE"]
    assert set(failed.model) == {"b"}
    assert failed.energy.isna().all()
    assert attempts.outcome.value_counts()["FAILED"] == 4
    assert attempts.host.nunique() == 1
    assert workers.slots.sum() == 2


def test_a_grid_becomes_labelled_axes(first_version: Path) -> None:
    with keystone_mpi.open_run(first_version) as run:
        grid = run.to_xarray()
    assert grid.energy.dims == ("n", "kappa", "model")
    assert grid.energy.sel(n=3, kappa=1.5, model="a") == pytest.approx(4.5)
    assert np.isnan(grid.energy.sel(n=2, model="b")).all()
    assert grid.field.dims[:3] == ("n", "kappa", "model")
    assert grid.field.sel(n=1, kappa=0.5, model="b").values.tolist() == [1, 2, 0.5]
    assert grid.twice.sel(n=3).values.ravel().tolist() == [6] * 4  # derived: a coordinate
    assert int(grid.task.sel(n=1, kappa=1.5, model="a")) == 2
    assert (
        grid.state.attrs["flag_meanings"].split()[int(grid.state.sel(n=2, kappa=0.5, model="b"))] == "FAILURE"
    )


def test_select(first_version: Path) -> None:
    with keystone_mpi.open_run(first_version) as run:
        assert len(run.select(n=3)) == 4
        assert len(run.select(n=[1, 3], model="a")) == 4
        assert run.select(kappa=slice(1.0, None)).tasks.kappa.unique().tolist() == [1.5]
        failed = run.select(state="FAILURE")
        assert len(failed) == 2
        assert len(failed.attempts) == 4
        assert failed.stats()["total_tasks"] == 2
        assert failed.failures()[0].count == 2
        assert run.select(n=3).to_xarray().sizes == {"n": 1, "kappa": 2, "model": 2, "field_d1": 3}
        with pytest.raises(UserError, match="did you mean 'kappa'"):
            run.select(kapa=1)
        with pytest.raises(UserError, match="no state 'FAILED'; there are PENDING"):
            run.select(state="FAILED")


def test_holes_repeats_and_shared_axes(tmp_path: Path) -> None:
    sweep = """
[sweep]
name = "mixed axes"
command = ["echo", "{x}", "{a}", "{b}"]
where = "x + a < 5"
repeat = 2
[params]
x = [3, 1, 2]
[zip]
a = [0, 2, 3]
b = ["p", "q", "r"]
"""
    points = [(x, a) for x in (3, 1, 2) for a in (0, 2, 3) if x + a < 5]
    entries = [task_end(i, scalars={"v": i, "s": f"t{i}"}) for i in range(2 * len(points))]
    with keystone_mpi.open_run(write_run(tmp_path, sweep, entries)) as run:
        grid = run.to_xarray()
        listed = run.to_xarray("v", layout="tasks")
    assert grid.v.dims == ("x", "zip", "replicate")
    assert grid.x.values.tolist() == [1, 2, 3]
    assert grid.b.dims == ("zip",)
    assert grid.b.values.tolist() == ["p", "q", "r"]
    for k, (x, a) in enumerate(points):
        at = grid.sel(x=x).isel(zip=[0, 2, 3].index(a))
        assert at.v.values.tolist() == [2 * k, 2 * k + 1]
        assert at.s.values.tolist() == [f"t{2 * k}", f"t{2 * k + 1}"]
    assert int(np.isnan(grid.v).sum()) == 2 * (9 - len(points))
    assert int(grid.task.sel(x=3).isel(zip=2, replicate=0)) == -1
    assert (grid.s.sel(x=3).isel(zip=2) == "").all()
    assert listed.v.dims == ("task",)
    assert listed.x.values.tolist() == [x for x, _ in points for _ in range(2)]


def test_points_that_come_again_get_replicates(tmp_path: Path) -> None:
    path = write_run(tmp_path, SMALL, [task_end(i, scalars={"v": i}) for i in range(4)])
    with h5py.File(path, "r+") as file:
        file["params/x"][:] = [0, 0, 1, 1]
        file["params/y"][:] = [0.5, 0.5, 0.5, 1.5]
    with keystone_mpi.open_run(path) as run:
        grid = run.to_xarray("v")
    assert grid.v.dims == ("x", "y", "replicate")
    assert grid.v.sel(x=0, y=0.5).values.tolist() == [0, 1]
    assert grid.v.sel(x=1, y=0.5).values.tolist()[0] == 2
    assert int(grid.v.notnull().sum()) == 4


def test_a_sampled_sweep_has_one_axis(tmp_path: Path) -> None:
    sweep = """
[sweep]
name = "sampled"
command = ["echo", "{x}", "{k}"]
[sample]
method = "lhs"
n = 20
[sample.ranges]
x = [0, 1]
k = [1, 2]
"""
    path = write_run(tmp_path, sweep, [task_end(i, scalars={"v": float(i)}) for i in range(20)])
    with keystone_mpi.open_run(path) as run:
        grid = run.to_xarray()
    assert grid.v.dims == ("sample",)
    assert grid.v.values.tolist() == list(range(20))
    assert grid.k.dims == ("sample",)


def test_a_sparse_grid_stays_a_list(tmp_path: Path) -> None:
    path = write_large(tmp_path, 10)
    with h5py.File(path, "r+") as file:
        file["params/x"][:] = np.arange(100)
        file["params/y"][:] = np.arange(100) * 0.5
    with keystone_mpi.open_run(path) as run:
        assert run.to_xarray("duration_s").duration_s.dims == ("task",)
        assert run.to_xarray("duration_s", layout="grid").duration_s.shape == (100, 100)
        with pytest.raises(UserError, match="allowed are 'auto'"):
            run.to_xarray(layout="square")


def test_a_run_that_is_going_on(tmp_path: Path) -> None:
    path = write_run(
        tmp_path, SMALL,
        [
            task_end(0, scalars={"v": 1.5}),
            TasksAssigned(worker=1, at=T0 + 2, attempts=[(1, 1)]),
            AttemptStarted(worker=1, index=1, attempt=1, at=T0 + 2),
        ],
        closed="",
    )  # fmt: skip
    before = sorted(tmp_path.iterdir())
    with acquire(path, run_id="run-run.h5", epoch=1), keystone_mpi.open_run(path) as run:
        assert run.phase == "running"
        assert run.states.tolist() == [
            TaskState.SUCCESS,
            TaskState.RUNNING,
            TaskState.PENDING,
            TaskState.PENDING,
        ]
        stats = run.stats()
        assert (stats["completed"], stats["running"], stats["pending"]) == (1, 1, 2)
        assert run.to_xarray("v").v.sel(x=0, y=0.5) == 1.5
        assert run.contents.in_flight() == [(1, 1, T0 + 2)]
    with keystone_mpi.open_run(path) as run:
        assert run.phase == "died"
        assert run.stats()["pending"] == 3
        assert run.tasks.v.tolist()[0] == 1.5
    assert sorted(tmp_path.iterdir()) == before  # looking changes nothing
    assert journal_path(path).exists()


def test_a_run_that_was_continued_and_died_shows_both_starts(tmp_path: Path) -> None:
    path = write_run(tmp_path, SMALL, [task_end(0, scalars={"v": 0.5})], closed="interrupted")
    with keystone_mpi.open_run(path) as run:
        assert run.phase == "interrupted"
        assert run.stats()["pending"] == 3
        head = RunOpened(
            format_version=1,
            run_id=run.contents.run_id,
            epoch=2,
            opened=T0 + 100,
            created=T0,
            task_count=6,
            base_generation=run.contents.snapshot.present.generation,
            base_task_count=4,
            added_points=[(0, 2)],
            spec=run.contents.text("spec").encode(),
            sweep_text=run.sweep_text,
            sweep_name=run.name,
            fingerprint={},
            provenance={},
        )
    writer = JournalWriter(journal_path(path), create=True)
    joined = WorkerJoined(worker=1, rank=1, host="node9", slots=2, memory_bytes=1, pid=1, at=T0 + 100)
    for entry in (head, joined, task_end(1, start=101.0, scalars={"v": 1.5})):
        writer.append(entry)
    writer.flush()
    writer.close()
    with keystone_mpi.open_run(path) as run:
        assert run.phase == "died"
        assert len(run) == 6
        stats = run.stats()
        assert (stats["completed"], stats["pending"], stats["starts"], stats["elapsed_s"]) == (2, 4, 2, 2.0)
        assert run.values("v")[:2].tolist() == [0.5, 1.5]
        assert run.values("x").tolist() == [0, 0, 1, 1, 0, 0]  # the rows that the second start added too
        assert run.attempts.host.tolist() == ["node1", "node9"]


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        keystone_mpi.open_run(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(OutputError, match="not a results file"):
        keystone_mpi.open_run(tmp_path / "text.h5")


def test_without_the_extra_the_command_to_install_it_is_told(
    first_version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    with keystone_mpi.open_run(first_version) as run:
        assert run.stats()["completed"] == 10  # needs none of it
        for ask in (lambda: run.tasks, run.to_xarray):
            with pytest.raises(UserError, match=r"-m pip install 'keystone_mpi\[analysis\]'"):
                ask()


def test_the_package_exports_it_lazily() -> None:
    script = (
        "import sys, keystone_mpi\n"
        "assert 'h5py' not in sys.modules and 'numpy' not in sys.modules\n"
        "assert 'open_run' in dir(keystone_mpi)\n"
        "keystone_mpi.open_run\n"
        "heavy = {'pandas', 'xarray', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    with pytest.raises(AttributeError):
        keystone_mpi.nothing_of_the_kind  # noqa: B018


def test_columns_are_typed_and_missing_ones_are_nan(tmp_path: Path) -> None:
    entries = [
        task_end(0, scalars={"count": 3, "ok": True, "word": "a"}),
        task_end(1, scalars={"count": 4, "ok": False}),
        task_end(2, scalars={"ok": True}),
        task_end(3, scalars={"ok": True}),
    ]
    with keystone_mpi.open_run(write_run(tmp_path, SMALL, entries)) as run:
        assert run.values("ok").tolist() == [True, False, True, True]
        assert run.values("count")[:2].tolist() == [3, 4]
        assert np.isnan(run.values("count")[2:]).all()
        assert run.values("word").tolist() == ["a", "", "", ""]
        assert isinstance(run.tasks, pandas.DataFrame)


def test_a_million_tasks_within_two_seconds(tmp_path: Path) -> None:
    small = write_run(tmp_path, SMALL, [task_end(i, scalars={"value": 1.0, "steps": 3}) for i in range(4)])
    large = write_large(tmp_path, 1000)
    script = f"""
import json, resource, time
import keystone_mpi, h5py, pandas, xarray
def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with keystone_mpi.open_run({str(small)!r}) as run:
    run.to_xarray()  # what is loaded and built once
before = peak_bytes()
began, cpu = time.perf_counter(), time.process_time()
with keystone_mpi.open_run({str(large)!r}) as run:
    grid = run.to_xarray()
    took, used = time.perf_counter() - began, time.process_time() - cpu
assert grid.value.shape == (1000, 1000)
assert float(grid.steps.sel(x=1, y=0.75)) == 3.0
asked = sum(array.nbytes for array in grid.data_vars.values())
asked += sum(8 * grid.value.size for name in ("x", "y"))
print(json.dumps(dict(took=took, used=used, asked=asked, grew=peak_bytes() - before)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["used"] < 2.0, seen
    assert seen["grew"] <= 3 * seen["asked"], seen
    large.unlink()
