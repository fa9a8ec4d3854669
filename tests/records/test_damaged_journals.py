"""Journals with more behind their last entry than a kill leaves there, and values that do not come."""

from __future__ import annotations

import builtins
import time
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from written_runs import Columns, Run, closed, done, given, joined, make_columns

from keystone_mpi.core.errors import ClusterError
from keystone_mpi.core.model import AttemptReport, ShardValue
from keystone_mpi.engine.store_process import Folder
from keystone_mpi.records.entries import AttemptEnded, Entry
from keystone_mpi.records.journal import HEADER_BYTES, read_journal
from keystone_mpi.records.journal_rest import Rest, damaged_path, rest_behind
from keystone_mpi.records.lease import acquire
from keystone_mpi.records.store import finish, fold
from keystone_mpi.records.store.shards import shards_path
from keystone_mpi.records.view import open_view, recover

STORY: list[Entry] = [joined(), given((0, 1), (1, 1), (2, 1)), done(0), done(1), done(2), closed()]


def written(folder: Path, entries: list[Entry]) -> tuple[Run, list[int]]:
    """A dead run, and the end of each of its entries (the opening first)."""
    run = Run(folder, 3).add(*entries).stop()
    return run, [end for end, _entry in read_journal(run.journal)]


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def read_to(path: Path) -> int:
    return max((end for end, _entry in read_journal(path)), default=0)


def test_a_cut_at_any_byte_is_a_torn_tail(tmp_path: Path) -> None:
    run, ends = written(tmp_path, STORY)
    data = run.journal.read_bytes()
    for size in range(ends[0], len(data) + 1):
        run.journal.write_bytes(data[:size])
        expected = Rest.NOTHING if size in ends else Rest.TORN
        assert rest_behind(run.journal, read_to(run.journal))[0] is expected, size


@pytest.mark.parametrize("zeros", [1, 7, 8, 4096])
def test_zeros_are_what_a_power_loss_leaves(tmp_path: Path, zeros: int) -> None:
    run, _ends = written(tmp_path, STORY)
    with open(run.journal, "ab") as file:
        file.write(bytes(zeros))
    assert rest_behind(run.journal, read_to(run.journal)) == (Rest.TORN, zeros)


