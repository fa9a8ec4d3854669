"""When the allocation ends that this process runs in, and what that means for the work in it.

Rule: the earliest of what the user and Slurm say; without either there is no end.

    --walltime | $KEYSTONE_WALLTIME, Slurm --end_of_work--> time stamp --deadline_before--> Deadline
    the job's time limit is changed        --watch_of_end-> another one
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from keystone_mpi.engine.end_watch import AllocationEnd, EndWatch
    from keystone_mpi.engine.stopping import Deadline

WALLTIME_VARIABLE = "KEYSTONE_WALLTIME"
"""Time from the start of a program, where the program and Slurm do not say: ``2h``, ``30min``, ``90s``."""


def end_of_work(walltime: str | None, where: str) -> float | None:
    """Return when the allocation ends (seconds since the epoch), as given or as Slurm says; None: unknown.

    Parameters
    ----------
    walltime : str or None
        Time from now.
    where : str
        Who gave it, for the message.

    Raises
    ------
    UserError
        `walltime` is no time.
    """
    from keystone_mpi.slurm.allocation import end_of_allocation
    from keystone_mpi.slurm.walltime import parse_limit

    ends = [end_of_allocation()]
    if walltime is not None:
        ends.append(time.time() + parse_limit(walltime, where, plain_seconds=True))
    return min((end for end in ends if end is not None), default=None)


def deadline_before(ends_at: float | None, grace_s: float) -> Deadline | None:
    """Return when to drain and when to stop, on the monotonic clock."""
    from keystone_mpi.engine.stopping import Deadline
    from keystone_mpi.slurm.walltime import plan_stops

    if ends_at is None:
        return None
    stops = plan_stops(ends_at - time.time(), grace_s)
    now = time.monotonic()
    return Deadline(drain_at=now + stops.drain_s, stop_at=now + stops.stop_s)


def watch_of_end(
    ends_at: float | None, walltime: str | None, grace_s: float, say: Callable[[float, Deadline], str]
) -> EndWatch | None:
    """Return who notices that the time limit of this Slurm job is changed; None: this is no Slurm job.

    Parameters
    ----------
    ends_at : float or None
        As known so far, in seconds since the epoch.
    walltime : str or None
        The user's own limit, from now; the earlier end counts.
    grace_s : float
        Between SIGTERM and SIGKILL of a task that is stopped.
    say : callable
        Says of an end and its deadline what they mean: ``ends in ...``.
    """
    from keystone_mpi.engine.end_watch import EndWatch, MovedEnd
    from keystone_mpi.slurm.allocation import present_end
    from keystone_mpi.slurm.walltime import parse_limit

    if "SLURM_JOB_ID" not in os.environ:
        return None
    chosen_at: float | None = None
    if walltime is not None:
        chosen_at = time.time() + parse_limit(walltime, "the time limit", plain_seconds=True)

    def ask() -> float | None:
        present = present_end()
        return present if chosen_at is None else min(chosen_at, present or chosen_at)

    def understand(moved_to: float | None) -> MovedEnd:
        deadline = deadline_before(moved_to, grace_s)
        if moved_to is None or deadline is None:
            return MovedEnd(None, "the allocation has no time limit any more")
        return MovedEnd(deadline, f"the time limit was changed: the allocation {say(moved_to, deadline)}")

    return EndWatch(ends_at, ask, understand)


def end_of_program(grace_s: float) -> AllocationEnd:
    """Return the end of a Python program's allocation: by ``$KEYSTONE_WALLTIME`` and Slurm."""
    from keystone_mpi.engine.end_watch import AllocationEnd

    walltime = os.environ.get(WALLTIME_VARIABLE) or None
    ends_at = end_of_work(walltime, WALLTIME_VARIABLE)
    watch = watch_of_end(ends_at, walltime, grace_s, _say)
    return AllocationEnd(deadline_before(ends_at, grace_s), watch)


def _say(ends_at: float, _deadline: Deadline) -> str:
    return f"ends in {(ends_at - time.time()) / 60:.0f} min"
