"""The journal: everything before a cut is read back, nothing is invented after it."""

from __future__ import annotations

import errno
import math
import os
import random
import struct
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone_mpi.core.errors import ClusterError, OutputError
from keystone_mpi.core.model import ArrayValue, AttemptReport, Outcome, TaskState, Why
from keystone_mpi.records.entries import (
    AttemptEnded,
    AttemptStarted,
    Entry,
    RunClosed,
    RunOpened,
    TaskEnded,
    TasksAssigned,
    WorkerJoined,
    WorkerLeft,
)
from keystone_mpi.records.journal import HEADER, HEADER_BYTES, MAGIC, JournalWriter, read_head, read_journal


def opened() -> RunOpened:
    return RunOpened(
        format_version=1,
        run_id="r1",
        epoch=1,
        opened=1.5,
        created=1.0,
        task_count=3,
        base_generation="",
        base_task_count=0,
        added_points=[(0, 3)],
        spec=b"{}",
        sweep_text="[sweep]",
        sweep_name="demo",
        fingerprint={"argv": "ab"},
        provenance={"python": "3.11", "n": 1},
    )


def sample_entries() -> list[Entry]:
    report = AttemptReport(
        index=1,
        attempt=2,
        outcome=Outcome.FAILED,
        started=10.0,
        finished=11.0,
        duration_s=1.0,
        exit_code=3,
        why=Why.EXIT_CODE,
        stdout_tail="grüß\0 dich",
        error="exit code 3",
        scalars={"x": 1, "y": 2.5, "z": "t", "b": True, "none": None},
        arrays={"u": ArrayValue("<f8", (2,), b"\0" * 16)},
        packed={"@stdout": b"\x00\xff"},
        cpus=(0, 1),
    )
    return [
        opened(),
        WorkerJoined(worker=1, rank=1, host="n1", slots=2, memory_bytes=5, pid=7, at=2.0),
        TasksAssigned(worker=1, at=3.0, attempts=[(0, 1), (1, 1)]),
        AttemptStarted(worker=1, index=0, attempt=1, at=3.5),
        AttemptEnded(worker=1, report=report, state=TaskState.PENDING, recorded=11.5),
        TaskEnded(index=2, state=TaskState.CANCELLED, why=Why.BY_USER, error="", at=12.0),
        WorkerLeft(worker=1, why="goodbye", at=13.0),
        RunClosed(state="complete", reason="", at=14.0),
    ]


def write(path: Path, entries: list[Entry]) -> list[int]:
    """Write entries and return the offset behind each."""
    writer = JournalWriter(path, create=True)
    ends = []
    for entry in entries:
        writer.append(entry)
        ends.append(writer.flush())
    writer.close()
    return ends


def read(path: Path, offset: int = 0) -> list[Entry]:
    return [entry for _end, entry in read_journal(path, offset)]


def same(left: Entry, right: Entry) -> bool:
    """Equality that holds for NaN too."""
    return msgspec.msgpack.encode(left) == msgspec.msgpack.encode(right)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    entries = sample_entries()
    ends = write(tmp_path / "j", entries)
    got = list(read_journal(tmp_path / "j"))
    assert [end for end, _entry in got] == ends
    assert all(same(a, b) for (_end, a), b in zip(got, entries, strict=True))
    assert read_head(tmp_path / "j") == entries[0]


def test_reading_goes_on_from_any_offset_that_was_returned(tmp_path: Path) -> None:
    entries = sample_entries()
    ends = write(tmp_path / "j", entries)
    for position, end in enumerate(ends):
        assert len(read(tmp_path / "j", end)) == len(entries) - position - 1


def test_cut_at_every_byte_recovers_all_records_before_the_cut(tmp_path: Path) -> None:
    entries = sample_entries()
    ends = write(tmp_path / "whole", entries)
    data = (tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(data) + 1):
        cut.write_bytes(data[:size])
        expected = sum(end <= size for end in ends)
        assert len(read(cut)) == expected, size
        assert (read_head(cut) is not None) == (expected > 0)


