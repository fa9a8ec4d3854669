"""The store process: follows the journal and writes the HDF5 file, beside the master.

Rule: it only reads the journal and only replaces the file; the master never
waits for it before the end, and losing it loses nothing. A batch costs what it
costs, and the next one waits until twenty times that long has passed, so that
writing takes at most a twentieth of the time. End of file on its standard
input (the master died) ends it. One that was forked from the master imports
what it needs and makes the file, without a task, while the master starts: what
is left for the end of a short run is little.

    master --stdin-->  ["load",] "follow PATH" (or PATH as argument), then "final" | (end of file)
    master <--stdout-- {"final": ..., "problem": ...} once per batch, JSON lines
"""

from __future__ import annotations

import os
import platform
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.errors import InternalError, KeystoneError
from keystone_mpi.deferred_numpy import load_numpy
from keystone_mpi.engine.collector import settle_collector
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.engine.store_child import FINAL_REQUEST, FOLLOW_REQUEST, LOAD_REQUEST
from keystone_mpi.engine.store_client import SMALL_FILE_TASKS, START_AFTER_S, BatchResult
from keystone_mpi.execution.forking import STORE_NAME, name_process
from keystone_mpi.records.journal import journal_path, read_head
from keystone_mpi.records.store import finish, fold

if TYPE_CHECKING:
    from collections.abc import Callable

    from keystone_mpi.records.entries import RunOpened
    from keystone_mpi.records.store import ColumnSource

FIRST_LOOK_S = 0.005
SHORTEST_PAUSE_S = 1.0
DUTY_FACTOR = 20.0


class Folder:
    """Folds the journal into the file; reads the journal's header once."""

    def __init__(self, output_path: Path) -> None:
        self._output_path = output_path
        self.journal_path = journal_path(output_path)
        self._head: RunOpened | None = None
        self._columns: ColumnSource | None = None

    def look(self) -> RunOpened | None:
        """Return the journal's header; None when it has none yet."""
        if self._head is None:
            self._head = read_head(self.journal_path)
        return self._head

    def fold(self, *, final: bool) -> BatchResult:
        """Write a batch."""
        try:
            head = self.look()
            if head is None:
                return BatchResult(final=final, problem="the journal has no header yet" if final else "")
            if self._columns is None:
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


class _Requests:
    """What the master wants, line by line."""

    def __init__(self) -> None:
        self._buffer = b""

    def next(self, timeout_s: float | None) -> bytes | None:
        """Return the next request, empty at end of file; None when none came in time."""
        while b"\n" not in self._buffer:
            if not select.select([0], (), (), timeout_s)[0]:
                return None
            data = os.read(0, 65536)
            if not data:
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _serve(requests: _Requests, output_path: Path) -> None:
    folder = Folder(output_path)
    folded_bytes = -1
    pause_s = FIRST_LOOK_S
    while True:
        request = requests.next(pause_s)
        if request is not None:
            if request == FINAL_REQUEST:
                os.write(1, msgspec.json.encode(folder.fold(final=True)) + b"\n")
            return
        head = folder.look()
        if head is None:
            pause_s = min(2.0 * pause_s, SHORTEST_PAUSE_S)
            continue
        if (
            folded_bytes < 0
            and head.task_count > SMALL_FILE_TASKS
            and time.time() < head.opened + START_AFTER_S
        ):
            pause_s = START_AFTER_S
            continue
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


def _load() -> None:
    """Import what `Folder.fold` needs."""
    # h5py asks for the processor's name, for which Python would search PATH and start `uname`.
    vars(platform.uname()).setdefault("processor", "")
    load_numpy()
    import keystone_mpi.records.store.folding  # noqa: F401 - h5py, while the master does other things

    settle_collector()


def _follow(requests: _Requests) -> None:
    """Wait, asleep, until there is something to do."""
    while request := requests.next(None):
        word, _, argument = request.partition(b" ")
        if word == LOAD_REQUEST:
            _load()
        elif word == FOLLOW_REQUEST:
            output_path = Path(os.fsdecode(bytes.fromhex(argument.decode())))
            _serve(requests, output_path)
            return
        else:
            raise InternalError(f"the store process knows no request {request!r}")


def main() -> None:
    """Be the store process of the file named by the first argument; for `start_store` only."""
    name_process(STORE_NAME)
    _shielded(lambda: _serve(_Requests(), Path(sys.argv[1])))


def main_of_forked() -> None:
    """Be a store process that waits for its work; for `fork_store` only."""
    _shielded(lambda: _follow(_Requests()))


def _shielded(work: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the master decides when this process ends
    try:
        work()
    except (BrokenPipeError, ConnectionResetError, FileNotFoundError):
        return  # the master died, or its journal is gone: nothing is left to do here
