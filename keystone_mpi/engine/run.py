"""The composition root: one start of a run from all the parts, on the master's rank.

Rule: parts are made here and nowhere else, in the order that safety asks for:
the transport before any file is touched, the lease before anything of an
earlier start, everything that can be refused before the first write.

    bring_up --> open_session --> journal, store process --> Scheduler --> Master.run
    end:  farewell --> last batch of the file --> dismissal (MPI_Finalize)
          side by side, when nothing can run any more and the file is small
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.actions import Finish, FinishReason
from keystone_mpi.core.errors import ClusterError, LeaseHeldError, RunInterruptedError
from keystone_mpi.core.scheduler import Scheduler
from keystone_mpi.engine.collector import settle_collector
from keystone_mpi.engine.end_watch import EndWatch
from keystone_mpi.engine.master import Master
from keystone_mpi.engine.observer import RunClosing, RunInfo, RunObserver
from keystone_mpi.engine.ranks import FAREWELL_S, Ranks
from keystone_mpi.engine.session import LeftToNextStart, Session, SessionOptions, open_session
from keystone_mpi.engine.stopping import Deadline, StopRequests
from keystone_mpi.engine.workforce import Workforce
from keystone_mpi.execution.environment import Promised
from keystone_mpi.execution.slots import allocation_cpus
from keystone_mpi.tools.recipe import Recipe

if TYPE_CHECKING:
    from keystone_mpi.sweeps.sweep import Sweep

SYNC_S = 60.0
LAST_BATCH_S = 3600.0
STOPPED_FAREWELL_S = 6.0
SAID_S = 2.0
"""How long the end waits for a terminal or a pipe that takes nothing."""


class RunOptions(msgspec.Struct, frozen=True):
    """What the user chose for this start."""

    session: SessionOptions
    slots_per_node: int | None = None
    smt: bool = False
    command_line: list[str] = []
    deadline: Deadline | None = None
    """The end of the allocation; None: there is none, or it is not known."""
    in_batch_job: bool = False
    end_watch: EndWatch | None = None
    """Notices that the allocation ends at another time; None: that cannot happen."""


def run_sweep(
    sweep: Sweep,
    options: RunOptions,
    observer: RunObserver,
    ranks: Ranks,
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
    ranks : Ranks
        The workers, brought up before the sweep was read; the caller closes them.

    Raises
    ------
    UserError
        The output cannot be used for this sweep. Nothing was touched.
    ClusterError
        MPI, the disk or the lease failed. What was acknowledged is safe.
    """
    try:
        session = open_session(sweep, options.session)
        for notice in session.notices:
            observer.notice(notice)
        info = _info(session)
        if session.nothing_to_do:
            session.lease.release()
            observer.run_opened(info)
            ranks.farewell(FAREWELL_S, observer.notice)
            closing = _nothing_to_do(session)
        else:
            closing = _run(session, options, observer, ranks, info)
    except BaseException:
        ranks.farewell(STOPPED_FAREWELL_S, observer.notice)
        observer.flush(SAID_S)
        ranks.dismiss()
        raise
    observer.flush(SAID_S)  # the end of MPI may be the end of this process
    if not ranks.dismiss():
        observer.notice("some workers did not say goodbye; MPI was ended by force")
    observer.run_closed(closing)
    return closing


