"""Opening and closing one start of a run: lease, earlier death, plan, journal, store.

Rule: nothing of an earlier start is touched before the lease is ours, and
nothing is written at all when there is nothing to do. Every step that can be
refused comes before the first write.

    peek at the file --> acquire the lease --> recover a dead start --> plan
      nothing to run --> release                                        |
      open the journal (epoch + 1) --> committer, store process <-------'
    close: RunClosed --> last batch --> remove journal, shards, drain file --> release
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.errors import OutputError, UserError
from keystone_mpi.core.model import FINAL_STATES, TaskState, Why
from keystone_mpi.deferred_numpy import load_numpy
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.engine.parting import attend
from keystone_mpi.engine.plan import PlanOptions, RunPlan, make_plan
from keystone_mpi.engine.provenance import gather_provenance
from keystone_mpi.engine.stopping import DRAIN_SUFFIX
from keystone_mpi.engine.store_child import StoreChild
from keystone_mpi.engine.store_client import SMALL_FILE_TASKS, BatchResult, StoreClient
from keystone_mpi.records import entries
from keystone_mpi.records.committer import Committer
from keystone_mpi.records.journal import JournalWriter, journal_path
from keystone_mpi.records.lease import Lease, acquire, read_lease
from keystone_mpi.records.store.shards import shards_path

if TYPE_CHECKING:
    from keystone_mpi.records.view import RunView
    from keystone_mpi.sweeps.sweep import Sweep

SMALL_JOURNAL_BYTES = 16 << 20
"""What is in so much of a journal is in the file within a moment."""


class SessionOptions(msgspec.Struct, frozen=True):
    """How to treat an output that exists."""

    output_path: Path
    """Absolute."""
    retry_failed: bool = False
    accept_changed: bool = False
    fresh: bool = False
    points: list[tuple[int, int]] | None = None
    """Only this part of the sweep, a shard; None: all of it."""
    whole_rows: dict[int, int] = {}
    """See `PlanOptions`."""
    is_gone: Callable[[str], bool] | None = None
    """Tells of a batch job, by the name that `job_name` gave it, whether it can have no process any more."""
    resume: bool = False
    """The user says aloud that there is something to continue: a missing file is a mistake."""


class LeftToNextStart(Exception):  # noqa: N818 - not an error: what `meanwhile` of `Session.close` raises
    """Nobody waits for the last batch any more; the journal keeps everything."""


class Session:
    """One opened start of a run; `close` ends it.

    Attributes
    ----------
    plan : RunPlan
        What is to run.
    run_id, epoch : str, int
        Identity of the run and number of this start.
    lease, committer, store
        None when there is nothing to do.
    """

    def __init__(
        self,
        options: SessionOptions,
        plan: RunPlan,
        *,
        run_id: str,
        epoch: int,
        lease: Lease,
        notices: list[str],
    ) -> None:
        self.options = options
        self.plan = plan
        self.run_id = run_id
        self.epoch = epoch
        self.lease = lease
        self.notices = notices
        self.notices_of_file: list[str] = []
        """What is to be said of the finished file."""
        self.committer: Committer | None = None
        self.store: StoreClient | None = None
        self.is_finishing = False
        """Another thread makes the journal and the file whole."""
        self.little_is_left = False
        """What it has still to do takes a moment."""

    @property
    def output_path(self) -> Path:
        """The HDF5 file."""
        return self.options.output_path

    @property
    def nothing_to_do(self) -> bool:
        """Every task of the sweep has its final state already."""
        return self.plan.to_run == 0

    def counts_before(self) -> tuple[int, int]:
        """Return how many tasks had succeeded and failed before, leaving out what runs again."""
        base = self.plan.base
        if base is None:
            return 0, 0
        states = base.states
        succeeded = int((states == TaskState.SUCCESS).sum())
        final = sum(int((states == state).sum()) for state in FINAL_STATES)
        put_back = sum(1 for _ in self.plan.put_back_rows())
        return succeeded, final - succeeded - put_back

    def begin(
        self,
        command_line: list[str],
        on_progress: Callable[[], None],
        *,
        store: StoreChild | None = None,
        created: float = float("inf"),
    ) -> None:
        """Open the journal.

        Parameters
        ----------
        command_line : list of str
            Recorded as provenance.
        on_progress : callable
            Called from the committer's thread when more is durable.
        store : StoreChild, optional
            Writes the file; this session's from now on. One is started where there is none.
        created : float
            When the run began, where that was earlier than is known here.
        """
        plan = self.plan
        base = plan.base
        writer = JournalWriter(journal_path(self.output_path), create=True)
        self.committer = Committer(writer, on_progress=on_progress)
        opened_at = time.time()
        first: list[entries.Entry] = [
            entries.RunOpened(
                format_version=entries.JOURNAL_FORMAT,
                run_id=self.run_id,
                epoch=self.epoch,
                opened=opened_at,
                created=min(created, opened_at if base is None else base.created),
                task_count=plan.task_count,
                base_generation="" if base is None else base.generation,
                base_task_count=plan.base_task_count,
                added_points=plan.added_points,
                spec=plan.sweep.spec,
                sweep_text=plan.sweep.text,
                sweep_name=plan.sweep.name,
                fingerprint=plan.sweep.fingerprint,
                provenance=gather_provenance(command_line),
            )
        ]
        first += [
            entries.TaskEnded(index=row, state=TaskState.PENDING, why=Why.NONE, error="", at=opened_at)
            for row in plan.put_back_rows()
        ]
        first += [
            entries.TaskEnded(
                index=row,
                state=TaskState.CANCELLED,
                why=Why.NOT_IN_SWEEP,
                error="the sweep file no longer contains it",
                at=opened_at,
            )
            for row in plan.dropped_rows()
        ]
        self.committer.submit(first)
        self.committer.demand()  # the store process begins with it
        self.store = StoreClient(self.output_path, store)

    def close(
        self,
        *,
        state: str,
        reason: str,
        timeout_s: float,
        meanwhile: Callable[[float], None],
        wake: Callable[[], None],
    ) -> str:
        """End this start in order.

        Parameters
        ----------
        state, reason : str
            Recorded.
        timeout_s : float
            How long the journal, and then the last batch, may take.
        meanwhile, wake : callable
            What to do as long as that takes, and what ends it; see `attend`.

        Returns
        -------
        str
            Why the results are not all in the HDF5 file yet; empty when they
            are, and the journal is gone.
        """
        assert self.committer is not None
        assert self.store is not None
        self.committer.submit([entries.RunClosed(state=state, reason=reason, at=time.time())])
        self.is_finishing = True
        try:
            result = attend(partial(self._finish, timeout_s, wake), meanwhile, wake, self.store.give_up)
        except LeftToNextStart as reason:
            # The lease stays: it is this process's, which is about to end, and a mount may not answer.
            return str(reason)
        self.lease.release()
        self.notices_of_file += result.notices
        return result.problem

    def _finish(self, timeout_s: float, wake: Callable[[], None]) -> BatchResult:
        """Make the journal and then the file whole; tell why they are not. Runs beside `meanwhile`."""
        assert self.committer is not None
        assert self.store is not None
        try:
            if self.committer.close(timeout_s):
                self.little_is_left = self._has_little_to_write()
                wake()
                return self.store.finish(timeout_s)
            self.store.close()
            return BatchResult(
                final=True, problem=self.committer.problem or "the journal could not be synced in time"
            )
        finally:
            self.is_finishing = False

    def _has_little_to_write(self) -> bool:
        if self.plan.task_count > SMALL_FILE_TASKS:
            return False
        try:
            if shards_path(self.output_path).exists():
                return False
            return journal_path(self.output_path).stat().st_size <= SMALL_JOURNAL_BYTES
        except OSError:
            return False

    def abandon(self) -> None:
        """Leave at once after an error: the journal keeps what it has, the next start goes on."""
        if self.store is not None:
            if self.is_finishing:
                return  # as long as that goes on the lease stays, until this process ends
            self.store.close()
        if self.committer is not None:
            self.committer.close(timeout_s=5.0)
        self.lease.release()


def open_session(sweep: Sweep, options: SessionOptions) -> Session:
    """Take hold of the output and find out what is to run; writes nothing but the lease.

    Raises
    ------
    OutputError
        The output is not ours, belongs to another sweep, or its folder cannot
        be written.
    LeaseHeldError
        Another master is at work on it.
    """
    output_path = options.output_path
    check_folder(output_path)
    notices: list[str] = []
    earlier = peek(output_path)
    if earlier is None and options.resume:
        raise OutputError(f"{output_path}: there is nothing to resume (run without --resume to start)")
    holder = read_lease(output_path)
    run_id = os.urandom(8).hex() if earlier is None or options.fresh else earlier.run_id
    epoch = 1 if earlier is None or options.fresh else earlier.epoch + 1
    lease = acquire(output_path, run_id=run_id, epoch=epoch, job_id=job_name(), is_gone=options.is_gone)
    try:
        forget_old_drain(output_path, lease)
        if holder is not None:
            notices.append(f"took over from {holder.holder()}, which is gone")
        base = recovered(output_path, lease, earlier, notices.append)
        old = base if options.fresh else None
        plan = make_plan(
            sweep,
            None if options.fresh else base,
            plan_options(options),
        )
        if old is not None:
            plan.learn_from(old)
            notices.append(f"the old results are now {move_aside(output_path).name}")
    except BaseException:
        lease.release()
        raise
    return Session(options, plan, run_id=run_id, epoch=epoch, lease=lease, notices=notices)


def plan_only(sweep: Sweep, options: SessionOptions) -> RunPlan:
    """Return what `open_session` would plan, without taking or writing anything (``--dry-run``)."""
    base = None if options.fresh else peek(options.output_path)
    return make_plan(sweep, base, plan_options(options))


def plan_options(options: SessionOptions) -> PlanOptions:
    """Return what the plan wants to know of the options."""
    return PlanOptions(
        retry_failed=options.retry_failed,
        accept_changed=options.accept_changed,
        points=options.points,
        whole_rows=options.whole_rows,
    )


def check_folder(output_path: Path) -> None:
    """Refuse an output whose folder cannot take it."""
    folder = output_path.parent
    if not folder.is_dir():
        raise OutputError(f"{folder}: the folder for the results does not exist (mkdir -p {folder})")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{folder}: the folder for the results cannot be written (-o FILE writes elsewhere)"
        )
    if output_path.is_dir():
        raise OutputError(f"{output_path}: is a folder, not a results file (-o FILE writes elsewhere)")


def peek(output_path: Path) -> RunView | None:
    """Look at the output as it is; None when there is none."""
    if not output_path.exists() and not journal_path(output_path).exists():
        return None
    load_numpy()
    from keystone_mpi.records.view import open_view

    return open_view(output_path, columns_from_spec)


def recovered(
    output_path: Path, lease: Lease, earlier: RunView | None, notice: Callable[[str], None]
) -> RunView | None:
    """Fold what a dead start left, and read the file as it is now that nobody else writes it."""
    if earlier is None and not output_path.exists() and not journal_path(output_path).exists():
        return None
    from keystone_mpi.records.view import open_view, recover

    recover(output_path, columns_from_spec, lease=lease, notice=notice)
    if not output_path.exists():
        return None
    return open_view(output_path, columns_from_spec)


def move_aside(output_path: Path) -> Path:
    """Give an old output another name, with the time in it, and return that."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    target = output_path.with_name(f"{output_path.stem}.{stamp}{output_path.suffix}")
    if target.exists():
        raise UserError(f"{target}: exists already; wait a second and try again")
    os.rename(output_path, target)
    return target


def job_name() -> str:
    """Name the batch job of this process, which of its restarts it is, and its cluster; empty: none."""
    job_id = os.environ.get("SLURM_JOB_ID", "")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    cluster = os.environ.get("SLURM_CLUSTER_NAME", "")
    if job_id:
        name = f"{job_id}/{restart}" if restart != "0" else job_id
        return f"{name}@{cluster}" if cluster else name
    return os.environ.get("PBS_JOBID", "")


def forget_old_drain(output_path: Path, lease: Lease) -> None:
    """Remove a request to drain that was meant for an earlier start; one made since is ours."""
    request = Path(f"{output_path}{DRAIN_SUFFIX}")
    try:
        if request.stat().st_mtime < lease.info.acquired:
            request.unlink()
    except FileNotFoundError:
        return
