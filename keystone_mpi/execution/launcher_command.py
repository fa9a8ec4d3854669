"""How the launcher process comes to be.

Rule: quick and quiet, see `quick_python` and `forking`; it keeps its socket and
no standard stream.

    fork_launcher   from a rank that has only just begun
    start_launcher  later, and in place of one that died
"""

from __future__ import annotations

import os
import socket
import subprocess

from keystone_mpi.execution.forking import KEPT_FD, LAUNCHER_NAME, ForkedProcess, fork_apart
from keystone_mpi.execution.quick_python import quick_argv


def start_launcher(control: socket.socket) -> subprocess.Popen[bytes]:
    """Start another Python as the launcher that finds its end of the socket in `control`."""
    return subprocess.Popen(
        quick_argv(
            "from keystone_mpi.execution.launcher import main; sys.exit(main(int(sys.argv[1])))",
            ("keystone_mpi", "msgspec"),
            str(control.fileno()),
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=True,
        pass_fds=(control.fileno(),),
        start_new_session=True,
    )


def fork_launcher(control: socket.socket) -> ForkedProcess:
    """Fork the launcher from this process."""
    null_fd = os.open(os.devnull, os.O_RDWR)
    try:
        return fork_apart(
            LAUNCHER_NAME,
            _serve,
            stdin_fd=null_fd,
            stdout_fd=null_fd,
            stderr_fd=null_fd,
            kept_fd=control.fileno(),
        )
    finally:
        os.close(null_fd)


def _serve() -> int:
    from keystone_mpi.execution.launcher import main

    return main(KEPT_FD)
