"""The fold: present file + journal -> next generation.

Rule: the journal is streamed in batches of bounded size, and every batch lands
in the private copy. Only a copy that holds everything up to one journal offset,
closed without an error, is published. Folding twice is the same as folding once.

    inspect OUT --> nothing new? unchanged
              '---> copy --> [begin epoch] --> batches --> attributes --> close --> publish
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TypeGuard

import h5py
import msgspec

from keystone_mpi.core.errors import ClusterError, InternalError, LeaseHeldError, OutputError
from keystone_mpi.records.entries import AttemptEnded, Entry, RunOpened
from keystone_mpi.records.journal import journal_path as journal_of
from keystone_mpi.records.journal import read_head, read_journal, sync_folder
from keystone_mpi.records.journal_rest import set_damaged_aside
from keystone_mpi.records.lease import read_lease
from keystone_mpi.records.store import ColumnSource, FoldResult, hdf5
from keystone_mpi.records.store.applying import OpenFile
from keystone_mpi.records.store.generation import Generation, remove_stale
from keystone_mpi.records.store.inspecting import Present, inspect, read_in_flight, reason_of
from keystone_mpi.records.store.shards import ShardReader, describe_lost, shards_path
from keystone_mpi.records.tail import Tail, without_gc

BATCH_ENTRIES = 20_000
BATCH_BYTES = 64 << 20
_SHARD_PATIENCE_S = 60.0
"""A value that is not yet visible in its shard (network file systems) is waited for this long."""


def fold(output_path: Path, journal_path: Path, columns: ColumnSource | None, *, final: bool) -> FoldResult:
    """Make the next generation; see `keystone_mpi.records.store.fold`."""
    began = time.monotonic()
    head = read_head(journal_path)
    present = _usable(output_path, head)
    if head is None:
        return _unchanged(output_path, present, began)
    _check_lease(output_path, head)
    offset = present.journal_offset if present and present.journal_epoch == head.epoch else 0
    if present and present.journal_epoch == head.epoch:
        settled = present.state != "running"
        if (settled or not final) and next(read_journal(journal_path, offset), None) is None:
            return _unchanged(output_path, present, began)
    with Generation(output_path, from_present=present is not None) as generation:
        file: h5py.File | None = None
        try:
            file = (hdf5.open_copy if present else hdf5.open_new)(generation.path)
            work = _Fold(file, head, present, output_path)
            with without_gc():
                work.run(journal_path, offset, columns, final)
            file.close()
            file = None
        except (OSError, RuntimeError) as error:
            raise ClusterError(
                f"{output_path} cannot be written: {reason_of(error)}; it is unchanged"
            ) from error
        finally:
            if file is not None:
                _close_anyway(file)
        _check_lease(output_path, head)
        generation.publish()
    return FoldResult(
        generation=work.generation,
        journal_offset=work.offset,
        entries=work.entries,
        attempts=work.attempts,
        state=work.state,
        file_bytes=os.stat(output_path).st_size,
        elapsed_s=time.monotonic() - began,
        closed=work.closed,
        changed=True,
    )


class _Fold:
    """One fold into an open private copy."""

    def __init__(self, file: h5py.File, head: RunOpened, present: Present | None, output_path: Path) -> None:
        self.file = file
        self.head = head
        self.generation = os.urandom(16).hex()
        self.offset = 0
        self.entries = 0
        self.attempts = 0
        self.state = "running"
        self.closed = False
        self._fresh_epoch = present is None or present.journal_epoch != head.epoch
        self._output_path = output_path
        self._shards = ShardReader(output_path)
        self._opened = OpenFile(file, head, self._shards)
        self._tail = Tail()
        if present is not None and not self._fresh_epoch:
            self._tail.in_flight = read_in_flight(file)
            if present.closed_state:
                self._tail.close_with(present.closed_state, present.closed_reason)

    def run(self, journal_path: Path, offset: int, columns: ColumnSource | None, final: bool) -> None:
        if self._fresh_epoch:
            self._opened.begin_epoch(columns)
        self._read(journal_path, offset, patient=not final)
        closed = self._tail.closed
        self.closed = closed is not None
        if final and closed is None:
            self._tail.interrupt_in_flight(time.time())
        self._apply()
        self._opened.close_output()
        if final:
            self._opened.settle()
            if closed is not None:
                self.state = closed.state
            else:
                self.state = "complete" if self._opened.all_final() else "interrupted"
        else:
            self._opened.write_in_flight(self._tail)
        file = self.file
        hdf5.set_text(file, "state", self.state)
        hdf5.set_text(file, "state_reason", hdf5.clean_text(closed.reason) if closed else "")
        hdf5.set_text(file, "closed_state", closed.state if closed else "")
        hdf5.set_text(file, "generation", self.generation)
        file.attrs["journal_epoch"] = self.head.epoch
        file.attrs["journal_offset"] = self.offset
        if self._shards.unreadable:
            known = hdf5.attribute(self.file, "unreadable_shards")
            lost = (msgspec.json.decode(known) if known else []) + self._shards.unreadable
            hdf5.set_text(file, "unreadable_shards", msgspec.json.encode(lost[:1000]).decode())

    def _read(self, journal_path: Path, offset: int, *, patient: bool) -> None:
        self.offset = batch_start = offset
        for end, entry in read_journal(journal_path, offset):
            if self._must_wait(entry):
                if patient:
                    break
                raise ClusterError(
                    f"{shards_path(self._output_path)}: a value that task {entry.report.index} wrote there "
                    f"cannot be seen yet (it is waited for {_SHARD_PATIENCE_S:.0f} s; the same command again "
                    "continues)"
                )
            self._tail.add(entry)
            self.offset = end
            if self._tail.entries >= BATCH_ENTRIES or end - batch_start >= BATCH_BYTES:
                self._apply()
                batch_start = end

    def _must_wait(self, entry: Entry) -> TypeGuard[AttemptEnded]:
        return (
            isinstance(entry, AttemptEnded)
            and bool(entry.report.large)
            and not self._shards.has_all(entry.report)
            and time.time() - entry.recorded < _SHARD_PATIENCE_S
        )

    def _apply(self) -> None:
        self.entries += self._tail.entries
        self.attempts += self._opened.apply(self._tail)
        self._tail.clear()


def finish(output_path: Path) -> list[str]:
    """Remove what a finished run needs no more; see `keystone_mpi.records.store.finish`."""
    journal_path = journal_of(output_path)
    present = inspect(output_path)
    if present is None or present.state == "running":
        raise InternalError(f"{output_path}: the journal may not go before the final fold")
    head = read_head(journal_path)
    missing: list[str] = []
    damage = ""
    if head is not None:
        offset = present.journal_offset if present.journal_epoch == head.epoch else 0
        if present.journal_epoch < head.epoch or next(read_journal(journal_path, offset), None) is not None:
            raise InternalError(f"{output_path} does not hold all of {journal_path}")
        damage = set_damaged_aside(output_path, offset)
        if damage:
            missing.append(damage)
    output_path.with_name(output_path.name + ".drain").unlink(missing_ok=True)
    remove_stale(output_path)
    with hdf5.open_reader(output_path) as file:
        lost = describe_lost(output_path, hdf5.attribute(file, "unreadable_shards"))
    if lost:
        missing.append(lost)
    if not missing:
        shutil.rmtree(shards_path(output_path), ignore_errors=True)
    if not damage:
        journal_path.unlink(missing_ok=True)
    sync_folder(output_path.parent)
    return missing


def _usable(output_path: Path, head: RunOpened | None) -> Present | None:
    """Inspect the present file and hold that it and the journal belong together."""
    try:
        present = inspect(output_path)
    except ClusterError:
        if head is None or head.base_generation:
            raise
        # Damaged from outside, and the journal holds everything: set it aside and make it anew.
        os.replace(output_path, output_path.with_name(output_path.name + ".damaged"))
        present = None
    if head is None:
        return present
    if present is None:
        if head.base_generation:
            raise OutputError(
                f"{output_path} is missing, and its journal holds only what came after it; put the file back"
            )
        return None
    if present.run_id != head.run_id:
        raise OutputError(
            f"{output_path} is of run {present.run_id}, the journal beside it of run {head.run_id}; "
            "move one of them away"
        )
    if present.journal_epoch > head.epoch:
        raise LeaseHeldError(
            f"{output_path} belongs to start {present.journal_epoch} of its run by now, "
            f"this is start {head.epoch}"
        )
    if present.journal_epoch < head.epoch and present.generation != head.base_generation:
        raise OutputError(f"{output_path} is not the file that its journal continues; put that file back")
    return present


def _check_lease(output_path: Path, head: RunOpened) -> None:
    """Stop a fold on behalf of a master that was replaced."""
    lease = read_lease(output_path)
    if lease is not None and lease.epoch > head.epoch and lease.pid != os.getpid():
        raise LeaseHeldError(f"{output_path}: {lease.holder()} has taken the run over (epoch {lease.epoch})")


def _unchanged(output_path: Path, present: Present | None, began: float) -> FoldResult:
    return FoldResult(
        generation=present.generation if present else "",
        journal_offset=present.journal_offset if present else 0,
        entries=0,
        attempts=0,
        state=present.state if present else "running",
        file_bytes=os.stat(output_path).st_size if present else 0,
        elapsed_s=time.monotonic() - began,
        closed=bool(present and present.closed_state),
        changed=False,
    )


def _close_anyway(file: h5py.File) -> None:
    """Close a copy that will be thrown away."""
    try:
        file.close()
    except (OSError, RuntimeError):
        pass  # the error that brought us here is the one to tell