def test_after_any_cut_a_writer_goes_on_where_the_records_end(tmp_path: Path) -> None:
    entries = sample_entries()
    ends = write(tmp_path / "whole", entries)
    data = (tmp_path / "whole").read_bytes()
    cut = tmp_path / "cut"
    last = RunClosed(state="interrupted", reason="again", at=1.0)
    for size in range(0, len(data) + 1, 3):
        cut.write_bytes(data[:size])
        writer = JournalWriter(cut, create=False)
        writer.append(last)
        writer.flush()
        writer.close()
        got = read(cut)
        assert len(got) == sum(end <= size for end in ends) + 1
        assert got[-1] == last


def test_flipped_bits_never_raise_and_never_change_what_lies_before(tmp_path: Path) -> None:
    entries = sample_entries()
    ends = write(tmp_path / "whole", entries)
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "flipped"
    encoded = [msgspec.msgpack.encode(entry) for entry in entries]
    for place in range(HEADER_BYTES, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        got = [msgspec.msgpack.encode(entry) for entry in read(path)]
        assert got == encoded[: sum(end <= place for end in ends)], place


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff" * 64, bytes(range(256)) * 40])
def test_garbage_at_the_tail_is_the_end(tmp_path: Path, tail: bytes) -> None:
    entries = sample_entries()
    write(tmp_path / "j", entries)
    with open(tmp_path / "j", "ab") as file:
        file.write(tail)
    assert len(read(tmp_path / "j")) == len(entries)


def test_a_missing_journal_is_empty_and_an_alien_one_is_refused(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == []
    assert read_head(tmp_path / "none") is None
    (tmp_path / "alien").write_bytes(b"PK\3\4 something else entirely")
    with pytest.raises(OutputError, match="is not a journal"):
        read(tmp_path / "alien")


def test_a_newer_format_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "newer").write_bytes(MAGIC + struct.pack("<I", 99))
    with pytest.raises(OutputError, match=r"newer keystone_mpi; upgrade"):
        read(tmp_path / "newer")
    payload = msgspec.msgpack.encode({"type": "from the future"})
    (tmp_path / "entry").write_bytes(HEADER + struct.pack("<II", len(payload), zlib.crc32(payload)) + payload)
    with pytest.raises(OutputError, match=r"newer keystone_mpi; upgrade"):
        read(tmp_path / "entry")


def test_creating_over_a_journal_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "j", sample_entries())
    with pytest.raises(ClusterError, match="exists already"):
        JournalWriter(tmp_path / "j", create=True)
    assert len(read(tmp_path / "j")) == len(sample_entries())
    with pytest.raises(ClusterError, match="No such file"):
        JournalWriter(tmp_path / "missing" / "j", create=True)


def test_frames_larger_than_a_read_block(tmp_path: Path) -> None:
    big = AttemptEnded(
        worker=0,
        report=AttemptReport(0, 1, Outcome.SUCCESS, packed={"@stdout": os.urandom(3_500_000)}),
        state=TaskState.SUCCESS,
        recorded=0.0,
    )
    entries: list[Entry] = [opened(), big, *sample_entries()[1:], big]
    write(tmp_path / "j", entries)
    assert all(same(a, b) for a, b in zip(read(tmp_path / "j"), entries, strict=True))
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data[:-1])
    assert len(read(tmp_path / "j")) == len(entries) - 1


