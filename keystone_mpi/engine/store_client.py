"""The master's side of the store process: when it starts, what it says, and another when it dies.

Rule: the master never waits for it before the end, and losing it loses nothing:
the journal keeps everything. One that dies again and again is told of, and the
file is left to the next start.

    poll (every tick) --> batches heard of; dead --> another, `RESTARTS` times in a row
    finish --> "final" --> the last batch's result
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from keystone_mpi.engine.store_child import FINAL_REQUEST, StoreChild, start_store

START_AFTER_S = 3.0
"""A program whose run is shorter has its store process started at the end of that."""
SMALL_FILE_TASKS = 100_000
"""The file of so many tasks is made at once, without results: a second or two at most."""
RESTARTS = 5
"""Of a store process that dies before it has written a batch; then the file is left to the next start."""
GIVEN_UP = "nobody waits for the last batch any more"


class BatchResult(msgspec.Struct, frozen=True):
    """What the store process says after a batch."""

    final: bool
    problem: str = ""
    """Why the file could not be written; empty: it was."""
    notices: list[str] = []
    """What the user should know of the finished file."""


class StoreClient:
    """The master's handle on its store process, which starts when the run has lasted a little.

    Parameters
    ----------
    output_path : Path
        The HDF5 file to write; its journal exists.
    child : StoreChild, optional
        The store process, forked beforehand; otherwise one is started when the run has lasted a little.
    """

    def __init__(self, output_path: Path, child: StoreChild | None = None) -> None:
        self._output_path = output_path
        self._opened_at = time.monotonic()
        self._child = child
        self._given_up = False
        self.is_writing = False
        """Some thread is in `finish`: the lease must not go before that has returned."""
        self._restarts = 0
        self.problem = ""
        """Why the last batch could not be written; empty: it was."""
        if child is not None:
            child.follow(output_path)

    def _start(self) -> bool:
        """Start a process; False when that cannot be done now."""
        try:
            self._child = start_store(self._output_path)
        except OSError as error:
            self.problem = f"the store process cannot be started: {error.strerror}"
            return False
        if self._given_up:
            self._child.kill()
        return True

    def ensure_started(self) -> None:
        """Start the process if it was not time yet."""
        if self._child is None and not self._given_up:
            self._start()

    def poll(self) -> None:
        """Hear of the batches that ended; start the process when it is time, or another when it died."""
        if self._child is None:
            if time.monotonic() - self._opened_at >= START_AFTER_S:
                self._start()
            return
        self._read(self._child, 0.0)
        if not self._child.has_ended:
            return
        if self._restarts < RESTARTS:
            self._restart()
        elif not self.problem:
            self.problem = self._died()

    def _died(self) -> str:
        assert self._child is not None
        return f"the store process died {RESTARTS + 1} times in a row{self._child.last_words()}"

    def _restart(self) -> bool:
        """Start another process; False when they die one after the other."""
        if self._given_up:
            self.problem = GIVEN_UP
            return False
        if self._restarts >= RESTARTS:
            self.problem = self._died()
            self.close()
            return False
        self.close()
        self._restarts += 1
        return self._start()

    def give_up(self) -> None:
        """Write nothing more; callable while another thread is in `finish`, which then returns soon."""
        self._given_up = True
        child = self._child
        if child is not None:
            child.kill()

    def finish(self, timeout_s: float) -> BatchResult:
        """Have the last batch written and the process ended.

        Returns
        -------
        BatchResult
            With a problem when the file could not be written in time; the
            journal then still holds everything.
        """
        self.is_writing = True
        try:
            return self._finish(timeout_s)
        finally:
            self.is_writing = False

    def _finish(self, timeout_s: float) -> BatchResult:
        if self._given_up:
            return BatchResult(final=True, problem=GIVEN_UP)
        self.ensure_started()
        deadline = time.monotonic() + timeout_s
        while True:
            if self._child is None:
                return BatchResult(final=True, problem=self.problem)
            result = self._finish_once(self._child, deadline)
            if result is not None:
                self.close()
                return result
            if not self._restart():
                return BatchResult(final=True, problem=self.problem)

    def _finish_once(self, child: StoreChild, deadline: float) -> BatchResult | None:
        """Ask for the last batch; None when the process died before it answered."""
        if not child.ask(FINAL_REQUEST):
            return None
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return BatchResult(final=True, problem="the last batch took too long")
            heard = self._read(child, left_s)
            if heard is None:
                return None
            for batch in heard:
                if batch.final:
                    return batch

    def close(self) -> None:
        """End the process at once; a batch that is being written leaves no trace."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _read(self, child: StoreChild, timeout_s: float) -> list[BatchResult] | None:
        """Return the batches heard of; None at the end of the process."""
        lines = child.read_lines(timeout_s)
        if lines is None:
            return None
        results = [msgspec.json.decode(line, type=BatchResult) for line in lines]
        if results:
            self.problem = results[-1].problem
            self._restarts = 0
        return results
