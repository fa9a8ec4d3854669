"""The composition root: one start of a run from all the parts, on the master's rank.

Rule: parts are made here and nowhere else, in the order that start-up and
safety ask for: what can be refused first, processes before MPI_Init, MPI last.

    open_session --> journal, store process --> launcher (a worker beside the master)
                 --> MPI or local transport --> Scheduler --> Master.run
    end:  farewell --> last batch of the file --> dismissal --> MPI_Finalize
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.actions import Finish, FinishReason
from keystone_mpi.core.scheduler import Scheduler
from keystone_mpi.engine.master import Master
from keystone_mpi.engine.observer import RunClosing, RunInfo, RunObserver
from keystone_mpi.engine.serving import send_workers_home
from keystone_mpi.engine.session import Session, SessionOptions, open_session
from keystone_mpi.engine.stopping import StopRequests
from keystone_mpi.engine.worker import Worker
from keystone_mpi.engine.workforce import Workforce
from keystone_mpi.execution.environment import Promised
from keystone_mpi.execution.launcher_client import LauncherClient
from keystone_mpi.execution.slots import detect
from keystone_mpi.transport.local import LocalHub, LocalMaster
from keystone_mpi.transport.messages import Dismissal

if TYPE_CHECKING:
    from keystone_mpi.engine.store_process import StoreClient
    from keystone_mpi.sweeps.sweep import Sweep
    from keystone_mpi.transport.mpi import MpiMaster, MpiWorld

FAREWELL_S = 20.0
SYNC_S = 60.0
LAST_BATCH_S = 3600.0
STOPPED_FAREWELL_S = 6.0


class RunOptions(msgspec.Struct, frozen=True):
    """What the user chose for this start."""

    session: SessionOptions
    slots_per_node: int | None = None
    smt: bool = False
    command_line: list[str] = []


class _Side(msgspec.Struct):
    """What this rank brought up besides the session, for taking it down again."""

    transport: LocalMaster | MpiMaster
    world: MpiWorld | None
    local_worker: threading.Thread | None = None


def run_sweep(
    sweep: Sweep,
    options: RunOptions,
    observer: RunObserver,
    promised: Promised,
    store: StoreClient | None = None,
) -> RunClosing:
    """Run, or continue, a sweep; returns when it is complete or stopped.

    Parameters
    ----------
    sweep : Sweep
        What to run.
    options : RunOptions
        Output and choices.
    observer : RunObserver
        Told of everything that a person should see.
    promised : Promised
        What the launcher's environment says; this process is its rank 0.
    store : StoreClient, optional
        A store process that was started early; the caller closes it.

    Raises
    ------
    UserError
        The output cannot be used for this sweep. Nothing was touched.
    ClusterError
        MPI, the disk or the lease failed. What was acknowledged is safe.
    """
    try:
        session = open_session(sweep, options.session)
    except BaseException:
        send_workers_home(promised)
        raise
    for notice in session.notices:
        observer.notice(notice)
    info = _info(session)
    if session.nothing_to_do:
        session.lease.release()
        send_workers_home(promised)
        observer.run_opened(info)
        return _nothing_to_do(session, observer)
    try:
        return _run(session, options, observer, promised, info, store)
    except BaseException:
        session.abandon()
        raise


def _run(
    session: Session,
    options: RunOptions,
    observer: RunObserver,
    promised: Promised,
    info: RunInfo,
    store: StoreClient | None,
) -> RunClosing:
    wake_later = _LateWake()
    session.begin(options.command_line, wake_later, store)
    # Processes are started before MPI_Init: a fork afterwards may break InfiniBand's registered memory.
    launcher = LauncherClient()
    master_works = promised.launcher is None or promised.size == 1 or promised.local_size in (None, 1)
    if master_works:
        launcher.start()
    side = _bring_up(promised, launcher)
    wake_later.target = side.transport.wake
    assert session.committer is not None
    assert session.store is not None
    workforce = Workforce(
        side.transport.workers,
        run_id=session.run_id,
        epoch=session.epoch,
        output_path=str(session.output_path),
        recipes=[session.plan.sweep.recipe],
        slots_per_node=options.slots_per_node,
        smt=options.smt,
    )
    succeeded, failed = session.counts_before()
    with StopRequests(
        session.output_path,
        side.transport.wake,
        first_means_now=promised.launcher == "openmpi",
        under_launcher=promised.launcher is not None,
    ) as stop:
        stop.forget_drain_file()
        master = Master(
            plan=session.plan,
            scheduler=Scheduler(session.plan.source()),
            transport=side.transport,
            committer=session.committer,
            lease=session.lease,
            store=session.store,
            workforce=workforce,
            stop=stop,
            observer=observer,
            already_succeeded=succeeded,
            already_failed=failed,
        )
        observer.run_opened(info)
        try:
            finish = master.run()
        except BaseException:
            _take_down(side, master, clean=False)
            raise
        closing = _close(session, master, finish, observer, stop, side)
    observer.run_closed(closing)
    return closing


class _LateWake:
    """A wake-up whose target comes into being after those who call it."""

    def __init__(self) -> None:
        self.target = _nobody

    def __call__(self) -> None:
        self.target()


def _nobody() -> None:
    return


def _bring_up(promised: Promised, launcher: LauncherClient) -> _Side:
    if promised.launcher is None:
        side = _Side(LocalMaster(), None)
        side.local_worker = _start_local_worker(side.transport.hub, launcher)
        return side
    from keystone_mpi.transport.mpi import MpiMaster, MpiWorld

    world = MpiWorld(promised.size)
    place = world.node_place()
    side = _Side(MpiMaster(world), world)
    if place.master_alone:
        launcher.start()
        side.local_worker = _start_local_worker(side.transport.hub, launcher)
    elif launcher.launcher_pid:
        launcher.close()
    return side


def _start_local_worker(hub: LocalHub, launcher: LauncherClient) -> threading.Thread:
    worker = Worker(hub.connect(0), launcher, rank=0, resources=detect(), local_index=0, local_workers=1)
    thread = threading.Thread(target=worker.serve, name="keystone-worker", daemon=True)
    thread.start()
    return thread


def _close(
    session: Session,
    master: Master,
    finish: Finish,
    observer: RunObserver,
    stop: StopRequests,
    side: _Side,
) -> RunClosing:
    """End a run that the scheduler finished: workers first, then the file, then MPI."""
    if finish.reason == FinishReason.NO_WORKERS:
        observer.notice("no worker is left that could run the rest")
    master.farewell(FAREWELL_S)
    master.drain_acknowledgements(SYNC_S)
    complete = finish.reason == FinishReason.COMPLETE
    state = "complete" if complete else "interrupted"
    reason = "" if complete else (stop.reason or str(finish.reason))
    problem = session.close(state=state, reason=reason, timeout_s=LAST_BATCH_S)
    if not problem:
        stop.forget_drain_file()
    clean = _take_down(side, master, clean=True)
    if not clean:
        observer.notice("some workers did not say goodbye; ending MPI by force")
    progress = master.progress(time.monotonic())
    return RunClosing(
        state=state,
        reason=reason,
        total=progress.total,
        succeeded=progress.succeeded,
        failed=progress.failed,
        pending=finish.pending,
        out_of_memory=master.out_of_memory,
        timed_out=master.timed_out,
        elapsed_s=progress.elapsed_s,
        output_path=str(session.output_path),
        recent_failures=master.recent_failures,
        file_problem=problem,
    )


def _take_down(side: _Side, master: Master, *, clean: bool) -> bool:
    """Dismiss the workers and leave MPI; False when some worker had not said goodbye."""
    if not clean:
        master.farewell(STOPPED_FAREWELL_S)
    everybody = not master.absent_workers()
    for worker in side.transport.workers:
        side.transport.send(worker, Dismissal())
    if side.local_worker is not None:
        side.local_worker.join(5.0)
    side.transport.close()
    if side.world is not None:
        if everybody:
            side.world.finalize()
        else:
            # MPI_Finalize would wait for ever for a rank that is gone.
            sys.stdout.flush()
            sys.stderr.flush()
            side.world.abort(75)
    return everybody


def _info(session: Session) -> RunInfo:
    plan = session.plan
    return RunInfo(
        name=plan.sweep.name,
        output_path=str(session.output_path),
        total=plan.task_count,
        already_done=plan.task_count - plan.to_run,
        to_run=plan.to_run,
        continued=plan.base is not None,
        dropped=plan.dropped,
        added=plan.task_count - plan.base_task_count if plan.base is not None else 0,
        epoch=session.epoch,
    )


def _nothing_to_do(session: Session, observer: RunObserver) -> RunClosing:
    base = session.plan.base
    succeeded, failed = session.counts_before()
    closing = RunClosing(
        state="complete",
        reason="nothing to do",
        total=session.plan.task_count,
        succeeded=succeeded,
        failed=failed,
        pending=0,
        out_of_memory=0,
        timed_out=0,
        elapsed_s=0.0,
        output_path=str(session.output_path if base is None else base.path),
    )
    observer.run_closed(closing)
    return closing
