"""What the engine tells whoever started it; the command line prints it, the API keeps it.

Rule: the engine never prints. Everything a person should see passes through a
`RunObserver`, called from the master's thread only.

    run_opened -> (progress | notice)* -> run_closed
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class RunInfo(msgspec.Struct, frozen=True):
    """Said once, when the run is about to dispatch."""

    name: str
    output_path: str
    total: int
    """Tasks in the file."""
    already_done: int
    """Final before this start (succeeded, or failed and not retried)."""
    to_run: int
    continued: bool
    """The file existed and is continued."""
    dropped: int = 0
    """Tasks in the file that the sweep no longer contains."""
    added: int = 0
    """Tasks that the sweep gained since the file was made."""
    epoch: int = 1


class Progress(msgspec.Struct, frozen=True):
    """A snapshot, offered at most a few times a second."""

    total: int
    succeeded: int
    failed: int
    running: int
    pending: int
    elapsed_s: float
    done_this_start: int
    rate_per_s: float
    """Tasks per second over the recent past; 0 when unknown."""
    eta_s: float
    """Seconds until all is done, from the durations seen; NaN when unknown."""
    workers: int
    slots: int
    draining: bool = False
    problem: str = ""
    """Such as a full disk; empty: none."""
    task_progress: dict[str, float] = {}
    """Running task -> what its solver says of how far it is, for those that say so."""


class RunClosing(msgspec.Struct, frozen=True):
    """How a start of a run ended."""

    state: str
    """``complete`` or ``interrupted``."""
    reason: str
    total: int
    succeeded: int
    failed: int
    pending: int
    out_of_memory: int
    timed_out: int
    elapsed_s: float
    output_path: str
    first_failures: list[tuple[str, str]] = []
    """(task id, one-line error) of the first failures of this start, ten at most."""
    refusal: str = ""
    """Why the sweep cannot run on some worker (its setup failed), which ended it; empty: it can."""
    file_problem: str = ""
    """Why the results are not yet all in the HDF5 file (they are in the journal); empty: they are."""


class RunObserver(Protocol):
    """Receives what happens; must return quickly."""

    def run_opened(self, info: RunInfo) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def notice(self, text: str) -> None:
        """One line for the person who watches: a lost worker, a full disk, a takeover."""

    def run_closed(self, closing: RunClosing) -> None: ...

    def flush(self, limit_s: float) -> None:
        """Wait until what was told so far has been seen, `limit_s` at most."""
