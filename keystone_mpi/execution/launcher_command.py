"""How the launcher process is started, and where it and its slots keep small files.

Rule: quick and quiet: no site packages, no user settings, no search through
sys.path; only the folders of keystone_mpi and msgspec are named.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import keystone_mpi
from keystone_mpi.core.errors import InternalError

_BOOT = (
    "import sys; sys.path[:0] = sys.argv[2:]; "
    "from keystone_mpi.execution.launcher import main; sys.exit(main(int(sys.argv[1])))"
)


def launcher_argv(control_fd: int) -> list[str]:
    """Return the command of a launcher that finds its socket at `control_fd`."""
    msgspec_spec = find_spec("msgspec")
    if msgspec_spec is None or msgspec_spec.origin is None or keystone_mpi.__file__ is None:
        raise InternalError("keystone_mpi or msgspec has no file; the launcher cannot import them")
    folders = [
        str(Path(keystone_mpi.__file__).resolve().parent.parent),
        str(Path(msgspec_spec.origin).resolve().parent.parent),
    ]
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT, str(control_fd), *folders]


def local_scratch_path() -> str:
    """Return the node's own disk: ``$SLURM_TMPDIR``, ``$TMPDIR`` or ``/tmp``, whichever can be written."""
    for name in (os.environ.get("SLURM_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"):
        if name and os.path.isdir(name) and os.access(name, os.W_OK | os.X_OK):
            return os.path.abspath(name)
    return os.getcwd()