def test_a_reader_follows_a_growing_journal(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j", create=True)
    offset, seen = 0, []
    for entry in sample_entries():
        writer.append(entry)
        writer.write()
        for end, got in read_journal(tmp_path / "j", offset):
            offset = end
            seen.append(got)
    writer.close()
    assert len(seen) == len(sample_entries())


def test_an_entry_that_cannot_be_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j", create=True)
    writer.append(opened())
    bad = AttemptEnded(
        0, AttemptReport(0, 1, Outcome.SUCCESS, scalars={"x": object()}), TaskState.SUCCESS, 0.0
    )
    with pytest.raises(TypeError):
        writer.append(bad)
    writer.append(sample_entries()[1])
    writer.flush()
    writer.close()
    assert len(read(tmp_path / "j")) == 2


def test_a_full_disk_keeps_whole_frames_and_the_rest_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = sample_entries()
    ends = write(tmp_path / "reference", entries)
    reference = (tmp_path / "reference").read_bytes()
    real = os.pwrite
    for room in range(HEADER_BYTES, len(reference)):
        path = tmp_path / f"j{room}"
        writer = JournalWriter(path, create=True)

        def limited(descriptor: int, data: memoryview, offset: int, room: int = room) -> int:
            if offset >= room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data[: room - offset], offset)

        for entry in entries:
            writer.append(entry)
        monkeypatch.setattr(os, "pwrite", limited)
        with pytest.raises(ClusterError, match=f"{path}.*No space left"):
            writer.flush()
        assert len(read(path)) == sum(end <= room for end in ends)
        assert path.stat().st_size == max([HEADER_BYTES, *(end for end in ends if end <= room)])
        monkeypatch.setattr(os, "pwrite", real)
        assert writer.flush() == len(reference)
        assert writer.bytes_pending == 0
        writer.close()
        assert path.read_bytes() == reference
        path.unlink()


def test_a_failed_sync_writes_the_same_bytes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter(tmp_path / "j", create=True)
    entries = sample_entries()
    writer.append(entries[0])
    first = writer.flush()

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for entry in entries[1:4]:
        writer.append(entry)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(ClusterError, match="cannot be synced: Input/output error"):
            writer.flush()
    assert writer.durable_offset == first
    os.truncate(tmp_path / "j", first)  # the kernel dropped the pages
    for entry in entries[4:]:
        writer.append(entry)
    writer.flush()
    writer.close()
    assert len(read(tmp_path / "j")) == len(entries)


scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=20), st.none()
)
reports = st.builds(
    AttemptReport,
    index=st.integers(0, 10**9),
    attempt=st.integers(1, 100),
    outcome=st.sampled_from(Outcome),
    started=st.floats(),
    duration_s=st.floats(),
    why=st.sampled_from(Why),
    stdout_tail=st.text(max_size=40),
    error=st.text(max_size=40),
    scalars=st.dictionaries(st.text(max_size=8), scalars, max_size=4),
    packed=st.dictionaries(st.just("@stdout"), st.binary(max_size=50)),
)
times = st.floats(allow_nan=False)
any_entry: st.SearchStrategy[Entry] = st.one_of(
    st.builds(AttemptEnded, worker=st.integers(0, 9), report=reports, state=st.sampled_from(TaskState),
              recorded=times),
    st.builds(TaskEnded, index=st.integers(0, 9), state=st.sampled_from(TaskState), why=st.sampled_from(Why),
              error=st.text(), at=times),
    st.builds(TasksAssigned, worker=st.integers(0, 9), at=times,
              attempts=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)))),
    st.builds(WorkerLeft, worker=st.integers(0, 9), why=st.text(), at=times),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(any_entry, max_size=12), st.randoms(use_true_random=False))
def test_any_entries_any_cut(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], rng: random.Random
) -> None:
    path = tmp_path_factory.mktemp("any") / "j"
    ends = write(path, entries)
    got = read(path)
    assert len(got) == len(entries)
    assert all(same(a, b) for a, b in zip(got, entries, strict=True))
    size = rng.randint(0, path.stat().st_size)
    os.truncate(path, size)
    assert len(read(path)) == sum(end <= size for end in ends)
    path.unlink()


def test_nan_survives(tmp_path: Path) -> None:
    report = AttemptReport(0, 1, Outcome.INTERRUPTED)
    write(tmp_path / "j", [AttemptEnded(0, report, TaskState.PENDING, 0.0)])
    (entry,) = read(tmp_path / "j")
    assert isinstance(entry, AttemptEnded)
    assert math.isnan(entry.report.started)
