"""A helper process that is forked, not started: at once there, with what its parent has imported.

Rule: only from a process that has just begun: one thread, no MPI, nothing open
that matters. Another Python would search and read the same files again, and
ten thousand ranks do so at the same time. The child keeps nothing of what the
rank's launcher gave the rank: no standard stream, no socket of PMI.

    fork_apart --> child: own session, three standard descriptors, one more --> work() --> os._exit
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

LAUNCHER_NAME = "keystone-launch"
SLOT_NAME = "keystone-slot"
STORE_NAME = "keystone-store"
"""What ``ps`` and ``top`` call the helpers, however they were started; 15 bytes at most."""
KEPT_FD = 3
"""Where the child finds the descriptor that it keeps beside the standard ones."""
_OUT_OF_THE_WAY = 16
_SHORTEST_LOOK_S = 0.0005
_LONGEST_LOOK_S = 0.02
_LONGEST_WAIT_S = 60.0


class ForkedProcess:
    """The part of `subprocess.Popen` that is used here, of a process that was forked."""

    def __init__(self, pid: int, name: str) -> None:
        self.pid = pid
        self._name = name
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return its exit code, minus the signal that killed it, None while it lives."""
        with self._lock:
            return self._look()

    def kill(self) -> None:
        """Kill it, if it lives."""
        with self._lock:
            if self._look() is None:
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises
        ------
        subprocess.TimeoutExpired
            It lives on.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        with contextlib.ExitStack() as stack:
            end: select.poll | None = None
            pause_s = _SHORTEST_LOOK_S
            while (code := self.poll()) is None:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    raise subprocess.TimeoutExpired(self._name, timeout or 0.0)
                end = end or self._watch_end(stack)
                if end is not None:
                    end.poll(math.ceil(min(left_s, _LONGEST_WAIT_S) * 1000))
                else:
                    time.sleep(min(pause_s, left_s))
                    pause_s = min(2.0 * pause_s, _LONGEST_LOOK_S)
            return code

    def _watch_end(self, stack: contextlib.ExitStack) -> select.poll | None:
        """Return what becomes ready when it ends; None where Python or the kernel has no such thing."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return None
        stack.callback(os.close, pidfd)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return poller

    def _look(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._code = 0  # it ended, and the kernel was told to forget how: SIGCHLD is ignored here
                return self._code
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code


def fork_apart(
    name: str,
    work: Callable[[], int],
    *,
    stdin_fd: int,
    stdout_fd: int,
    stderr_fd: int,
    kept_fd: int | None = None,
) -> ForkedProcess:
    """Fork a process that does `work` and nothing else.

    Parameters
    ----------
    name : str
        One of the above.
    work : callable
        Runs in the child; its result is the exit code. What it raises is
        written to its standard error.
    stdin_fd, stdout_fd, stderr_fd : int
        Become its standard descriptors.
    kept_fd : int, optional
        Becomes its descriptor `KEPT_FD`. Nothing else stays open.

    Raises
    ------
    OSError
        The process cannot be made.
    """
    pid = os.fork()
    if pid == 0:
        wanted = [stdin_fd, stdout_fd, stderr_fd, *([] if kept_fd is None else [kept_fd])]
        _be_child(name, work, wanted)
    return ForkedProcess(pid, name)


def name_process(name: str) -> None:
    """Have ``ps`` and ``top`` call this process by a name of its own."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name)


def _close_from(first: int) -> None:
    """Close all descriptors from this one on; the limit may be a thousand million of them."""
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) >= first:
            with contextlib.suppress(OSError):  # the one that the list was read with
                os.close(int(entry))


def _be_child(name: str, work: Callable[[], int], wanted: list[int]) -> NoReturn:
    code = 70
    try:
        os.setsid()
        # First out of the way: the standard descriptors may have been closed when the rank started.
        aside = [fcntl.fcntl(fd, fcntl.F_DUPFD, _OUT_OF_THE_WAY) for fd in wanted]
        for target, fd in enumerate(aside):
            os.dup2(fd, target, inheritable=target < KEPT_FD)
        _close_from(len(wanted))
        name_process(name)
        code = work()
    except BaseException:  # told where the parent looks; nothing of it may run in this copy of the rank
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)