def test_any_flipped_bit_is_damage(tmp_path: Path) -> None:
    run, ends = written(tmp_path, STORY)
    data = run.journal.read_bytes()
    for place in range(HEADER_BYTES, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        run.journal.write_bytes(damaged)
        stop = read_to(run.journal)
        assert stop == max((end for end in ends if end <= place), default=0)
        assert rest_behind(run.journal, stop)[0] is Rest.DAMAGED, place


def test_frames_behind_damage_are_found_across_read_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keystone_mpi.records.journal_rest._READ_BYTES", 13)
    run, ends = written(tmp_path, STORY)
    flip(run.journal, ends[0] + 2, 7)  # its length reaches far behind the end now
    assert rest_behind(run.journal, ends[0])[0] is Rest.DAMAGED
    assert rest_behind(run.journal, ends[1])[0] is Rest.ENTRIES


def test_one_flipped_bit_keeps_what_lies_behind_it(tmp_path: Path) -> None:
    run, ends = written(tmp_path, STORY)
    flip(run.journal, ends[2] + 20)  # in the first task's entry
    data = run.journal.read_bytes()
    told: list[str] = []
    assert recover(run.output, make_columns, notice=told.append)
    assert len(told) == 1
    assert f"run.h5.journal is damaged at byte {ends[2]:,}" in told[0]
    assert "kept as run.h5.journal.damaged" in told[0]
    assert damaged_path(run.output).read_bytes() == data
    assert not run.journal.exists()
    with open_view(run.output) as view:
        assert view.phase == "interrupted"
        assert view.states.tolist() == [0, 0, 0]
        assert view.lost == ["run.h5.journal.damaged holds records that could not be read"]
    with acquire(run.output, run_id="run-1", epoch=2) as lease:  # and the next one does not take its name
        with h5py.File(run.output, "r") as file:
            generation = str(file.attrs["generation"])
        again = Run(tmp_path, 3, epoch=2, base_generation=generation, base_task_count=3, added_points=[])
        again.add(joined(), done(0), done(1)).stop()
        flip(again.journal, again.journal.stat().st_size - 1)
        assert recover(run.output, make_columns, lease=lease, notice=told.append)
    assert "kept as run.h5.journal.damaged.2" in told[1]
    assert damaged_path(run.output).read_bytes() == data


def test_a_damaged_first_entry_is_not_thrown_away(tmp_path: Path) -> None:
    run, _ends = written(tmp_path, STORY)
    flip(run.journal, HEADER_BYTES + 30)
    told: list[str] = []
    assert not recover(run.output, make_columns, notice=told.append)
    assert len(told) == 1
    assert damaged_path(run.output).exists()


def test_a_torn_tail_goes_with_the_journal(tmp_path: Path) -> None:
    run, ends = written(tmp_path, STORY)
    run.journal.write_bytes(run.journal.read_bytes()[: ends[3] + 30])
    told: list[str] = []
    assert recover(run.output, make_columns, notice=told.append)
    assert told == []
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_fold_tells_whether_it_saw_the_close(tmp_path: Path) -> None:
    run, ends = written(tmp_path, STORY)
    whole = run.journal.read_bytes()
    flip(run.journal, ends[3] + 20)
    assert not fold(run.output, run.journal, Columns(3), final=True).closed
    run.output.unlink()
    run.journal.write_bytes(whole)
    assert fold(run.output, run.journal, Columns(3), final=True).closed
    assert fold(run.output, run.journal, None, final=True).closed  # unchanged


def test_the_last_batch_of_a_damaged_journal_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keystone_mpi.engine.store_process.columns_from_spec", make_columns)
    run, ends = written(tmp_path, STORY)
    whole = run.journal.read_bytes()
    flip(run.journal, ends[3] + 20)
    result = Folder(run.output).fold(final=True)
    assert f"run.h5.journal is damaged at byte {ends[3]:,}" in result.problem
    assert run.journal.exists()
    run.output.unlink()
    run.journal.write_bytes(whole)
    assert Folder(run.output).fold(final=True).problem == ""
    assert not run.journal.exists()


# ----------------------------------------------------------------- large values

FIELD = np.arange(1000.0)
VALUE = ShardValue("w1.shard", 0, FIELD.nbytes, zlib.crc32(FIELD.tobytes()), FIELD.dtype.str, (len(FIELD),))


def with_shard(folder: Path, value: ShardValue = VALUE) -> Run:
    run = Run(folder, 2).add(joined(), done(0, large={"u": value}), done(1), closed()).stop()
    shards_path(run.output).mkdir()
    (shards_path(run.output) / "w1.shard").write_bytes(FIELD.tobytes())
    return run


def break_shards(patch: pytest.MonkeyPatch) -> None:
    real = builtins.open

    def broken(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(".shard"):
            raise OSError(5, "Input/output error")
        return real(path, *arguments, **options)

    patch.setattr(builtins, "open", broken)


@pytest.mark.parametrize("final", [True, False])
def test_a_disk_that_does_not_give_a_value_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, final: bool
) -> None:
    run = with_shard(tmp_path)
    with monkeypatch.context() as patch:
        break_shards(patch)
        with pytest.raises(
            ClusterError, match=r"w1\.shard: the value at byte 0 cannot be read: Input/output"
        ):
            fold(run.output, run.journal, Columns(2), final=final)
        with pytest.raises(ClusterError, match="the same command again continues"):
            recover(run.output, make_columns)
        assert run.journal.exists()
        with open_view(run.output, make_columns) as view:  # looking goes on, without that value
            assert view.counts().completed == 2
            assert "u" not in view.task(0).results
    assert recover(run.output, make_columns)
    with h5py.File(run.output, "r") as file:
        assert (file["results/u"][0] == FIELD).all()
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]


def test_a_damaged_value_is_told_and_its_shard_kept(tmp_path: Path) -> None:
    run = with_shard(tmp_path, ShardValue("w1.shard", 0, FIELD.nbytes, 1, FIELD.dtype.str, (len(FIELD),)))
    told: list[str] = []
    assert recover(run.output, make_columns, notice=told.append)
    assert len(told) == 1
    assert "1 large value is missing or damaged in run.h5.shards" in told[0]
    assert "w1.shard at byte 0" in told[0]
    assert shards_path(run.output).exists()
    with open_view(run.output) as view:
        assert view.lost == told


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    run = with_shard(tmp_path)
    (shards_path(run.output) / "w1.shard").unlink()
    fold(run.output, run.journal, Columns(2), final=True)
    assert len(finish(run.output)) == 1


def test_a_young_value_that_is_not_visible_yet_is_not_given_up_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, 2).add(joined())
    ended = done(0, large={"u": VALUE})
    report: AttemptReport = ended.report
    run.add(AttemptEnded(1, report, ended.state, time.time()), done(1), closed()).stop()
    with pytest.raises(ClusterError, match="task 0 wrote there cannot be seen yet"):
        fold(run.output, run.journal, Columns(2), final=True)
    assert not run.output.exists()
    monkeypatch.setattr("keystone_mpi.records.store.folding._SHARD_PATIENCE_S", 0.0)
    assert recover(run.output, make_columns)
