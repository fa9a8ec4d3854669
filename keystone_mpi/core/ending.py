"""Whether a run in which nothing runs is over, and why.

Rule: a run ends only while no worker has a task. What is left and could still
run, now or later, keeps it open.

    nothing on workers --finish_reason--> complete | stopped | drained | walltime | no workers | (goes on)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keystone_mpi.core.actions import FinishReason
from keystone_mpi.core.transitions import Phase

if TYPE_CHECKING:
    from keystone_mpi.core.scheduler import Scheduler

_LEFT = (Phase.READY, Phase.DELAYED, Phase.WAITING, Phase.TOO_LATE)


def finish_reason(scheduler: Scheduler) -> tuple[FinishReason, int] | None:
    """Return why the run is over and how many tasks are left; None when it goes on."""
    count = scheduler.ledger.count
    pending = sum(count[phase] for phase in _LEFT) + scheduler.queued()
    if not pending:
        may_come = not (scheduler.closed or scheduler.draining or scheduler.stopping)
        return None if may_come else (FinishReason.COMPLETE, 0)
    if scheduler.stopping:
        return FinishReason.STOPPED, pending
    if scheduler.draining:
        return FinishReason.DRAINED, pending
    if scheduler.all_joined and not scheduler.pool.workers:
        return FinishReason.NO_WORKERS, pending
    ready = count[Phase.READY]
    if scheduler.paused or count[Phase.DELAYED] or ready != scheduler.queue.stranded():
        return None
    may_change = not scheduler.closed or (ready and not scheduler.all_joined)
    if count[Phase.TOO_LATE] and scheduler.pass_cut_at is None and not may_change:
        return FinishReason.WALLTIME, pending
    if scheduler.all_joined and ready:
        return FinishReason.NO_WORKERS, pending
    return None
