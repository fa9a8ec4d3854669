"""Views: look at a run from any process, and bring one that died to its end.

Rule: looking takes no lock and changes nothing. A view is built from one
generation of the file and the journal behind that generation's offset; when a
fold, a finish or a new start happens in between, it is built again. Whoever
only looks brings a run to its end if its master is known to be dead, never if
it is merely silent: that master may wake up and go on. A new start may do it.

    OUT (one generation) + OUT.journal[offset:] + OUT.lease --open_view--> RunView
    died run: --recover--> journal sealed, final fold, journal removed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from keystone_mpi.core.errors import ClusterError, LeaseHeldError, OutputError
from keystone_mpi.records.attempts import AttemptView
from keystone_mpi.records.journal import journal_path, read_head, read_journal, seal
from keystone_mpi.records.journal_rest import set_damaged_aside
from keystone_mpi.records.lease import Lease, acquire, read_lease
from keystone_mpi.records.run_view import RunView
from keystone_mpi.records.store import ColumnSource, finish, fold
from keystone_mpi.records.tail import Tail, without_gc
from keystone_mpi.records.view_parts import Counts, TaskView, UsedBudget, WorkerView

if TYPE_CHECKING:
    from keystone_mpi.records.store.reading import Snapshot

__all__ = [
    "AttemptView", "Counts", "MakeColumns", "RunView", "TaskView", "UsedBudget", "WorkerView",
    "open_view", "recover",
]  # fmt: skip

MakeColumns = Callable[[bytes, list[tuple[int, int]]], ColumnSource]
"""(spec, added points) -> parameters of the tasks that a start added."""

_LATE_FOLDS = 5
_RETRIES = 200
_RETRY_PAUSE_S = 0.01


def open_view(output_path: Path, columns: MakeColumns | None = None) -> RunView:
    """Look at a run: finished, going on, or dead.

    Parameters
    ----------
    output_path : Path
        The HDF5 file; while a run is young it need not exist yet.
    columns : callable, optional
        Makes the parameters of tasks that the file does not hold yet. None:
        their parameters are unknown.

    Raises
    ------
    OutputError
        There is no such run, or the file is not ours.
    ClusterError
        It cannot be read, or it changes faster than it can be read.
    """
    from keystone_mpi.records.store.reading import open_snapshot

    for _ in range(_RETRIES):
        snapshot = open_snapshot(output_path)
        view = _try_view(output_path, snapshot, columns)
        if view is not None:
            return view
        if snapshot is not None:
            snapshot.close()
        time.sleep(_RETRY_PAUSE_S)
    raise ClusterError(
        f"{output_path} and its journal do not fit together (or change without pause); "
        "is one of them from elsewhere?"
    )


def _try_view(output_path: Path, snapshot: Snapshot | None, columns: MakeColumns | None) -> RunView | None:
    """Build a view on one generation; None when something was replaced meanwhile."""
    journal = journal_path(output_path)
    head = read_head(journal)
    tail = Tail()
    if head is None:
        lease = read_lease(output_path)
        if snapshot is None:
            if output_path.exists() or journal.exists() or (lease is not None and lease.is_alive()):
                if journal.exists() and not (lease is not None and lease.is_alive()):
                    raise OutputError(f"{output_path}: the run died before its first record; run it again")
                return None
            raise OutputError(f"{output_path} does not exist, and there is no journal beside it")
        if snapshot.present.state == "running" and not _is_still(output_path, snapshot):
            return None
        return RunView(output_path, snapshot, None, tail, lease, None)
    offset = 0
    present = snapshot.present if snapshot is not None else None
    if present is not None:
        if present.run_id != head.run_id or present.journal_epoch > head.epoch:
            return None
        if present.journal_epoch == head.epoch:
            offset = present.journal_offset
            assert snapshot is not None
            tail.in_flight = snapshot.in_flight()
            if present.closed_state:
                tail.close_with(present.closed_state, present.closed_reason)
        elif present.generation != head.base_generation:
            return None
    elif head.base_generation:
        return None
    with without_gc():
        for _end, entry in read_journal(journal, offset):
            tail.add(entry)
    lease = read_lease(output_path)
    # Read after the lease: a finishing run removes its journal before it gives the lease up.
    again = read_head(journal)
    if again is None or (again.run_id, again.epoch) != (head.run_id, head.epoch):
        return None
    lacks_rows = present is None or present.journal_epoch < head.epoch
    source = columns(head.spec, head.added_points) if columns is not None and lacks_rows else None
    return RunView(output_path, snapshot, head, tail, lease, source)


def _is_still(output_path: Path, snapshot: Snapshot) -> bool:
    """Tell whether the visible file is still the generation of the snapshot."""
    from keystone_mpi.records.store.reading import open_snapshot

    now = open_snapshot(output_path)
    if now is None:
        return False
    try:
        return now.present.generation == snapshot.present.generation
    finally:
        now.close()


def recover(
    output_path: Path,
    columns: MakeColumns | None = None,
    *,
    lease: Lease | None = None,
    is_gone: Callable[[str], bool] | None = None,
    notice: Callable[[str], None] | None = None,
) -> bool:
    """Bring the file of a run that died to its end: fold the whole journal, then remove it.

    Parameters
    ----------
    output_path : Path
    columns : callable, optional
        As for `open_view`.
    lease : Lease, optional
        The caller's own lease on this output. None: the caller only looks;
        one is taken for the time of the recovery, from a holder that is
        known to be dead.
    is_gone : callable, optional
        Tells of a holder's batch job whether it has ended; see `lease.acquire`.
    notice : callable, optional
        Told of what could not be brought into the file.

    Returns
    -------
    bool
        True when there was something to recover. False when nobody died, the
        run is going on, its holder is silent but not known to be dead, or
        another process is recovering it right now.

    Raises
    ------
    ClusterError
        The folder cannot be written. `open_view` shows the truth all the same.
    """
    if lease is not None:
        return _recover(output_path, columns, notice)
    journal = journal_path(output_path)
    held = read_lease(output_path)
    if (held is not None and not held.is_known_dead(is_gone)) or (held is None and not journal.exists()):
        return False
    head = read_head(journal)
    run_id, epoch = (head.run_id, head.epoch) if head is not None else ("", 0)
    try:
        with acquire(output_path, run_id=run_id, epoch=epoch, is_gone=is_gone, only_known_dead=True):
            return _recover(output_path, columns, notice)
    except LeaseHeldError:
        return False


def _recover(output_path: Path, columns: MakeColumns | None, notice: Callable[[str], None] | None) -> bool:
    """Recover under a lease that is held."""
    journal = journal_path(output_path)
    head = read_head(journal)
    if head is None:
        # Cut before its first entry, so it says nothing; or finished, and only a lease was left behind.
        damage = set_damaged_aside(output_path, 0) if journal.exists() else ""
        if damage and notice is not None:
            notice(damage)
        journal.unlink(missing_ok=True)
        return False
    from keystone_mpi.records.store.inspecting import inspect

    present = inspect(output_path) if output_path.exists() else None
    lacks_rows = present is None or present.journal_epoch < head.epoch
    source = columns(head.spec, head.added_points) if columns is not None and lacks_rows else None
    seal(journal)
    result = fold(output_path, journal, source, final=True)
    for _ in range(_LATE_FOLDS):
        if next(read_journal(journal, result.journal_offset), None) is None:
            break
        # Its master woke up and wrote before it saw the seal.
        result = fold(output_path, journal, source, final=True)
    for text in finish(output_path):
        if notice is not None:
            notice(text)
    return True
