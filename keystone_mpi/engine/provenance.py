"""Where a run came from: versions, host, code state, command line; never secrets.

Rule: an allow-list, not a block-list. Environment variables are recorded only
when their name is listed here. What cannot be found out is left out; nothing
here can stop a run or hold it up for more than a moment.

    gather_provenance --> versions, host, folder, git commit, MPI library, modules, job, environment
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import socket
import subprocess
import sys
from typing import Any

from keystone_mpi import __version__

RECORDED_VARIABLES = (
    "CONDA_DEFAULT_ENV",
    "OMP_NUM_THREADS",
    "PBS_JOBID",
    "VIRTUAL_ENV",
)
"""Names whose values may go into a results file that is passed on."""

JOB_VARIABLES = (
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_CLUSTER_NAME",
    "SLURM_CPUS_ON_NODE",
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_PARTITION",
    "SLURM_NTASKS",
)
"""The same, of the Slurm job."""

PACKAGES = ("mpi4py", "numpy", "h5py", "msgspec")
GIT_LIMIT_S = 3.0
"""On a cold network file system `git status` can take minutes: then the commit stays unsaid."""
MOST_HOSTS = 10_000

_LIST_PART = re.compile(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*")
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def gather_provenance(command_line: list[str]) -> dict[str, Any]:
    """Return what a reader needs to know to run the same again, as plain JSON-able data.

    Keys that have no value are left out, but for those of the first lines.
    """
    system = os.uname()
    found: dict[str, Any] = {
        "keystone_mpi": __version__,
        "python": platform.python_version(),
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "host": socket.gethostname(),
        "folder": os.getcwd(),
        "executable": sys.executable,
        "command_line": command_line,
        "packages": _packages(),
        "environment": _recorded(RECORDED_VARIABLES),
    }
    slurm = _recorded(JOB_VARIABLES)
    optional: dict[str, Any] = {
        "mpi": mpi_library(),
        "git": git_state(os.getcwd()),
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        "slurm": slurm,
        "hosts": expand_hosts(slurm.get("SLURM_JOB_NODELIST", "")),
    }
    return found | {name: value for name, value in optional.items() if value}


def mpi_library() -> str:
    """Return the MPI library's own words for its version, on one line; empty when none is loaded."""
    loaded: Any = sys.modules.get("mpi4py.MPI")
    if loaded is None:
        return ""
    try:
        lines = str(loaded.Get_library_version()).replace("\0", "").splitlines()
    except Exception:  # an MPI library's own kinds of error; its version is not worth a run
        return ""
    return " ".join(lines[0].split()) if lines else ""


def git_state(folder: str) -> dict[str, Any]:
    """Return the commit, the branch and the dirty flag of the work tree that `folder` is in; empty: none.

    Untracked files do not make it dirty: results lie beside the sweep.
    """
    if not _in_git_tree(folder):
        return {}
    command = ["git", "-C", folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_LIMIT_S,
            check=False,
            # No lock is taken and no question asked.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    if done.returncode != 0:
        return {}
    found: dict[str, Any] = {"dirty": False}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith("# branch.oid "):
            found["commit"] = line.removeprefix("# branch.oid ")
        elif line.startswith("# branch.head "):
            found["branch"] = line.removeprefix("# branch.head ")
        elif not line.startswith("#"):
            found["dirty"] = True
    return found if found.get("commit", "(initial)") != "(initial)" else {}


def expand_hosts(node_list: str) -> list[str]:
    """Return the hosts of a Slurm node list such as ``n[01-03,7],login``."""
    hosts: list[str] = []
    for part in _LIST_PART.findall(node_list):
        names = [""]
        position = 0
        for brackets in _BRACKETS.finditer(part):
            names = [name + part[position : brackets.start()] for name in names]
            names = [name + number for name in names for number in _numbers(brackets.group(1))][:MOST_HOSTS]
            position = brackets.end()
        hosts += [name + part[position:] for name in names]
    return hosts[:MOST_HOSTS]


def _numbers(text: str) -> list[str]:
    """Expand ``01-03,7``."""
    found: list[str] = []
    for item in text.split(","):
        low, dash, high = item.partition("-")
        if dash and low.isdigit() and high.isdigit():
            last = min(int(high), int(low) + MOST_HOSTS)
            found += [str(number).zfill(len(low)) for number in range(int(low), last + 1)]
        else:
            found.append(item)
    return found


def _recorded(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def _packages() -> dict[str, str]:
    """Read versions from the names of the packages' folders: a start is no time to parse files."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue  # such as mpi4py on a laptop
        prefix = f"{name}-"
        for entry in os.listdir(os.path.dirname(os.path.dirname(spec.origin))):
            if entry.startswith(prefix) and entry.endswith(".dist-info"):
                found[name] = entry[len(prefix) : -len(".dist-info")]
    return found


def _in_git_tree(folder: str) -> bool:
    """Tell whether some folder above holds ``.git``; cheaper than asking git."""
    while not os.path.exists(os.path.join(folder, ".git")):
        above = os.path.dirname(folder)
        if above == folder:
            return False
        folder = above
    return True
