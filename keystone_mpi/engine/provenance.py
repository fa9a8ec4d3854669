"""Where a run came from: versions, host, code state, command line; never secrets.

Rule: an allow-list, not a block-list. Environment variables are recorded only
when their name is listed here.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from typing import Any

from keystone_mpi import __version__

RECORDED_VARIABLES = (
    "CONDA_DEFAULT_ENV",
    "LOADEDMODULES",
    "OMP_NUM_THREADS",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_PARTITION",
    "PBS_JOBID",
    "VIRTUAL_ENV",
)
"""Names whose values may go into a results file that is passed on."""


def gather_provenance(command_line: list[str]) -> dict[str, Any]:
    """Return what a reader needs to know to run the same again, as plain JSON-able data."""
    system = os.uname()
    return {
        "keystone_mpi": __version__,
        "python": platform.python_version(),
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "host": socket.gethostname(),
        "folder": os.getcwd(),
        "executable": sys.executable,
        "command_line": command_line,
        "environment": {name: os.environ[name] for name in RECORDED_VARIABLES if name in os.environ},
    }
