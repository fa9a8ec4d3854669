"""Reports of attempts that never became a process.

Rule: every attempt that a worker was given ends in one report, also the one
that was stopped, or found impossible, before it began.

    cancelled in the backlog --> never_started        cannot be spelled out --> impossible
"""

from __future__ import annotations

import time

from keystone_mpi.core.model import AttemptKey, AttemptReport, Outcome, Why


def never_started(key: AttemptKey, interrupted: bool) -> AttemptReport:
    """Report an attempt that was cancelled, or interrupted at no cost to its task."""
    return AttemptReport(
        key.task,
        key.attempt,
        Outcome.INTERRUPTED if interrupted else Outcome.CANCELLED,
        finished=time.time(),
        why=Why.NONE if interrupted else Why.BY_USER,
        error="stopped before it started",
    )


def impossible(key: AttemptKey, problem: str) -> AttemptReport:
    """Report an attempt that cannot be started."""
    return AttemptReport(
        key.task, key.attempt, Outcome.FAILED, finished=time.time(), why=Why.NOT_STARTED, error=problem
    )
