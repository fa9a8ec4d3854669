"""Which terminal a person watches, if any.

Rule: under mpiexec the rank's own standard output says nothing: MPICH gives it
a pipe, Open MPI a terminal of its own, whatever mpiexec's output is. What
counts is where mpiexec itself writes.

    no launcher   isatty(stream)
    mpiexec       the nearest mpiexec above this process: /proc/PID/fd/1
    srun          its processes are elsewhere: no terminal
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TextIO

LAUNCHER_NAMES = re.compile(r"mpiexec|mpirun|prterun|orterun|prte$|hydra")
GENERATIONS = 6
"""Processes between a rank and its mpiexec, at most."""


def watched_columns(stream: TextIO) -> int | None:
    """Return the width of the terminal on which a person sees `stream`; None when nobody does."""
    from keystone_mpi.execution.environment import launcher_environment

    if launcher_environment().launcher is None:
        try:
            return _columns(stream.fileno()) if stream.isatty() else None
        except (OSError, ValueError):
            return 80
    path = _launcher_output(os.getppid())
    if not path.startswith(("/dev/pts/", "/dev/tty", "/dev/console")):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _columns(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _columns(descriptor: int) -> int:
    return os.get_terminal_size(descriptor).columns or 80


def _launcher_output(pid: int) -> str:
    """Return what the topmost launcher above `pid` has as standard output; empty when unknown."""
    found = ""
    for _ in range(GENERATIONS):
        if pid <= 1:
            break
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
            name = status[status.index("(") + 1 : status.rindex(")")]
            if LAUNCHER_NAMES.search(name):
                found = os.readlink(f"/proc/{pid}/fd/1")
            elif found:
                break
            pid = int(status.rpartition(")")[2].split()[1])
        except OSError:
            break
    return found
