"""The mpiexec that belongs to a solver, and the flags that it needs inside a worker.

Rule: the solver's MPI library decides, not PATH: an mpiexec of another MPI
starts N worlds of one rank each, silently. Where the two cannot be told to
belong together, nothing is started and the reason is said.

    program --(ldd; mpi4py)--> libmpi --> <prefix>/bin/mpiexec of the same family --> flags
    srun    --> --overlap --exact on this node, or --exact anywhere in the allocation

Flags: the worker has given the task its cores already, so an inner mpiexec
must not bind (two of them would bind to the same cores) and must not count.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from typing import Literal

import msgspec

from keystone_mpi.tools.finding import say

Family = Literal["openmpi", "mpich", ""]

OPENMPI_FLAGS = ("--oversubscribe", "--bind-to", "none")
AS_ROOT = "--allow-run-as-root"
_LOOK_S = 30.0
_LIBRARY = re.compile(r"\b(libmpi(?:ch)?\.so\.\d+)\S*\s+=>\s+(\S+)")
_PYTHON = re.compile(r"(python|pypy)[0-9.]*\Z")
_LIBRARY_OF_PYTHON = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
for line in open("/proc/self/maps"):
    path = line.split()[-1]
    if "libmpi.so" in path or "libmpich.so" in path:
        print("libmpi", path)
        break
"""


class NoLauncherError(Exception):
    """No mpiexec or srun that could start the solver's ranks; the text says why."""


class RankLauncher(msgspec.Struct, frozen=True):
    """What stands before a solver's command."""

    argv: tuple[str, ...]
    """Up to the number of ranks, ``-n N``, which comes next."""
    rewrites_arguments: bool = False
    """It changes arguments of the solver that look like its own (Open MPI 5)."""

    def prefix(self, ranks: int) -> tuple[str, ...]:
        """Return the words before the command."""
        return (*self.argv, "-n", str(ranks))


def find_rank_launcher(
    kind: str,
    path: str,
    flags: tuple[str, ...],
    threads: int,
    program: str,
    env: Mapping[str, str],
    *,
    whole_allocation: bool = False,
) -> RankLauncher:
    """Find what starts the ranks of a solver.

    Parameters
    ----------
    kind : str
        ``mpiexec`` or ``srun``.
    path : str
        The user's own choice of it; empty: the one that belongs to `program`.
    flags : tuple of str
        The user's own, after ours.
    threads : int
        Cores per rank.
    program : str
        First word of the solver's command, or the application it starts.
    env : mapping
        The solver's environment.
    whole_allocation : bool
        The worker speaks for all nodes of the allocation: steps may span them.

    Raises
    ------
    NoLauncherError
        There is none.
    """
    search = env.get("PATH", os.defpath)
    if kind == "srun":
        srun = shutil.which(path or "srun", path=search)
        if srun is None:
            raise NoLauncherError("srun is not on PATH")
        return RankLauncher((srun, *_srun_flags(threads, env, whole_allocation), *flags))
    if path:
        found = shutil.which(path, path=search)
        if found is None:
            raise NoLauncherError(f"launcher_path: {path} is no program")
        return _with_flags(found, flags, dict(env))
    return _with_flags(_belonging(program, env), flags, dict(env))


def _srun_flags(threads: int, env: Mapping[str, str], whole_allocation: bool) -> list[str]:
    if whole_allocation:
        # No step of ours holds cores: Slurm gives each step its own, on as many nodes as it needs.
        return ["--exact", f"--cpus-per-task={threads}"]
    flags = ["--overlap", "--exact", "--nodes=1", f"--cpus-per-task={threads}"]
    node = env.get("SLURMD_NODENAME", "")
    if node:
        flags.append(f"--nodelist={node}")
    return flags


def _with_flags(mpiexec: str, flags: tuple[str, ...], env: dict[str, str]) -> RankLauncher:
    family, version = family_of(mpiexec, env)
    if family != "openmpi":
        return RankLauncher((mpiexec, *flags))
    as_root = (AS_ROOT,) if os.geteuid() == 0 else ()
    return RankLauncher((mpiexec, *as_root, *OPENMPI_FLAGS, *flags), rewrites_arguments=version >= 5)


def family_of(mpiexec: str, env: Mapping[str, str]) -> tuple[Family, int]:
    """Ask an mpiexec which MPI it is of: family and major version (0: unknown)."""
    code, text = say([mpiexec, "--version"], dict(env), _LOOK_S)
    if code == 0 and ("Open MPI" in text or "OpenRTE" in text):
        found = re.search(r"(\d+)\.\d+", text)
        return "openmpi", int(found.group(1)) if found is not None else 0
    if "PRRTE" in text or "prterun" in text:
        return "openmpi", 5
    if code == 0 and ("HYDRA" in text or "MPICH" in text or "Intel(R) MPI" in text):
        return "mpich", 0
    return "", 0


def library_of(program: str, env: Mapping[str, str]) -> tuple[Family, str]:
    """Return the MPI library that a program loads: family and path; ("", "") when that cannot be told."""
    path = shutil.which(program, path=env.get("PATH", os.defpath))
    if path is None:
        return "", ""
    if _PYTHON.match(os.path.basename(path)):
        code, text = say([path, "-c", _LIBRARY_OF_PYTHON], dict(env), _LOOK_S)
        found = re.search(r"^libmpi (\S+)", text, re.MULTILINE)
        library = found.group(1) if code == 0 and found is not None else ""
    else:
        code, text = say(["ldd", path], dict(env), _LOOK_S)
        linked = _LIBRARY.search(text)
        library = linked.group(2) if code == 0 and linked is not None else ""
    if not library:
        return "", ""
    library = os.path.realpath(library)
    is_mpich = "libmpich.so" in library or "libmpi.so.12" in library
    return ("mpich" if is_mpich else "openmpi"), library


def _belonging(program: str, env: Mapping[str, str]) -> str:
    """Return the mpiexec of the solver's own MPI."""
    family, library = library_of(program, env)
    on_path = [
        candidate
        for folder in env.get("PATH", os.defpath).split(":")
        for name in ("mpiexec", "mpirun")
        if (candidate := shutil.which(name, path=folder or ".")) is not None
    ]
    if not family:
        beside = shutil.which(program, path=env.get("PATH", os.defpath))
        folder = os.path.dirname(beside) if beside is not None else ""
        own = shutil.which("mpiexec", path=folder) if folder else None
        if own or on_path:
            return own or on_path[0]
        raise NoLauncherError("no mpiexec is on PATH; name it: launcher_path = ...")
    for candidate in (*_near_library(library, family), *on_path):
        if family_of(candidate, env)[0] == family:
            return candidate
    name = {"openmpi": "Open MPI", "mpich": "MPICH"}[family]
    raise NoLauncherError(
        f"{program} uses {name} ({library}), and no mpiexec of {name} was found; name it: launcher_path = ..."
    )


def _near_library(library: str, family: str) -> list[str]:
    """Return mpiexecs of the installation that a library belongs to, the likeliest first."""
    found: list[str] = []
    folder = os.path.dirname(library)
    while folder not in ("/", ""):
        folder = os.path.dirname(folder)
        for name in ("mpiexec", f"mpiexec.{family}", "mpirun"):
            path = os.path.join(folder, "bin", name)
            if os.access(path, os.X_OK):
                found.append(path)
        if found:
            break
    return found
