"""Saying it from a thread: a terminal that was stopped, or a full pipe, stops no run.

Rule: whoever calls never waits. What must be seen is said in order; of
snapshots that come faster than they can be shown only the last one is.

    master --(RunObserver)--> queue --> thread --> PlainProgress | LiveProgress --> terminal, log
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keystone_mpi.cli.progress import PlainProgress
    from keystone_mpi.engine.observer import Progress, RunClosing, RunInfo


INTERRUPTED = 128 + signal.SIGINT


class PatientObserver:
    """A `RunObserver` in front of one that writes.

    Parameters
    ----------
    inner : PlainProgress
        Used in the thread only.
    """

    def __init__(self, inner: PlainProgress) -> None:
        self._inner = inner
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._latest: Progress | None = None
        """Not shown yet; the queue holds one `_show_latest` for it."""
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="keystone-telling", daemon=True)
        self._thread.start()

    def run_opened(self, info: RunInfo) -> None:
        """Have it said what is about to run."""
        self._todo.put(lambda: self._inner.run_opened(info))

    def progress(self, progress: Progress) -> None:
        """Have it said how far it is."""
        with self._lock:
            is_queued = self._latest is not None
            self._latest = progress
        if not is_queued:
            self._todo.put(self._show_latest)

    def notice(self, text: str) -> None:
        """Have one thing said."""
        self._todo.put(lambda: self._inner.notice(text))

    def run_closed(self, closing: RunClosing) -> None:
        """Have it said how it ended."""
        self._todo.put(lambda: self._inner.run_closed(closing))

    def flush(self, limit_s: float) -> None:
        """Wait until all of that has been said, `limit_s` at most."""
        said = threading.Event()
        self._todo.put(said.set)
        said.wait(limit_s)

    def close(self) -> None:
        """Have the rest said and the terminal left as it was, however long that takes.

        Who does not want to wait for a terminal that is stopped presses Ctrl-C, which ends the process:
        Python itself would wait for it at its end.

        Raises
        ------
        Exception
            What went wrong while it was said, which is a defect of ours.
        """
        self._todo.put(self._inner.close)
        self._todo.put(None)
        try:
            self._thread.join()
        except KeyboardInterrupt:
            os._exit(INTERRUPTED)
        if self._error is not None:
            raise self._error

    def _show_latest(self) -> None:
        with self._lock:
            progress, self._latest = self._latest, None
        if progress is not None:
            self._inner.progress(progress)

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            try:
                item()
            except Exception as error:  # raised again by `close`, in the thread that can end the program
                self._error = self._error or error
