"""The results file: what is put in comes out, with any reader, whatever it is called."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from written_runs import T0, Columns, Run, closed, done, failed, given, joined

from keystone_mpi.core.errors import ClusterError, InternalError, LeaseHeldError, OutputError
from keystone_mpi.core.model import ArrayValue, Outcome, ShardValue, TaskState, Why
from keystone_mpi.records.entries import TaskEnded, WorkerLeft
from keystone_mpi.records.lease import acquire
from keystone_mpi.records.store import finish, fold, folding, generation, output
from keystone_mpi.records.store.shards import shards_path


def array(values: Any, dtype: str = "<f8") -> ArrayValue:
    data = np.asarray(values, dtype=np.dtype(dtype))
    return ArrayValue(dtype, data.shape, data.tobytes())


def finished(run: Run, state: str = "complete") -> h5py.File:
    """Close, fold, finish, and open with plain h5py."""
    run.add(closed(state)).stop()
    fold(run.output, run.journal, Columns(run.tasks), final=True)
    finish(run.output)
    return h5py.File(run.output, "r")


def texts(dataset: h5py.Dataset) -> list[str]:
    return list(dataset.asstr()[:])


# ------------------------------------------------------------ the fixed columns


def test_every_fact_of_a_run_is_in_the_file(tmp_path: Path) -> None:
    run = Run(tmp_path, 4).add(
        joined(1, "n1"),
        joined(2, "n2"),
        given((0, 1), (1, 1)),
        done(0, user_s=0.3, system_s=0.1, artifacts=("a.vtu", "b.vtu"), work_path="/w/0-1"),
        failed(1, retried=True, signal=11, exit_code=-1, why=Why.SIGNAL),
        done(1, attempt=2, worker=2),
        failed(2, state=TaskState.TIMEOUT, outcome=Outcome.TIMEOUT),
        TaskEnded(3, TaskState.CANCELLED, Why.BY_USER, "cancelled", T0 + 9),
        WorkerLeft(2, "goodbye", T0 + 20),
    )
    with finished(run) as file:
        tasks, attempts, workers = file["tasks"], file["attempts"], file["workers"]
        assert tasks["state"][:].tolist() == [2, 2, 4, 5]
        assert tasks["why"][:].tolist() == [0, 0, int(Why.EXIT_CODE), int(Why.BY_USER)]
        assert tasks["attempts"][:].tolist() == [1, 2, 1, 0]
        assert tasks["last_attempt"][:].tolist() == [0, 2, 3, -1]
        assert tasks["results_from"][:].tolist() == [0, 2, 3, -1]
        assert tasks["started"][:3].tolist() == [T0, T0 + 1, T0 + 2]
        assert tasks["finished"][:3].tolist() == [T0 + 0.5, T0 + 1.5, T0 + 2.25]
        assert np.isnan(tasks["started"][3])
        assert tasks["submitted"][:].tolist() == [T0] * 4
        assert texts(tasks["error"]) == ["", "", "exit code 3", "cancelled"]
        assert attempts["task_index"][:].tolist() == [0, 1, 1, 2]
        assert attempts["number"][:].tolist() == [1, 1, 2, 1]
        assert attempts["outcome"][:].tolist() == [0, 1, 0, 2]
        assert attempts["signal"][:].tolist() == [0, 11, 0, 0]
        assert attempts["exit_code"][:].tolist() == [0, -1, 0, 3]
        assert attempts["worker"][:].tolist() == [0, 0, 1, 0]
        assert attempts["user_s"][0] == 0.3
        assert attempts["cores"][:].tolist() == [2, 0, 2, 0]
        assert texts(attempts["cpus"]) == ["0,2", "", "0,2", ""]
        assert texts(attempts["artifacts"])[0] == "a.vtu\nb.vtu"
        assert texts(attempts["stderr_tail"])[1] == "boom"
        assert texts(attempts["command"])[1] == "solve --x 1"
        assert texts(workers["host"]) == ["n1", "n2"]
        assert workers["left"][1] == T0 + 20
        assert texts(workers["why_left"]) == ["", "goodbye"]
        assert file["results/residual"][:2].tolist() == [0.0, 1.5]
        assert np.isnan(file["results/residual"][2:]).all()
        assert file["params/mesh_size"][:].tolist() == [0, 8, 16, 24]
        assert file["params/fine"][:].tolist() == [0, 1, 0, 1]
        assert texts(file["params/label"]) == ["p0", "p1", "p2", "p0"]
        assert texts(file["task_id"]) == ["0", "1", "2", "3"]
        assert file.attrs["format"] == "keystone_mpi"
        assert file.attrs["format_version"] == 1
        assert file.attrs["state"] == "complete"
        assert file.attrs["run_id"] == "run-1"
        assert file["spec"].asstr()[()] == '{"name": "demo"}'
        assert file["fingerprint"].asstr()[()] == '{"argv":"aa"}'
        assert tasks["duration_s"].attrs["units"] == "s"
        assert attempts["max_rss_bytes"].attrs["units"] == "bytes"
        assert all("long_name" in column.attrs for group in (tasks, workers) for column in group.values()
                   if column.name != "/workers/worker")  # fmt: skip


def test_a_finished_run_is_one_file(tmp_path: Path) -> None:
    run = Run(tmp_path, 1).add(joined(), done(0))
    shards_path(run.output).mkdir()
    (shards_path(run.output) / "w1").write_bytes(b"x")
    (tmp_path / "run.h5.drain").touch()
    finished(run).close()
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_folding_in_many_steps_is_folding_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [joined()]
    for index in (7, 3, 9, 0, 2, 8, 1, 5):
        entries += [given((index, 1)), failed(index, retried=True, scalars={"residual": -1, "extra": 1})]
        entries += [given((index, 2)), done(index, attempt=2, arrays={"u": array([index] * (1 + index % 3))})]
    entries += [TaskEnded(4, TaskState.CANCELLED, Why.BY_USER, "no", T0), closed("interrupted", "drained")]
    once = Run(tmp_path, 10, name="once.h5").add(*entries).stop()
    fold(once.output, once.journal, Columns(10), final=True)
    steps = Run(tmp_path, 10, name="steps.h5")
    for entry in entries:
        steps.add(entry)
        result = fold(steps.output, steps.journal, Columns(10), final=False)
        assert result.changed
        assert not fold(steps.output, steps.journal, None, final=False).changed
    fold(steps.output, steps.journal, None, final=True)
    monkeypatch.setattr(folding, "BATCH_ENTRIES", 3)
    batches = Run(tmp_path, 10, name="batches.h5").add(*entries).stop()
    fold(batches.output, batches.journal, Columns(10), final=True)
    expected = dump(once.output)
    assert len(expected) > 50
    for run in (steps, batches):
        got = dump(run.output)
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(got[name], values, err_msg=name)


def dump(path: Path) -> dict[str, Any]:
    """All datasets and what attributes say, without what must differ."""
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
        found |= {
            f"@{key}": file.attrs[key] for key in ("state", "state_reason", "closed_state", "journal_offset")
        }
        found["@fill"] = sorted(
            name for name in file["results"] if "_FillValue" in file[f"results/{name}"].attrs
        )
    return found


def test_a_fold_with_nothing_new_leaves_the_file_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, 2).add(joined(), done(0))
    first = fold(run.output, run.journal, Columns(2), final=False)
    before = run.output.stat()
    again = fold(run.output, run.journal, Columns(2), final=False)
    assert not again.changed
    assert again.generation == first.generation
    assert run.output.stat().st_ino == before.st_ino


def test_attempts_in_flight_are_kept_aside_and_become_interrupted_when_the_master_died(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, 5).add(joined(), given((0, 1), (1, 1), (2, 1)), done(0))
    fold(run.output, run.journal, Columns(5), final=False)
    with h5py.File(run.output, "r") as file:
        assert file["attempts/attempt"].shape == (1,)
        assert sorted(file["in_flight/task_index"][:].tolist()) == [1, 2]
        assert file.attrs["state"] == "running"
    readable(run.output)
    run.add(done(2), given((3, 1))).stop()
    result = fold(run.output, run.journal, None, final=True)
    assert result.state == "interrupted"
    with h5py.File(run.output, "r") as file:
        assert "in_flight" not in file
        rows = file["attempts/task_index"][:].tolist()
        assert rows == [0, 2, 1, 3]
        assert file["attempts/outcome"][:].tolist() == [0, 0, 6, 6]
        assert np.isnan(file["attempts/started"][2:]).all()
        assert file["tasks/state"][:].tolist() == [2, 0, 2, 0, 0]
        assert file["tasks/attempts"][:].tolist() == [1, 1, 1, 1, 0]
    assert not fold(run.output, run.journal, None, final=True).changed


def test_a_run_that_died_after_its_last_task_is_complete(tmp_path: Path) -> None:
    run = Run(tmp_path, 2).add(joined(), done(0), failed(1)).stop()
    assert fold(run.output, run.journal, Columns(2), final=True).state == "complete"


def test_absurd_times_do_not_make_the_file_unreadable(tmp_path: Path) -> None:
    run = Run(tmp_path, 2).add(joined(), done(0, started=1e300, finished=float("inf")), done(1, started=-5.0))
    with finished(run) as file:
        assert np.isnan(file["attempts/started"][:]).all()
        assert np.isnan(file["tasks/finished"][0])


# --------------------------------------------------------------- result columns


def results_of(tmp_path: Path, *scalars: dict[str, Any]) -> h5py.File:
    run = Run(tmp_path, len(scalars)).add(joined())
    run.add(*(done(index, scalars=values) for index, values in enumerate(scalars)))
    return finished(run)


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ([1, 2, 3], "int", [1, 2, 3]),
        ([1, None, 3], "int", [1, -(2**63), 3]),
        ([1, 2.5, 3], "float", [1.0, 2.5, 3.0]),
        ([True, False, True], "bool", [1, 0, 1]),
        ([True, None, False], "bool", [1, -1, 0]),
        ([True, 7, 0], "int", [1, 7, 0]),
        ([True, 0.5, 2], "float", [1.0, 0.5, 2.0]),
        (["a", "", "c"], "str", ["a", "", "c"]),
        ([1, "two", 3.5], "str", ["1", "two", "3.5"]),
        ([True, "x", None], "str", ["true", "x", ""]),
        ([2**64 - 1, 1, 2], "float", [2.0**64, 1.0, 2.0]),
        ([-(2**63), 1, 2], "float", [-(2.0**63), 1.0, 2.0]),
    ],
)
@pytest.mark.parametrize("batch", [1, 100])
def test_columns_take_the_type_that_holds_all_values(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[Any],
    kind: str,
    stored: list[Any],
    batch: int,
) -> None:
    monkeypatch.setattr(folding, "BATCH_ENTRIES", batch)
    with results_of(tmp_path, *({"x": value} for value in values)) as file:
        column = file["results/x"]
        assert column.attrs["value_type"] == kind
        assert (texts(column) if kind == "str" else column[:].tolist()) == stored
        missing = None in values and kind in ("int", "bool")
        assert ("_FillValue" in column.attrs) == missing
        assert (column.attrs.get("dtype") == "bool") == (kind == "bool" and not missing)


def test_nan_and_infinity_stay(tmp_path: Path) -> None:
    with results_of(tmp_path, {"x": float("inf")}, {"x": float("nan")}, {"x": -0.0}) as file:
        got = file["results/x"][:]
        assert np.isposinf(got[0])
        assert np.isnan(got[1])
        assert np.signbit(got[2])


HOSTILE_NAMES = [
    "a/b", "/", ".", "..", "", " ", "task", "attempt", "a\0b", "täsk", "x y", "-dash", "1st", "名前",
    "x" * 400, "a_b", "value_type", "u_d1", "@x", "\x1b[31m", "e\u0301",
]  # fmt: skip


def test_any_name_becomes_a_column_of_its_own(tmp_path: Path) -> None:
    values = {name: float(position) for position, name in enumerate(HOSTILE_NAMES)}
    run = Run(tmp_path, 1).add(joined(), done(0, scalars=values, arrays={"u": array([1, 2])}))
    with finished(run) as file:
        columns = [item for item in file["results"].values() if item.ndim == 1 and "value_type" in item.attrs]
        assert sorted(item[0] for item in columns) == sorted(values.values())
        keys = {item.attrs.get("key", item.name.rpartition("/")[2]): item[0] for item in columns}
        assert keys == {name.replace("\0", "\u2400"): value for name, value in values.items()}
        (matrix,) = [item for item in file["results"].values() if item.ndim == 2]
        assert matrix.attrs["key"] == "u"
        assert matrix[0].tolist() == [1, 2]
    readable(run.output)


def test_any_text_is_stored(tmp_path: Path) -> None:
    hostile = ["nul\0inside", "\0", "grüße 名", "a" * 100_000, "line\nbreak\ttab", "\x7f\x1b[0m", "</script>"]
    run = Run(tmp_path, len(hostile)).add(joined())
    for index, text in enumerate(hostile):
        run.add(done(index, scalars={"t": text}, stdout_tail=text, error=text, command=text))
    with finished(run) as file:
        expected = [text.replace("\0", "\u2400") for text in hostile]
        assert texts(file["results/t"]) == expected
        assert texts(file["attempts/stdout_tail"]) == expected
        assert texts(file["attempts/command"]) == expected
    readable(run.output)


def test_the_last_successful_attempt_wins_and_nothing_of_others_is_mixed_in(tmp_path: Path) -> None:
    for batch in (False, True):
        run = Run(tmp_path, 3, name=f"run{batch}.h5").add(joined())
        steps = [
            failed(0, 1, retried=True, scalars={"x": 1, "only_first": 5}, arrays={"u": array([9, 9, 9])}),
            done(0, 2, scalars={"x": 2, "s": "text"}, arrays={"u": array([7])}),
            done(1, 1, scalars={"x": 10}),
            TaskEnded(1, TaskState.PENDING, Why.NONE, "", T0),
            failed(1, 2, scalars={"x": -1}),  # put back, and failed: the success stays
            failed(2, 1, retried=True, scalars={"x": 5}),
            failed(2, 2, scalars={"x": 6}),
        ]
        for step in steps:
            run.add(step)
            if not batch:
                fold(run.output, run.journal, Columns(3), final=False)
        with finished(run) as file:
            assert file["results/x"][:].tolist() == [2, 10, 6]
            assert texts(file["results/s"]) == ["text", "", ""]
            assert file["results/u"][0, :1].tolist() == [7]
            assert np.isnan(file["results/u"][0, 1:]).all()
            if "only_first" in file["results"]:
                assert file["results/only_first"][0] == -(2**63)
            assert file["tasks/state"][:].tolist() == [2, 3, 3]
            assert file["tasks/results_from"][:].tolist() == [1, 2, 5]
            assert file["tasks/forgiven"][:].tolist() == [0, 1, 0]


# ----------------------------------------------------------------------- arrays


def test_ragged_arrays_are_padded_to_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "BATCH_ENTRIES", 2)
    run = Run(tmp_path, 6).add(joined())
    shapes = [(2, 3), (1, 1), (4, 2), (0, 2), (3, 3)]
    for index, shape in enumerate(shapes):
        run.add(done(index, arrays={"u": array(np.full(shape, index + 1.0))}))
    with finished(run) as file:
        column = file["results/u"]
        assert column.shape == (6, 4, 3)
        for index, (rows, columns) in enumerate(shapes):
            assert (column[index, :rows, :columns] == index + 1).all()
            assert np.isnan(column[index]).sum() == 12 - rows * columns
        assert np.isnan(column[5]).all()
        assert [scale.name for scale in (column.dims[k][0] for k in range(3))] == [
            "/task", "/results/u_d1", "/results/u_d2",
        ]  # fmt: skip
    readable(run.output)


@pytest.mark.parametrize("batch", [1, 100])
def test_array_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(folding, "BATCH_ENTRIES", batch)
    run = Run(tmp_path, 3).add(joined())
    rows: list[dict[str, ArrayValue]] = [
        {
            "f4": array([1.5, 2], "<f4"), "i2": array([1, -2], "<i2"), "big": array([1.0], ">f8"),
            "flag": array([True, False], "|b1"), "mix": array([1, 2], "<i8"),
            "word": array(["ab", "c"], "<U2"),
            "raw": array([b"x", b"y"], "|S1"), "z": array([1 + 2j], "<c16"), "scalar": array(3.5),
            "when": array(["2020-01-01"], "<M8[D]"), "u8": array([2**63], "<u8"), "wide": array([1.5], "<f4"),
            "strange": ArrayValue("|V8", (1,), b"12345678"), "liar": ArrayValue("<f8", (3,), b"short"),
            "rank": array([1.0, 2.0]), "unknown": ArrayValue("no such type", (1,), b""),
            "t": array([1], "<i8"),
        },
        {"mix": array([0.5]), "rank": array([[1.0, 2.0]]), "wide": array([1e300]), "t": array(["q"], "<U1")},
        {"rank": array([5.0]), "flag": array([True], "|b1")},
    ]  # fmt: skip
    for index, values in enumerate(rows):
        run.add(done(index, scalars={}, arrays=values))
    with finished(run) as file:
        results = file["results"]
        assert results["f4"].dtype == np.float32
        assert results["i2"][0].tolist() == [1, -2]
        assert results["i2"][1, 0] == -(2**63)
        assert results["big"][0, 0] == 1.0
        assert results["flag"][:].tolist() == [[1, 0], [-1, -1], [1, -1]]
        assert results["mix"].dtype == np.float64
        assert results["mix"][0].tolist() == [1.0, 2.0]
        assert results["mix"][1, 0] == 0.5
        assert np.isnan(results["mix"][2]).all()
        assert results["wide"].dtype == np.float64
        assert results["wide"][:2, 0].tolist() == [1.5, 1e300]
        assert results["word"].asstr()[0].tolist() == ["ab", "c"]
        assert results["raw"].asstr()[0].tolist() == ["x", "y"]
        assert results["when"].asstr()[0, 0] == "2020-01-01"
        assert results["t"].asstr()[:2, 0].tolist() == ["1", "q"]
        assert (results["z_real"][0, 0], results["z_imag"][0, 0]) == (1.0, 2.0)
        assert results["scalar"].shape == (3,)
        assert results["scalar"][0] == 3.5
        assert results["u8"][0, 0] == 2.0**63
        assert results["rank"][0].tolist() == [1.0, 2.0]
        assert results["rank"][2, 0] == 5.0
        assert results["rank_2d"][1].tolist() == [[1.0, 2.0]]
        assert "strange" not in results
        assert np.isnan(results["liar"][:]).all()
    readable(run.output)


def test_a_name_that_is_a_scalar_here_and_an_array_there(tmp_path: Path) -> None:
    run = Run(tmp_path, 2).add(
        joined(), done(0, scalars={"x": 1}), done(1, scalars={}, arrays={"x": array([1, 2])})
    )
    with finished(run) as file:
        assert file["results/x"][0] == 1
        assert file["results/x_1d"][1].tolist() == [1, 2]


def test_many_arrays_out_of_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    order = rng.permutation(200)
    run = Run(tmp_path, 200).add(joined())
    for start in range(0, 200, 50):
        run.add(*(done(int(k), arrays={"u": array([k, k + 0.5])}) for k in order[start : start + 50]))
        fold(run.output, run.journal, Columns(200), final=False)
    with finished(run) as file:
        assert file["results/u"][:, 0].tolist() == list(range(200))


def test_large_values_come_from_shards(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).add(joined())
    field = np.arange(300_000, dtype="<f8").reshape(300, 1000)
    log = b"all of it\n" * 1000
    packed = zlib.compress(log)
    folder = shards_path(run.output)
    folder.mkdir()
    (folder / "w1.shard").write_bytes(b"head" + field.tobytes() + packed)
    size = field.nbytes
    good = ShardValue("w1.shard", 4, size, zlib.crc32(field.tobytes()), "<f8", field.shape)
    text = ShardValue("w1.shard", 4 + size, len(packed), zlib.crc32(packed), "bytes")
    damaged = ShardValue("w1.shard", 0, size, 1, "<f8", field.shape)
    outside = ShardValue("../../etc/passwd", 0, 5, 0, "bytes")
    run.add(
        done(0, large={"field": good, "@stdout": text}),
        done(1, large={"field": damaged}),
        done(2, large={"@stderr": outside}),
    )
    with finished(run) as file:
        assert (file["results/field"][0] == field).all()
        assert np.isnan(file["results/field"][1]).all()
        offset, length = (file[f"attempts/stdout_kept_{part}"][0] for part in ("offset", "bytes"))
        assert file["output/stdout"][offset : offset + length].tobytes() == log
        assert file["attempts/stdout_kept_offset"][1] == -1
        assert "w1.shard at byte 0" in file.attrs["unreadable_shards"]
    assert folder.exists()  # it still holds what could not be read
    readable(run.output)


def test_a_shard_that_is_not_visible_yet_is_waited_for(tmp_path: Path) -> None:
    import time

    run = Run(tmp_path, 2).add(joined())
    value = ShardValue("w1", 0, 8, zlib.crc32(b"\0" * 8), "<f8", (1,))
    late = done(0, large={"u": value})
    late = type(late)(late.worker, late.report, late.state, time.time())
    run.add(late, done(1))
    fold(run.output, run.journal, Columns(2), final=False)
    with h5py.File(run.output, "r") as file:
        assert file["attempts/attempt"].shape == (0,)
    shards_path(run.output).mkdir()
    (shards_path(run.output) / "w1").write_bytes(b"\0" * 8)
    fold(run.output, run.journal, Columns(2), final=False)
    with finished(run) as file:
        assert file["results/u"][0, 0] == 0.0
        assert file["attempts/attempt"].shape == (2,)


def test_kept_output_is_plain_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_PIECE_BYTES", 50_000)
    run = Run(tmp_path, 4).add(joined())
    outputs = [b"first\n", b"", os.urandom(500_000), b"\0\xff" * 10]
    for index, data in enumerate(outputs):
        run.add(done(index, packed={"@stdout": zlib.compress(data), "@stderr": b"not zlib"}))
        fold(run.output, run.journal, Columns(4), final=False)
    with finished(run) as file:
        for index, data in enumerate(outputs):
            offset = file["attempts/stdout_kept_offset"][index]
            length = file["attempts/stdout_kept_bytes"][index]
            assert file["output/stdout"][offset : offset + length].tobytes() == data
        assert file["attempts/stderr_kept_bytes"][:].tolist() == [0] * 4
    readable(run.output)


# ----------------------------------------------------------------- other readers


def readable(path: Path) -> None:
    """The file is valid for every reader there is here."""
    import xarray

    for engine in ("h5netcdf", "netcdf4"):
        tree = xarray.open_datatree(path, engine=engine)
        tree.load()
        tree.close()
    for command in (["ncdump", "-h", str(path)], ["h5dump", "-H", str(path)]):
        if shutil.which(command[0]):
            done_process = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done_process.returncode == 0, done_process.stderr


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_sees_labelled_arrays(tmp_path: Path, engine: str) -> None:
    import xarray

    run = Run(tmp_path, 3).add(
        joined(),
        done(0, scalars={"n": 1, "ok": True, "x": 1.5, "word": "a"}, arrays={"u": array([[1, 2]])}),
        done(1, scalars={"n": 2, "ok": False, "word": "b"}),
    )
    finished(run).close()
    with xarray.open_datatree(run.output, engine=engine) as tree:
        assert tree["task"].values.tolist() == [0, 1, 2]
        assert tree["params/mesh_size"].values.tolist() == [0, 8, 16]
        assert tree["params/fine"].dtype == bool
        assert tree["params/fine"].values.tolist() == [False, True, False]
        assert tree["params/label"].values.tolist() == ["p0", "p1", "p2"]
        assert tree["results/u"].dims == ("task", "u_d1", "u_d2")
        np.testing.assert_array_equal(tree["results/n"].values, [1, 2, np.nan])
        np.testing.assert_array_equal(tree["results/ok"].values, [1, 0, np.nan])
        np.testing.assert_array_equal(tree["results/x"].values, [1.5, np.nan, np.nan])
        assert tree["results/word"].values.tolist() == ["a", "b", ""]
        assert tree["tasks/started"].values[0] == np.datetime64("2023-11-14T22:13:20")
        assert np.isnat(tree["tasks/started"].values[2])
        assert tree["tasks/duration_s"].values[:2].tolist() == [0.5, 0.5]
        assert tree["attempts"].sizes["attempt"] == 2
        assert tree["workers/host"].values.tolist() == ["n1"]
    with xarray.open_dataset(run.output, group="results", engine=engine) as results:
        assert results.sizes["task"] == 3


@pytest.mark.parametrize("tool", ["ncdump", "h5dump"])
def test_command_line_readers(tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    run = Run(tmp_path, 2).add(joined(), done(0), given((1, 1)))
    fold(run.output, run.journal, Columns(2), final=False)
    flag = {"ncdump": "-h", "h5dump": "-H"}[tool]
    for _ in range(2):
        shown = subprocess.run([tool, flag, str(run.output)], capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stderr
        assert "mesh_size" in shown.stdout
        finished(run).close() if run.journal.exists() else None
    if tool == "ncdump":
        assert "int64 mesh_size(task) ;" in shown.stdout
        assert 'duration_s:units = "s" ;' in shown.stdout
        whole = subprocess.run([tool, str(run.output)], capture_output=True, text=True, check=False)
        assert whole.returncode == 0, whole.stderr


def test_every_reference_in_the_file_holds(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).add(joined(), done(0, scalars={"x": 1}), given((2, 1)))
    fold(run.output, run.journal, Columns(3), final=False)
    run.add(done(1, scalars={"x": 1.5}, arrays={"u": array([1], "<i8")}))  # promotes x
    fold(run.output, run.journal, Columns(3), final=False)
    run.add(done(2, scalars={"x": "s"}, arrays={"u": array([1.5])}))
    with finished(run) as file:
        scales: list[h5py.Dataset] = []
        file.visititems(lambda name, item: scales.append(item) if "REFERENCE_LIST" in item.attrs else None)
        assert {scale.name for scale in scales} >= {"/task", "/attempts/attempt", "/results/u_d1"}
        for scale in scales:
            for reference, _axis in scale.attrs["REFERENCE_LIST"]:
                assert reference
                target = file[reference]
                assert target.name is not None
                assert any(scale.id in [s.id for s in dim.values()] for dim in target.dims)
        for item in [
            item for group in file.values() if isinstance(group, h5py.Group) for item in group.values()
        ]:
            if item.attrs.get("CLASS") != b"DIMENSION_SCALE":
                assert all(len(dim) == 1 for dim in item.dims), item.name


# ----------------------------------------------------------- not ours, not now


def test_what_is_not_ours_is_refused_and_untouched(tmp_path: Path) -> None:
    run = Run(tmp_path, 1).add(joined(), done(0))
    run.output.write_text("my notes")
    with pytest.raises(OutputError, match="not HDF5"):
        fold(run.output, run.journal, Columns(1), final=False)
    assert run.output.read_text() == "my notes"
    run.output.unlink()
    with h5py.File(run.output, "w") as file:
        file["data"] = [1, 2, 3]
    before = run.output.read_bytes()
    with pytest.raises(OutputError, match="did not make"):
        fold(run.output, run.journal, Columns(1), final=False)
    assert run.output.read_bytes() == before
    with h5py.File(run.output, "r+") as file:
        file.attrs.update({"format": "keystone_mpi", "format_version": 99})
    with pytest.raises(OutputError, match="newer keystone_mpi; upgrade"):
        fold(run.output, run.journal, Columns(1), final=False)
    run.output.unlink()
    other = Run(tmp_path, 1, name="other.h5", run_id="run-2")
    fold(other.output, other.journal, Columns(1), final=False)
    shutil.copy(other.output, run.output)
    with pytest.raises(OutputError, match="run-2"):
        fold(run.output, run.journal, Columns(1), final=False)
    assert not [path for path in tmp_path.iterdir() if ".next-" in path.name]


def test_a_damaged_file_is_rebuilt_while_the_journal_holds_everything(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).add(joined(), done(0), done(1))
    fold(run.output, run.journal, Columns(3), final=False)
    os.truncate(run.output, 1000)
    run.add(done(2))
    with finished(run) as file:
        assert file["tasks/state"][:].tolist() == [2, 2, 2]
        assert file["params/mesh_size"][:].tolist() == [0, 8, 16]
    assert (tmp_path / "run.h5.damaged").stat().st_size == 1000


def test_the_mode_of_the_file_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, 2).add(joined(), done(0))
    fold(run.output, run.journal, Columns(2), final=False)
    run.output.chmod(0o640)
    run.add(done(1))
    fold(run.output, run.journal, None, final=False)
    assert run.output.stat().st_mode & 0o777 == 0o640


def test_a_reader_that_holds_the_file_open_sees_its_generation_and_stops_nobody(tmp_path: Path) -> None:
    run = Run(tmp_path, 2).add(joined(), done(0))
    fold(run.output, run.journal, Columns(2), final=False)
    with h5py.File(run.output, "r", locking=True) as held:
        run.add(done(1))
        assert fold(run.output, run.journal, None, final=False).changed
        assert held["tasks/state"][:].tolist() == [2, 0]
    with h5py.File(run.output, "r", locking=True) as file:
        assert file["tasks/state"][:].tolist() == [2, 2]


def test_without_copy_file_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    run = Run(tmp_path, 2).add(joined(), done(0))
    fold(run.output, run.journal, Columns(2), final=False)
    run.add(done(1))
    with finished(run) as file:
        assert file["tasks/state"][:].tolist() == [2, 2]


def test_temps_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    run = Run(tmp_path, 1).add(joined(), done(0))
    child = subprocess.Popen(["true"])
    child.wait()
    prefix = f".run.h5.next-{generation._machine()}"
    dead = tmp_path / f"{prefix}-{child.pid}-aa"
    live = tmp_path / f"{prefix}-{os.getppid()}-bb"
    alien = tmp_path / ".run.h5.next-elsewhere-1-cc"
    old = tmp_path / ".run.h5.next-elsewhere-2-dd"
    for path in (dead, live, alien, old):
        path.touch()
    os.utime(old, (T0, T0))
    fold(run.output, run.journal, Columns(1), final=False)
    assert not dead.exists()
    assert not old.exists()
    assert live.exists()
    assert alien.exists()


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from written_runs import Columns
from keystone_mpi.core.errors import ClusterError
from keystone_mpi.records.store import fold
output = Path(sys.argv[1])
import keystone_mpi.records.store.folding
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    print(fold(output, Path(str(output) + ".journal"), Columns(2000), final=False).changed)
except ClusterError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [1, 4096, 100_000, 500_000, 2_000_000])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, limit: int) -> None:
    import sys

    run = Run(tmp_path, 2000).add(joined(), done(0))
    fold(run.output, run.journal, Columns(2000), final=False)
    before = run.output.read_bytes()
    run.add(*(done(index, stdout_tail="x" * 1000) for index in range(1, 2000)))
    script = LIMITED.format(tests=str(Path(__file__).parent))
    child = subprocess.run(
        [sys.executable, "-c", script, str(run.output), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert str(run.output) in child.stdout
    assert "File too large" in child.stdout
    assert run.output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.h5", "run.h5.journal"]
    with finished(run) as file:
        assert (file["tasks/state"][:] == 2).all()


def test_a_disk_that_cannot_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, 2).add(joined(), done(0))
    fold(run.output, run.journal, Columns(2), final=False)
    before = run.output.read_bytes()
    run.add(done(1))

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(ClusterError, match="Input/output error"):
            fold(run.output, run.journal, None, final=False)
    assert run.output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.h5", "run.h5.journal"]


# ---------------------------------------------------------------- many starts


def test_a_continued_run_appends(tmp_path: Path) -> None:
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
        opened=T0 + 500,
        spec=b'{"new": 1}',
        fingerprint={"argv": "bb"},
    )
    second.add(
        joined(1, "new"), TaskEnded(1, TaskState.PENDING, Why.NONE, "", T0), done(1, 2), done(2), done(4)
    )
    fold(second.output, second.journal, Columns(2, base=3), final=False)
    second.add(done(3), closed()).stop()
    fold(second.output, second.journal, None, final=True)
    finish(second.output)
    with h5py.File(second.output, "r") as file:
        assert file["tasks/state"][:].tolist() == [2] * 5
        assert file["tasks/submitted"][:].tolist() == [T0] * 3 + [T0 + 500] * 2
        assert file["params/mesh_size"][:].tolist() == [0, 8, 16, 24, 32]
        assert texts(file["task_id"]) == list("01234")
        assert file["attempts/epoch"][:].tolist() == [1, 1, 2, 2, 2, 2]
        assert file["attempts/worker"][:].tolist() == [0, 0, 1, 1, 1, 1]
        assert texts(file["workers/host"]) == ["old", "new"]
        assert file["spec"].asstr()[()] == '{"new": 1}'
        assert file["fingerprint"].asstr()[()] == '{"argv":"bb"}'
        assert file.attrs["created"] == T0
        assert texts(file["tasks/error"]) == [""] * 5
    readable(second.output)


def test_a_journal_without_its_base_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, 3, epoch=2, base_generation="gone", base_task_count=3, added_points=[])
    with pytest.raises(OutputError, match="is missing"):
        fold(run.output, run.journal, None, final=False)
    other = Run(tmp_path, 3, name="b.h5")
    fold(other.output, other.journal, Columns(3), final=False)
    shutil.copy(other.output, run.output)
    with pytest.raises(OutputError, match="not the file that its journal continues"):
        fold(run.output, run.journal, None, final=False)


def test_the_fold_of_a_master_that_was_replaced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, 3).add(joined(), done(0))
    with acquire(run.output, run_id="run-1", epoch=2):
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with pytest.raises(LeaseHeldError, match="epoch 2"):
            fold(run.output, run.journal, Columns(3), final=False)
    assert not run.output.exists()


def test_somebody_else_replacing_the_file_meanwhile_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, 3).add(joined(), done(0))
    fold(run.output, run.journal, Columns(3), final=False)
    run.add(done(1))
    real = os.fsync

    def intruder(descriptor: int) -> None:
        os.replace(shutil.copy(run.output, tmp_path / "copy"), run.output)
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", intruder)
        with pytest.raises(ClusterError, match="replaced by somebody else"):
            fold(run.output, run.journal, None, final=False)
    assert fold(run.output, run.journal, None, final=False).changed


def test_finish_refuses_before_the_final_fold(tmp_path: Path) -> None:
    run = Run(tmp_path, 3).add(joined(), done(0))
    with pytest.raises(InternalError, match="before the final fold"):
        finish(run.output)
    fold(run.output, run.journal, Columns(3), final=False)
    with pytest.raises(InternalError, match="before the final fold"):
        finish(run.output)
    fold(run.output, run.journal, None, final=True)
    run.add(done(1))
    with pytest.raises(InternalError, match="does not hold all"):
        finish(run.output)
    assert run.journal.exists()


def test_an_empty_journal_folds_to_nothing(tmp_path: Path) -> None:
    result = fold(tmp_path / "run.h5", tmp_path / "run.h5.journal", None, final=False)
    assert not result.changed
    assert result.generation == ""
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_of_no_tasks(tmp_path: Path) -> None:
    run = Run(tmp_path, 0, added_points=[])
    with finished(run) as file:
        assert file["tasks/state"].shape == (0,)
    readable(run.output)


def test_parameters_are_asked_for_by_bounded_slices(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    class Watched(Columns):
        def columns(self, start_row: int, stop_row: int) -> Any:
            asked.append((start_row, stop_row))
            return super().columns(start_row, stop_row)

    run = Run(tmp_path, 150_000).add(joined(), done(149_999))
    fold(run.output, run.journal, Watched(150_000), final=False)
    run.add(done(1))
    fold(run.output, run.journal, Watched(150_000), final=False)
    assert asked == [(0, 65_536), (65_536, 131_072), (131_072, 150_000)]
    with h5py.File(run.output, "r") as file:
        assert file["params/mesh_size"][149_999] == 149_999 * 8
        assert file["task_id"].asstr()[149_999] == "149999"
        assert file["tasks/state"][149_999] == 2


def test_importing_the_store_does_not_import_h5py() -> None:
    import sys

    code = (
        "import sys, keystone_mpi.records.store, keystone_mpi.records.view; sys.exit('h5py' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
