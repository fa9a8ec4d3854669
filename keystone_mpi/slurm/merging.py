"""Merging: the files of an array's elements become one file, as a single run would have made it.

Rule: the merge is itself a start of the run: it takes the lease, writes a
journal and folds it, so that it may die at any moment and be run again. What
NAME.h5 holds already is not added twice; a task that succeeded there is left
alone. No shard is changed.

    NAME.shard-i-of-N.h5 --replay, rows translated--> journal of NAME.h5 --fold--> NAME.h5
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keystone_mpi.core.errors import ClusterError, LeaseHeldError, OutputError, UserError
from keystone_mpi.core.model import TaskState
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.engine.session import Session, SessionOptions, open_session
from keystone_mpi.records.lease import lease_path
from keystone_mpi.records.view import open_view, recover
from keystone_mpi.slurm.allocation import job_is_gone
from keystone_mpi.slurm.arrays import deal_path, find_deals, find_shards, read_deal
from keystone_mpi.sweeps.fingerprint import fingerprint_difference
from keystone_mpi.sweeps.load import sweep_from_spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from keystone_mpi.engine.plan import RunPlan
    from keystone_mpi.records.entries import Entry
    from keystone_mpi.records.lease import Lease
    from keystone_mpi.records.store.replaying import Known
    from keystone_mpi.sweeps.sweep import Sweep

BATCH_ENTRIES = 500
BACKLOG_BYTES = 64 << 20
SYNC_S = 60.0
FOLD_S = 3600.0
RENEWAL_S = 5.0


@dataclass(slots=True)
class Merged:
    """What a merge found and did."""

    count: int
    """Elements of the array."""
    gathered: list[int] = field(default_factory=list)
    """Shards that were read."""
    missing: list[int] = field(default_factory=list)
    """Shards that have no file although there is work for them."""
    running: list[int] = field(default_factory=list)
    """Shards that a run is writing at this moment; left out."""
    unfinished: dict[int, int] = field(default_factory=dict)
    """Shard -> its tasks without a final state."""
    created: float = float("inf")
    """When the first of the shards was started."""
    added: int = 0
    """Attempts that NAME.h5 did not have."""
    total: int = 0
    ended: int = 0
    succeeded: int = 0
    changed: bool = False
    problem: str = ""
    """Why the results are not all in the file yet; they are in its journal."""

    @property
    def complete(self) -> bool:
        """Every task of the sweep has its final state in NAME.h5."""
        return self.ended == self.total and not self.problem


def merge(
    output_path: Path,
    sweep: Sweep | None,
    *,
    count: int | None = None,
    accept_changed: bool = False,
    command_line: list[str],
) -> Merged:
    """Merge what the elements of an array have written.

    Parameters
    ----------
    output_path : Path
        NAME.h5; made when it does not exist.
    sweep : Sweep or None
        The sweep; None: as the first shard has it.
    count : int, optional
        Elements of the array, where files of several arrays lie side by side.
    accept_changed : bool
        Also take shards whose command or script was another one.
    command_line : list of str
        Recorded as provenance.

    Raises
    ------
    UserError
        There are no shards, or those of several arrays.
    OutputError
        A shard belongs to another sweep, or something else ran its tasks.
    ClusterError
        A file cannot be read or written. Run it again.
    """
    chosen = _choose(output_path, count)
    paths = find_shards(output_path).get(chosen, {})
    result = Merged(chosen)
    for number, path in paths.items():
        recover(path, columns_from_spec, is_gone=job_is_gone)
        if not path.exists():
            continue
        with open_view(path, columns_from_spec) as view:
            if view.phase == "running" or view.is_silent:
                result.running.append(number)
                continue
            result.gathered.append(number)
            result.created = min(result.created, view.created)
            left = int(np.count_nonzero(view.states == TaskState.PENDING))
            if left:
                result.unfinished[number] = left
            if sweep is None:
                sweep = sweep_from_spec(view.spec, view.sweep_text)
            _check_same(path, view.sweep_name, view.fingerprint, sweep, accept_changed)
    result.missing = _missing(output_path, chosen, {*result.gathered, *result.running})
    if sweep is None:
        raise ClusterError(
            f"{output_path}: none of its {chosen} shards can be merged yet: {len(result.running)} are being "
            f"written, {len(result.missing)} are missing"
        )
    shards = {number: paths[number] for number in result.gathered}
    session = open_session(sweep, SessionOptions(output_path=output_path, accept_changed=accept_changed))
    try:
        _merge_into(session, shards, result, command_line)
    except BaseException:
        session.abandon()
        raise
    _count(output_path, result)
    return result


def _choose(output_path: Path, count: int | None) -> int:
    """Return the size of the array that is meant."""
    sizes = sorted({*find_shards(output_path), *find_deals(output_path)})
    stem = output_path.stem
    if not sizes:
        raise UserError(
            f"{output_path}: there is nothing to merge: no {stem}.shard-*-of-*{output_path.suffix} beside it"
        )
    if count is not None:
        if count not in sizes:
            raise UserError(f"--shards {count}: there are shards of {', '.join(map(str, sizes))}")
        return count
    if len(sizes) > 1:
        raise UserError(
            f"{output_path}: there are shards of arrays of {' and of '.join(map(str, sizes))} elements; "
            "merge one after the other: --shards N"
        )
    return sizes[0]


def _check_same(
    path: Path, name: str, fingerprint: dict[str, str], sweep: Sweep, accept_changed: bool
) -> None:
    if name != sweep.name:
        raise OutputError(f"{path}: holds results of sweep {name!r}, not of {sweep.name!r}; move it away")
    changes = fingerprint_difference(fingerprint, sweep.fingerprint)
    if changes and not accept_changed:
        raise OutputError(
            f"{path}: its tasks were run by something else: {'; '.join(changes)} "
            "(--accept-changed merges it all the same)"
        )


def _missing(output_path: Path, count: int, present: set[int]) -> list[int]:
    """Return the shards without a file; those that were dealt nothing need none."""
    dealt = read_deal(deal_path(output_path, count))
    return [
        number
        for number in range(1, count + 1)
        if number not in present and (dealt is None or dealt.shards[number - 1])
    ]


def _merge_into(session: Session, shards: dict[int, Path], result: Merged, command_line: list[str]) -> None:
    additions = _additions(session.plan, session.output_path, shards, result)
    first = next(additions, None)
    if first is None:
        session.lease.release()
        return
    session.begin(command_line, _nothing, created=result.created)
    committer = session.committer
    assert committer is not None
    lease = _Lease(session.lease)
    batch = [first]
    for entry in additions:
        lease.keep()
        batch.append(entry)
        if len(batch) >= BATCH_ENTRIES:
            sequence = committer.submit(batch)
            batch = []
            if committer.backlog_bytes > BACKLOG_BYTES:
                committer.demand()
                committer.wait(sequence, SYNC_S)
    if batch:
        committer.submit(batch)
    left = [f"shard {number} is missing" for number in result.missing]
    left += [f"shard {number} is being written" for number in result.running]
    left += [f"{tasks} tasks of shard {number} are left" for number, tasks in result.unfinished.items()]
    result.changed = True
    state = "interrupted" if left else "complete"
    over = threading.Event()

    def meanwhile(timeout_s: float) -> None:
        over.wait(timeout_s)
        lease.keep()

    result.problem = session.close(
        state=state, reason="; ".join(left[:5]), timeout_s=FOLD_S, meanwhile=meanwhile, wake=over.set
    )


def _nothing() -> None:
    return


class _Lease:
    """The lease of a merge, renewed as it goes on: a large one takes longer than a lease lasts."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._next_renewal = 0.0

    def keep(self) -> None:
        """Renew it when it is time; a disk that does not take it now will take it later."""
        now = time.monotonic()
        if now < self._next_renewal:
            return
        self._next_renewal = now + RENEWAL_S
        try:
            self._lease.renew()
        except LeaseHeldError:
            raise
        except ClusterError:
            return


