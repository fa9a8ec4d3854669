"""The last moments of a run: long work while others wait, and the end of MPI that may never come.

Rule: whoever waits for another process gives signs of life and expects them,
until the process itself ends. All MPI calls stay in the thread that made the
others: it is the work that moves to a thread of its own.

    attend:            work (a thread: last batch of the file) | meanwhile (beats, the lease), again and again
    finalize_in_time:  MPI_Finalize waits for every rank; one that is gone never comes --> exit code 75
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from keystone_mpi.engine.liveness import silence_limit_s

T = TypeVar("T")

ABORT_CODE = 75
"""What a rank ends with, and mpiexec reports, when others are gone: run it again."""
FLUSHED_WITHIN_S = 2.0
"""How long the end by force waits for a terminal or a pipe."""
GIVEN_UP_WITHIN_S = 10.0
LOOK_S = 1.0
"""How often at least `meanwhile` is called; it may wait so long itself."""


def attend(
    work: Callable[[], T],
    meanwhile: Callable[[float], None],
    wake: Callable[[], None],
    give_up: Callable[[], None],
) -> T:
    """Do `work` in another thread and call `meanwhile` again and again until it is done.

    Parameters
    ----------
    work : callable
        Must not use MPI. What it returns or raises is returned or raised here.
    meanwhile : callable
        Waits for the seconds that it is given at most.
    wake : callable
        Ends a wait of `meanwhile`; called from the other thread.
    give_up : callable
        Makes `work` end soon; called when `meanwhile` raises, before that is raised here.
    """
    results: list[T] = []
    problems: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again in the thread that waits
            problems.append(error)
        finally:
            done.set()
            wake()

    thread = threading.Thread(target=run, name="keystone-last-work", daemon=True)
    thread.start()
    try:
        while not done.is_set():
            meanwhile(LOOK_S)
    except BaseException:
        give_up()
        thread.join(GIVEN_UP_WITHIN_S)
        raise
    thread.join()
    if problems:
        raise problems[0]
    return results[0]


def finalize_in_time(
    finalize: Callable[[], None],
    who: str,
    *,
    busy: Callable[[], bool] = lambda: False,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Call MPI_Finalize; a process that waits there for longer than the limit of silence ends itself.

    Parameters
    ----------
    finalize : callable
        Must let other threads of Python run; mpi4py's own does not.
    who : str
        For the message.
    busy : callable
        Whether another thread has something to end first.
    meanwhile : callable
        Called again and again, by a thread of its own as `busy` is.
    """
    ended = threading.Event()
    watch = threading.Thread(
        target=_watch_end, args=(ended, who, busy, meanwhile), name="keystone-finalize", daemon=True
    )
    watch.start()
    try:
        finalize()
    finally:
        ended.set()
        watch.join(GIVEN_UP_WITHIN_S)


def _watch_end(
    ended: threading.Event, who: str, busy: Callable[[], bool], meanwhile: Callable[[], None]
) -> None:
    limit_s = silence_limit_s()
    until = time.monotonic() + limit_s
    while not ended.wait(min(LOOK_S, limit_s)):
        meanwhile()
        if time.monotonic() >= until and not busy():
            _give_up(who, limit_s)


def flush_streams(text: str = "") -> None:
    """Write what is buffered, and a last text to standard error, before the process ends by force.

    A terminal that is stopped takes nothing, and whoever waits for it holds the
    stream's lock: nobody waits for that here.
    """

    def flush() -> None:
        for stream, last in ((sys.stderr, text), (sys.stdout, "")):
            with contextlib.suppress(OSError, ValueError):
                stream.write(last)
                stream.flush()

    thread = threading.Thread(target=flush, name="keystone-flush", daemon=True)
    thread.start()
    thread.join(FLUSHED_WITHIN_S)


def _give_up(who: str, limit_s: float) -> None:
    flush_streams(
        f"keystone-mpi: {who}: MPI did not end within {limit_s:.0f} s, so a node is gone or cut off. "
        "What was acknowledged is safe; run the same command again to see that all is done\n"
    )
    os._exit(ABORT_CODE)
