"""The store process: follows the journal and writes the HDF5 file, beside the master.

Rule: it only reads the journal and only replaces the file; the master never
waits for it before the end, and losing it loses nothing. A batch costs what it
costs, and the next one waits until twenty times that long has passed, so that
writing takes at most a twentieth of the time. End of file on its standard
input (the master died) ends it. A run that is over before a process would have
imported h5py needs none: its one batch is written by the master at the end,
which loads what that takes while it waits for the first tasks.

    master --stdin-->  output path, then "final" | (end of file)
    master <--stdout-- {"final": ..., "problem": ...} once per batch, JSON lines
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.errors import KeystoneError
from keystone_mpi.deferred_numpy import load_numpy
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.execution.quick_python import quick_argv
from keystone_mpi.records.journal import journal_path, read_head
from keystone_mpi.records.store import finish, fold

if TYPE_CHECKING:
    from keystone_mpi.records.store import ColumnSource

START_AFTER_S = 3.0
"""A run shorter than this has its file written by the master, at its end."""
SHORTEST_PAUSE_S = 1.0
DUTY_FACTOR = 20.0
FINAL_REQUEST = b"final\n"
RESTARTS = 5
"""Of a store process that dies before it has written a batch; then the file is left to the next start."""
KILLED_WITHIN_S = 5.0
LAST_WORDS_BYTES = 2000
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
    preload : bool
        This process may have to write the file, soon: load numpy and h5py meanwhile.
    """

    def __init__(self, output_path: Path, *, preload: bool = False) -> None:
        self._output_path = output_path
        self._opened_at = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr_fd = -1
        self._given_up = False
        self.is_writing = False
        """Some thread is in `finish`: the lease must not go before that has returned."""
        self._buffer = b""
        self._restarts = 0
        self.problem = ""
        """Why the last batch could not be written; empty: it was."""
        if preload:
            threading.Thread(target=_preload, name="keystone-preload", daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        # Never mpiexec's, which would wait for it to be closed; told when the process dies.
        self._stderr_fd = os.memfd_create("keystone-store-stderr")
        # By vfork (subprocess does): no copy is made of a process that holds MPI's memory.
        self._process = subprocess.Popen(
            quick_argv(
                "from keystone_mpi.engine.store_process import main; main()",
                ("keystone_mpi", "msgspec", "numpy", "h5py"),
                str(self._output_path),
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr_fd,
            start_new_session=True,
            bufsize=0,
            # numpy's BLAS would start a thread per core of the node, for nothing.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self._buffer = b""
        if self._given_up:
            self._process.kill()
        return self._process

    def ensure_started(self) -> None:
        """Start the process if it was not time yet: a program's own process is not to load HDF5."""
        if self._process is None and not self._given_up:
            self._start()

    def poll(self) -> None:
        """Hear of the batches that ended; start the process when it is time, or another when it died."""
        if self._process is None:
            if time.monotonic() - self._opened_at >= START_AFTER_S:
                self._start()
            return
        self._read(self._process, 0.0)
        if self._process.poll() is None:
            return
        if self._restarts < RESTARTS:
            self._restart()
        elif not self.problem:
            self.problem = self._died()

    def _died(self) -> str:
        return f"the store process died {RESTARTS + 1} times in a row{self._last_words()}"

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
        self._start()
        return True

    def give_up(self) -> None:
        """Write nothing more; callable while another thread is in `finish`, which then returns soon.

        What the master itself is writing goes on: see `is_writing`.
        """
        self._given_up = True
        process = self._process
        if process is not None:
            process.kill()

    def _last_words(self) -> str:
        """Return what the process that died said last, for a message."""
        assert self._process is not None
        code = self._process.poll()
        how = f" (signal {-code})" if code is not None and code < 0 else ""
        size_bytes = os.fstat(self._stderr_fd).st_size
        text = os.pread(self._stderr_fd, LAST_WORDS_BYTES, max(0, size_bytes - LAST_WORDS_BYTES))
        lines = text.decode(errors="replace").rstrip().splitlines()
        return f"{how}: {lines[-1]}" if lines else how

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
        if self._process is None:
            return _Folder(self._output_path).fold(final=True)
        deadline = time.monotonic() + timeout_s
        while True:
            result = self._finish_once(self._process, deadline)
            if result is not None:
                self.close()
                return result
            if not self._restart():
                return BatchResult(final=True, problem=self.problem)

    def _finish_once(self, process: subprocess.Popen[bytes], deadline: float) -> BatchResult | None:
        """Ask for the last batch; None when the process died before it answered."""
        assert process.stdin is not None
        try:
            process.stdin.write(FINAL_REQUEST)
        except BrokenPipeError:
            return None
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return BatchResult(final=True, problem="the last batch took too long")
            heard = self._read(process, left_s)
            if heard is None:
                return None
            for batch in heard:
                if batch.final:
                    return batch

    def close(self) -> None:
        """End the process at once; a batch that is being written leaves no trace."""
        if self._process is not None:
            self._process.kill()
            # One that hangs in the kernel, on a dead mount, goes when that lets it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.communicate(timeout=KILLED_WITHIN_S)
            os.close(self._stderr_fd)
            self._process = None

    def _read(self, process: subprocess.Popen[bytes], timeout_s: float) -> list[BatchResult] | None:
        """Return the batches heard of; None at the end of the process."""
        assert process.stdout is not None
        fd = process.stdout.fileno()
        if not select.select([fd], (), (), max(0.0, timeout_s))[0]:
            return []
        data = os.read(fd, 65536)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        results = [msgspec.json.decode(line, type=BatchResult) for line in lines]
        if results:
            self.problem = results[-1].problem
            self._restarts = 0
        return results


def _preload() -> None:
    """Load what `_Folder.fold` needs; what goes wrong is told by its own import."""
    with contextlib.suppress(ImportError):
        load_numpy()
        import keystone_mpi.records.store.folding  # noqa: F401 - h5py, while the master waits


class _Folder:
    """Folds the journal into the file; reads the journal's header once."""

    def __init__(self, output_path: Path) -> None:
        self._output_path = output_path
        self.journal_path = journal_path(output_path)
        self._columns: ColumnSource | None = None

    def fold(self, *, final: bool) -> BatchResult:
        try:
            if self._columns is None:
                head = read_head(self.journal_path)
                if head is None:
                    return BatchResult(final=final, problem="the journal has no header yet" if final else "")
                self._columns = columns_from_spec(head.spec, head.added_points)
            result = fold(self._output_path, self.journal_path, self._columns, final=final)
            if final and not result.closed:
                # The master's last entry is in it, so something before that cannot be read.
                return BatchResult(
                    final=True,
                    problem=f"{self.journal_path} is damaged at byte {result.journal_offset:,}, and what was "
                    "recorded after that is not in the file; the journal is kept, and the same command again "
                    "runs what is missing",
                )
            if final:
                return BatchResult(final=True, notices=finish(self._output_path))
        except KeystoneError as error:
            return BatchResult(final=final, problem=str(error))
        except Exception:  # ours: the journal keeps everything, and the master shows the traceback
            return BatchResult(final=final, problem=f"internal error in the store:\n{traceback.format_exc()}")
        return BatchResult(final=final)


def _serve(output_path: Path) -> None:
    folder = _Folder(output_path)
    folded_bytes = -1
    pause_s = 0.0
    while True:
        if select.select([0], (), (), pause_s)[0]:
            if os.read(0, 64):
                os.write(1, msgspec.json.encode(folder.fold(final=True)) + b"\n")
            return
        size_bytes = folder.journal_path.stat().st_size
        if size_bytes == folded_bytes:
            pause_s = SHORTEST_PAUSE_S
            continue
        started = time.monotonic()
        result = folder.fold(final=False)
        if not result.problem:
            folded_bytes = size_bytes
        os.write(1, msgspec.json.encode(result) + b"\n")
        pause_s = max(SHORTEST_PAUSE_S, DUTY_FACTOR * (time.monotonic() - started))


def main() -> None:
    """Run the store process; for `StoreClient` only."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the master decides when this process ends
    try:
        _serve(Path(sys.argv[1]))
    except (BrokenPipeError, FileNotFoundError):
        return  # the master died, or its journal is gone: nothing is left to do here
