"""The committer: a thread that makes submitted entries durable, many at a time.

Rule: entries reach the disk in the order of submission or not yet; none is
dropped and none is written twice. A disk that fails or fills up is tried again
every second and the problem is told, while submitting goes on. A journal that
another process has taken over, or a defect of ours, ends the thread: from then
on every call says so, and nothing more becomes durable.

    submit --> JournalWriter.append --> [thread] write at once, fdatasync every interval_s or on demand
                                                     |
                          on_progress <-- durable = highest synced sequence, or problem changed
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence

from keystone_mpi.core.errors import ClusterError, InternalError, LeaseHeldError
from keystone_mpi.records.entries import Entry
from keystone_mpi.records.journal import JournalWriter

_WRITE_PAUSE_S = 0.005
"""Between two writes to the kernel: bounds the cost of many small submissions."""
_RETRY_S = 1.0


class Committer:
    """Group commit of journal entries, off the caller's thread.

    Parameters
    ----------
    writer : JournalWriter
        Owned from now on; closed by `close`.
    interval_s : float
        Shortest time between two syncs that nobody demanded.
    on_progress : callable
        Called from the thread after each advance of `durable` and each change
        of `problem`; must be quick and must not raise.
    """

    def __init__(
        self, writer: JournalWriter, *, interval_s: float = 0.1, on_progress: Callable[[], None] | None = None
    ) -> None:
        self._writer = writer
        self._interval_s = interval_s
        self._on_progress = on_progress or (lambda: None)
        self._wake = threading.Condition()
        self._submitted = 0
        self._durable = 0
        self._demanded = 0
        """Sequence that somebody wants durable at once."""
        self._written = 0
        """Highest sequence that the kernel has."""
        self._pushed = 0
        """Sequence that somebody wants the kernel to have at once."""
        self._lags = False
        """A push was not met in time: the next ones do not wait until the disk has caught up."""
        self._seen = 0
        """Sequence that the thread has handed to the kernel."""
        self._problem = ""
        self._end: LeaseHeldError | InternalError | None = None
        """Why the thread has ended before it was closed; None: it has not."""
        self._closing = False
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="keystone-committer", daemon=True)
        self._thread.start()

    @property
    def durable(self) -> int:
        """Highest sequence number that is on the disk; all before it are too."""
        return self._durable

    @property
    def backlog(self) -> int:
        """How many submitted entries are not durable."""
        return self._submitted - self._durable

    @property
    def backlog_bytes(self) -> int:
        """Bytes of memory that the backlog holds."""
        return self._writer.bytes_pending

    @property
    def problem(self) -> str:
        """What keeps entries from the disk now; empty: nothing.

        Raises
        ------
        LeaseHeldError, InternalError
            Nothing will become durable any more; `submit`, `push` and `wait` raise it too.
        """
        self._check()
        return self._problem

    def submit(self, entries: Sequence[Entry]) -> int:
        """Take entries over, in order.

        Returns
        -------
        int
            Sequence number of the last one; they count from 1.
        """
        with self._wake:
            self._check()
            if self._closing:
                raise InternalError(f"journal {self._writer.path}: submit after close")
            # Encoded here, so that an entry that cannot be is the caller's error, not the thread's.
            for entry in entries:
                self._writer.append(entry)
                self._submitted += 1
            if entries:
                self._wake.notify_all()
            return self._submitted

    def demand(self) -> None:
        """Ask for a sync of everything submitted so far without waiting for the interval."""
        with self._wake:
            self._demanded = self._submitted
            self._wake.notify_all()

    def push(self, timeout_s: float) -> bool:
        """Have what was submitted handed to the kernel, which survives this process's death.

        Returns
        -------
        bool
            False when a stalled disk does not take it within `timeout_s`; until
            it has caught up, further pushes return at once.
        """
        with self._wake:
            self._check()
            if self._lags and self._written < self._pushed:
                return False
            self._lags = False
            self._pushed = self._submitted
            self._wake.notify_all()
            done = self._wake.wait_for(
                lambda: self._written >= self._pushed or self._end is not None, timeout_s
            )
            self._check()
            self._lags = not done
            return done

    def wait(self, sequence: int, timeout_s: float) -> bool:
        """Wait until `sequence` is durable; False when that takes longer than `timeout_s`."""
        with self._wake:
            self._demanded = max(self._demanded, min(sequence, self._submitted))
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._durable >= sequence or self._end is not None, timeout_s)
            if self._durable >= sequence:
                return True
            self._check()
            return False

    def close(self, timeout_s: float = 10.0) -> bool:
        """Make everything durable and end the thread.

        Returns
        -------
        bool
            False when the disk did not take everything within `timeout_s`;
            `problem` says why. What was written until then stays.
        """
        with self._wake:
            self._closing = True
            self._demanded = self._submitted
            self._wake.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            with self._wake:
                self._abandoned = True
                self._wake.notify_all()
            return False
        return self.backlog == 0

    def _run(self) -> None:
        synced_at = 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self.backlog > 0)
                if self._abandoned or (self._closing and self.backlog == 0):
                    self._writer.close()
                    return
                sequence = self._submitted
            try:
                # `sequence` was read before the write, so at least that much is in it.
                self._writer.write()
                self._note_written(sequence)
                now = time.monotonic()
                if self._demanded > self._durable or now >= synced_at + self._interval_s:
                    self._writer.sync()
                    synced_at = time.monotonic()
                    self._advance(sequence)
            except LeaseHeldError as error:
                self._give_up(error)
                return
            except (ClusterError, OSError) as error:
                self._fail(str(error))
                continue
            except Exception as error:  # ours, and trying again would not mend it
                defect = InternalError(f"the journal's thread failed:\n{traceback.format_exc().rstrip()}")
                defect.__cause__ = error
                self._give_up(defect)
                return
            with self._wake:
                self._seen = sequence
                if not self._urgent():
                    # Let entries gather; a demand ends the pause.
                    self._wake.wait_for(self._urgent, _WRITE_PAUSE_S)
                    if (
                        self.backlog > 0
                    ):  # all written, not yet synced: until the next sync's turn or more work
                        until_sync_s = synced_at + self._interval_s - time.monotonic()
                        self._wake.wait_for(self._has_work, max(0.0, until_sync_s))

    def _note_written(self, sequence: int) -> None:
        with self._wake:
            self._written = sequence
            if self._pushed:
                self._wake.notify_all()

    def _urgent(self) -> bool:
        return self._closing or self._demanded > self._durable or self._pushed > self._written

    def _has_work(self) -> bool:
        return self._urgent() or self._submitted != self._seen

    def _advance(self, sequence: int) -> None:
        with self._wake:
            changed = sequence != self._durable or self._problem != ""
            self._durable = sequence
            self._problem = ""
            self._wake.notify_all()
        if changed:
            self._on_progress()

    def _give_up(self, end: LeaseHeldError | InternalError) -> None:
        """Have everybody learn that nothing more becomes durable."""
        with self._wake:
            self._end = end
            self._wake.notify_all()
        self._writer.close()
        self._on_progress()

    def _check(self) -> None:
        """Raise what ended the thread, if something did; anew, since several threads may ask."""
        if self._end is not None:
            raise type(self._end)(*self._end.args) from self._end

    def _fail(self, problem: str) -> None:
        with self._wake:
            changed = problem != self._problem
            self._problem = problem
        if changed:
            self._on_progress()
        with self._wake:
            self._wake.wait_for(lambda: self._abandoned, _RETRY_S)
