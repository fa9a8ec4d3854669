"""The store process: follows the journal and writes the HDF5 file, beside the master.

Rule: it only reads the journal and only replaces the file; the master never
waits for it before the end, and losing it loses nothing. A batch costs what it
costs, and the next one waits until twenty times that long has passed, so that
writing takes at most a twentieth of the time. End of file on its standard
input (the master died) ends it.

    master --stdin-->  final | (end of file)
    master <--stdout-- {"generation": ..., "problem": ...} once per batch, JSON lines
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.errors import KeystoneError
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.records.journal import journal_path, read_head
from keystone_mpi.records.store import fold

if TYPE_CHECKING:
    from keystone_mpi.records.store import ColumnSource

FIRST_BATCH_S = 0.5
SHORTEST_PAUSE_S = 1.0
DUTY_FACTOR = 20.0
FINAL_REQUEST = b"final\n"


class BatchResult(msgspec.Struct, frozen=True):
    """What the store process says after a batch."""

    final: bool
    problem: str = ""
    """Why the file could not be written; empty: it was."""


class StoreClient:
    """The master's handle on its store process.

    Parameters
    ----------
    output_path : Path
        The HDF5 file; its journal must exist already.
    """

    def __init__(self, output_path: Path) -> None:
        # Started before MPI_Init, and by vfork: no copy of a process that holds MPI memory is made.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "keystone_mpi.engine.store_process", str(output_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # never holds mpiexec's; problems come as messages
            start_new_session=True,
            bufsize=0,
        )
        self._buffer = b""
        self.problem = ""

    @property
    def pid(self) -> int:
        """Process id, for people and tests."""
        return self._process.pid

    @property
    def fileno(self) -> int:
        """Readable when a batch has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def poll(self) -> list[BatchResult]:
        """Return the batches that ended since the last call, without waiting."""
        return self._read(0.0)

    def finish(self, timeout_s: float) -> BatchResult:
        """Have the last batch written and the process ended.

        Returns
        -------
        BatchResult
            With a problem when the file could not be written in time; the
            journal then still holds everything.
        """
        deadline = time.monotonic() + timeout_s
        result = BatchResult(final=True, problem="the store process ended early")
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(FINAL_REQUEST)
        except BrokenPipeError:
            pass
        else:
            while self._process.poll() is None or select.select([self.fileno], (), (), 0)[0]:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    result = BatchResult(final=True, problem=f"not written within {timeout_s:.0f} s")
                    break
                batches = self._read(left_s)
                finals = [batch for batch in batches if batch.final]
                if finals:
                    result = finals[0]
                    break
                if not batches and self._process.poll() is not None:
                    break
        self.close()
        return result

    def close(self) -> None:
        """End the process at once; a batch that is being written leaves no trace."""
        self._process.kill()
        self._process.communicate()

    def _read(self, timeout_s: float) -> list[BatchResult]:
        if not select.select([self.fileno], (), (), max(0.0, timeout_s))[0]:
            return []
        data = os.read(self.fileno, 65536)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        results = [msgspec.json.decode(line, type=BatchResult) for line in lines]
        if results:
            self.problem = results[-1].problem
        return results


class _Folder:
    """Folds the journal into the file; reads the journal's header once."""

    def __init__(self, output_path: Path) -> None:
        import keystone_mpi.records.store.folding  # noqa: F401 - the slow import happens while the run starts

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
            fold(self._output_path, self.journal_path, self._columns, final=final)
        except KeystoneError as error:
            return BatchResult(final=final, problem=str(error))
        except Exception:  # ours: the journal keeps everything, and the master shows the traceback
            return BatchResult(final=final, problem=f"internal error in the store:\n{traceback.format_exc()}")
        return BatchResult(final=final)


def _serve(output_path: Path) -> None:
    folder = _Folder(output_path)
    folded_bytes = -1
    pause_s = FIRST_BATCH_S
    while True:
        if select.select([0], (), (), pause_s)[0]:
            request = os.read(0, 64)
            if not request:
                return
            result = folder.fold(final=True)
            os.write(1, msgspec.json.encode(result) + b"\n")
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
    output_path = Path(sys.argv[1])
    try:
        _serve(output_path)
    except (BrokenPipeError, FileNotFoundError):
        return  # the master died, or its journal is gone: nothing is left to do here


if __name__ == "__main__":
    main()