def _additions(plan: RunPlan, output_path: Path, shards: dict[int, Path], result: Merged) -> Iterator[Entry]:
    """Yield what NAME.h5 lacks, one shard after the other."""
    from keystone_mpi.records.entries import AttemptEnded
    from keystone_mpi.records.store.reading import open_snapshot
    from keystone_mpi.records.store.replaying import replay

    row_of_point = _rows_of_points(plan)
    known = _known(output_path)
    settled = [row for row, (state, _why) in known.ended.items() if state == TaskState.SUCCESS]
    worker = 0
    for path in shards.values():
        snapshot = open_snapshot(path)
        if snapshot is None:
            raise ClusterError(f"{path}: is gone; run the merge again")
        try:
            rows = _rows_of_shard(path, plan, row_of_point)
            rows[np.isin(rows, settled)] = -1
            for entry in replay(snapshot, rows, known, first_worker=worker):
                result.added += isinstance(entry, AttemptEnded)
                yield entry
            worker += snapshot.count("workers", "worker")
        finally:
            snapshot.close()


def _rows_of_points(plan: RunPlan) -> NDArray[np.int64]:
    """Return the row in NAME.h5 of every point of the sweep."""
    row_of_point = np.full(len(plan.sweep.space), -1, np.int64)
    for row in range(plan.task_count):
        point = plan.point(row)
        if point >= 0:
            row_of_point[point] = row
    return row_of_point


def _rows_of_shard(path: Path, plan: RunPlan, row_of_point: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row in NAME.h5 of every row of a shard, -1 for what the sweep no longer contains."""
    space = plan.sweep.space
    with open_view(path, columns_from_spec) as view:
        points = space.indices_of(view.param_columns(), ignore=frozenset(space.derived_names))
    return np.where(points >= 0, row_of_point[points], -1)


def _known(output_path: Path) -> Known:
    from keystone_mpi.records.store.reading import open_snapshot
    from keystone_mpi.records.store.replaying import Known, known_of

    snapshot = open_snapshot(output_path)
    if snapshot is None:
        return Known()
    try:
        return known_of(snapshot)
    finally:
        snapshot.close()


def _count(output_path: Path, result: Merged) -> None:
    with open_view(output_path, columns_from_spec) as view:
        counts = view.counts()
    result.total = counts.total
    result.succeeded = counts.completed
    result.ended = counts.completed + counts.failed


def clean(output_path: Path, result: Merged) -> list[Path]:
    """Remove the shards and the deal of a merged array; return what was removed.

    Raises
    ------
    UserError
        Something of them is not in the merged file.
    """
    if result.running or result.problem:
        raise UserError(
            f"{output_path}: shards are not removed while some are being written; try again later"
        )
    paths = list(find_shards(output_path).get(result.count, {}).values())
    removed: list[Path] = []
    for path in [*paths, deal_path(output_path, result.count)]:
        if path.exists():
            path.unlink()
            removed.append(path)
        lease_path(path).unlink(missing_ok=True)
    return removed
