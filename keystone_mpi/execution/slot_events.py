"""What `LauncherClient.read_events` returns: one fact about a slot each, in the past tense.

Rule: every order submitted ends in exactly one `AttemptFinished` or is named
in exactly one `OrdersReturned`.
"""

from __future__ import annotations

import time

import msgspec

from keystone_mpi.core.model import AttemptReport, Outcome, Why


class AttemptStarted(msgspec.Struct, frozen=True):
    """An attempt has been running for a fraction of a second."""

    slot: int
    index: int
    attempt: int
    at: float
    """Seconds since the epoch."""


class AttemptFinished(msgspec.Struct, frozen=True):
    slot: int
    report: AttemptReport


class OrdersReturned(msgspec.Struct, frozen=True):
    """Orders that did not start: asked for by `recall`, or their slot process is gone."""

    slot: int
    keys: list[tuple[int, int]]


class SlotLost(msgspec.Struct, frozen=True):
    """A slot process died; the next submit to the slot starts another."""

    slot: int
    reason: str


class LauncherRestarted(msgspec.Struct, frozen=True):
    """The launcher died and another was started."""

    reason: str


class AttemptProgress(msgspec.Struct, frozen=True):
    """A solver said how far it is."""

    slot: int
    index: int
    attempt: int
    fraction: float


class RecipePrepared(msgspec.Struct, frozen=True):
    """A recipe's setup has ended."""

    recipe: int
    error: str
    """Why none of its attempts can run here; empty: they can."""


SlotEvent = (
    AttemptStarted
    | AttemptProgress
    | AttemptFinished
    | OrdersReturned
    | RecipePrepared
    | SlotLost
    | LauncherRestarted
)

_TRACEBACK_CHARACTERS = 4096
"""Of a defect of ours, in the report of the attempt that it cost."""


def worker_lost(index: int, attempt: int, reason: str, traceback: str) -> AttemptReport:
    """Report an attempt whose slot process is gone; a traceback of ours goes where output goes."""
    return AttemptReport(
        index,
        attempt,
        Outcome.WORKER_LOST,
        finished=time.time(),
        why=Why.LOST_WORKER,
        error=reason,
        stderr_tail=traceback[-_TRACEBACK_CHARACTERS:],
    )


def last_line(traceback: str) -> str:
    """Return what a traceback says in one line; empty for none."""
    return traceback.rstrip().rpartition("\n")[2]
