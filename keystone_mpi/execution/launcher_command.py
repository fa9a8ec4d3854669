"""How the launcher process is started.

Rule: quick and quiet: see `quick_python`.
"""

from __future__ import annotations

from keystone_mpi.execution.quick_python import quick_argv


def launcher_argv(control_fd: int) -> list[str]:
    """Return the command of a launcher that finds its socket at `control_fd`."""
    return quick_argv(
        "from keystone_mpi.execution.launcher import main; sys.exit(main(int(sys.argv[1])))",
        ("keystone_mpi", "msgspec"),
        str(control_fd),
    )
