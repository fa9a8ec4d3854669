"""When the allocation ends that this process runs in, and what that means for the work in it.

Rule: the earliest of what the user and Slurm say; without either there is no end.

    --walltime | $KEYSTONE_WALLTIME, Slurm --end_of_work--> time stamp --deadline_before--> Deadline
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def deadline_of_program(grace_s: float) -> Deadline | None:
    """Return the deadline of a Python program: ``$KEYSTONE_WALLTIME`` and Slurm."""
    return deadline_before(end_of_work(os.environ.get(WALLTIME_VARIABLE) or None, WALLTIME_VARIABLE), grace_s)