def _run(
    session: Session,
    options: RunOptions,
    observer: RunObserver,
    ranks: Ranks,
    info: RunInfo,
) -> RunClosing:
    try:
        session.begin(options.command_line, ranks.transport.wake, store=ranks.store)
        ranks.hand_over_store()
        assert session.committer is not None
        assert session.store is not None
        workforce = Workforce(
            ranks.transport.workers,
            run_id=session.run_id,
            epoch=session.epoch,
            output_path=str(session.output_path),
            recipes=[session.plan.sweep.recipe],
            slots_per_node=_slots_per_node(options, session.plan.sweep.recipe, ranks.promised),
            smt=options.smt,
        )
        succeeded, failed = session.counts_before()
        with (
            StopRequests(
                session.output_path,
                ranks.wake,
                first_means_now=ranks.promised.launcher == "openmpi",
                under_launcher=ranks.promised.launcher is not None,
                deadline=options.deadline,
                in_batch_job=options.in_batch_job,
            ) as stop,
            options.end_watch or nullcontext(),
        ):
            source = session.plan.source()
            master = Master(
                plan=session.plan,
                scheduler=Scheduler(
                    source, ends_at=None if options.deadline is None else options.deadline.stop_at
                ),
                source=source,
                ranks=ranks,
                committer=session.committer,
                lease=session.lease,
                store=session.store,
                workforce=workforce,
                stop=stop,
                observer=observer,
                already_succeeded=succeeded,
                already_failed=failed,
                end_watch=options.end_watch,
            )
            observer.run_opened(info)
            settle_collector()
            finish = master.run()
            return _close(session, master, finish, observer, stop, ranks)
    except LeaseHeldError:
        session.abandon()
        raise
    except ClusterError as error:
        session.abandon()
        raise RunInterruptedError(str(error)) from error
    except BaseException:
        session.abandon()
        raise


def _slots_per_node(options: RunOptions, recipe: Recipe, promised: Promised) -> int | None:
    """Return the user's number; where solvers are steps, a lone worker speaks for the whole allocation."""
    if options.slots_per_node is None and recipe.launcher == "srun" and promised.launcher is None:
        return allocation_cpus()
    return options.slots_per_node


def _close(
    session: Session,
    master: Master,
    finish: Finish,
    observer: RunObserver,
    stop: StopRequests,
    ranks: Ranks,
) -> RunClosing:
    """End a run that the scheduler finished: what may still run first, then the file."""
    if finish.reason == FinishReason.NO_WORKERS:
        observer.notice("no worker is left that could run the rest")
    elif finish.reason == FinishReason.WALLTIME:
        observer.notice("what is left is not expected to end before the allocation does")
    complete = finish.reason == FinishReason.COMPLETE
    if complete:
        ranks.begin_farewell()  # nothing runs: there is no need to wait before the file is written
    else:
        ranks.farewell(FAREWELL_S, observer.notice)
    master.drain_acknowledgements(SYNC_S)
    state = "complete" if complete else "interrupted"
    reason = "" if complete else (stop.reason or str(finish.reason))
    if master.refusal:
        reason = "the sweep cannot run on a worker: " + master.refusal.splitlines()[0]
    problem = session.close(
        state=state,
        reason=reason,
        timeout_s=LAST_BATCH_S,
        meanwhile=_meanwhile(session, master, stop, observer, ranks),
        wake=ranks.wake,
    )
    ranks.farewell(STOPPED_FAREWELL_S if problem else FAREWELL_S, observer.notice)
    for notice in session.notices_of_file:
        observer.notice(notice)
    if not problem:
        stop.forget_drain_file()
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
        first_failures=master.first_failures,
        refusal=master.refusal,
        file_problem=problem,
    )


def _meanwhile(
    session: Session, master: Master, stop: StopRequests, observer: RunObserver, ranks: Ranks
) -> Callable[[float], None]:
    """Return what the master does while the last batch is written; a person need not wait for that.

    MPI ends meanwhile where that is over soon: a launcher may give the last rank little time after
    the others have ended (Slurm's WaitTime).
    """
    pressed_before = stop.presses
    told = False

    def wait(timeout_s: float) -> None:
        nonlocal told
        if session.little_is_left and ranks.everybody_left and not ranks.dismissed:
            observer.flush(SAID_S)  # the end of MPI may be the end of this process
            try:
                ranks.dismiss(busy=lambda: session.is_finishing, meanwhile=master.keep_house)
            except RuntimeError as error:  # MPI's own; the file is written all the same
                observer.notice(f"MPI did not end in order: {error}")
        master.stay(timeout_s)
        pressed = stop.presses - pressed_before
        if pressed >= 2 or stop.grace_is_over:
            raise LeftToNextStart(f"stopped ({stop.reason}) while it was being written")
        if pressed and not told:
            told = True
            observer.notice("the results file is being written; once more, and the next start writes it")

    return wait


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


def _nothing_to_do(session: Session) -> RunClosing:
    base = session.plan.base
    succeeded, failed = session.counts_before()
    return RunClosing(
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
