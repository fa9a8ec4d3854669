"""A store process as its parent holds it: forked before anything else is there, or started later.

Rule: a fork costs nothing and is ready when the run ends, but must come before
MPI, threads and open files; later, and after a death, another Python is started
(by vfork: no copy is made of a process that holds MPI's memory). Both speak
over one socket, which is their standard input and output; end of file on it
(the parent died) ends them.

    fork_store --> StoreChild (asleep) --load--> imports numpy, h5py --follow PATH--> store_process.serve
    start_store(PATH) --> StoreChild ----------------------------------------------^
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from keystone_mpi.execution.forking import STORE_NAME, ForkedProcess, fork_apart
from keystone_mpi.execution.quick_python import quick_argv

LOAD_REQUEST = b"load"
"""Import what writing takes, now."""
FOLLOW_REQUEST = b"follow"
"""With the output's path in hexadecimal digits: a path may hold any byte."""
FINAL_REQUEST = b"final"
KILLED_WITHIN_S = 5.0
LAST_WORDS_BYTES = 2000


class StoreChild:
    """One store process; `end` must be called.

    Parameters
    ----------
    process : Popen or ForkedProcess
    channel : socket.socket
        Its standard input and output.
    stderr_fd : int
        What it writes to its standard error; a file without a name.
    """

    def __init__(
        self, process: subprocess.Popen[bytes] | ForkedProcess, channel: socket.socket, stderr_fd: int
    ) -> None:
        self._process = process
        self._channel = channel
        self._stderr_fd = stderr_fd
        self._buffer = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is dead."""
        return self._process.poll() is not None

    def ask(self, request: bytes) -> bool:
        """Send a request; False when there is nobody any more."""
        try:
            self._channel.sendall(request + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def follow(self, output_path: Path) -> None:
        """Have it write this file from now on; one that is dead is noticed later."""
        self.ask(FOLLOW_REQUEST + b" " + os.fsencode(output_path).hex().encode())

    def read_lines(self, timeout_s: float) -> list[bytes] | None:
        """Return the whole lines it has written; None at its end."""
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        if not poller.poll(math.ceil(max(0.0, timeout_s) * 1000)):
            return []
        try:
            data = self._channel.recv(65536)
        except ConnectionResetError:  # it died with something unread
            return None
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return lines

    def last_words(self) -> str:
        """Return how it died and what it said last, for a message."""
        code = self._process.poll()
        how = f" (signal {-code})" if code is not None and code < 0 else ""
        size_bytes = os.fstat(self._stderr_fd).st_size
        text = os.pread(self._stderr_fd, LAST_WORDS_BYTES, max(0, size_bytes - LAST_WORDS_BYTES))
        lines = text.decode(errors="replace").rstrip().splitlines()
        return f"{how}: {lines[-1]}" if lines else how

    def kill(self) -> None:
        """Kill it; another thread may be waiting for it."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and let go of it."""
        self._process.kill()
        # One that hangs in the kernel, on a dead mount, goes when that lets it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_WITHIN_S)
        self._channel.close()
        os.close(self._stderr_fd)


def start_store(output_path: Path) -> StoreChild:
    """Start another Python as the store process of one file.

    Raises
    ------
    OSError
        The process cannot be started.
    """

    def start(fd: int, stderr_fd: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            quick_argv(
                "from keystone_mpi.engine.store_process import main; main()",
                ("keystone_mpi", "msgspec", "numpy", "h5py"),
                str(output_path),
            ),
            stdin=fd,
            stdout=fd,
            stderr=stderr_fd,
            start_new_session=True,
            # numpy's BLAS would start a thread per core of the node, for nothing.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )

    return _connected(start)


def fork_store() -> StoreChild:
    """Fork a store process that waits for its first request, asleep; see `fork_apart` for when.

    Raises
    ------
    OSError
        The process cannot be made.
    """
    return _connected(
        lambda fd, stderr_fd: fork_apart(STORE_NAME, _serve, stdin_fd=fd, stdout_fd=fd, stderr_fd=stderr_fd)
    )


def _connected(start: Callable[[int, int], subprocess.Popen[bytes] | ForkedProcess]) -> StoreChild:
    """Make the socket and the file for the last words, and start a process with them."""
    # Its standard error is never mpiexec's, which would wait for it to be closed.
    stderr_fd = _nameless_file()
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = start(theirs.fileno(), stderr_fd)
        except BaseException:
            ours.close()
            os.close(stderr_fd)
            raise
    return StoreChild(process, ours, stderr_fd)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(STORE_NAME)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _serve() -> int:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from keystone_mpi.engine.store_process import main_of_forked

    main_of_forked()
    return 0
