"""What `doctor` asks of the MPI that would run a sweep.

Rule: MPI is only ever touched in a process of its own with a time limit: a
broken one hangs, aborts or kills who loads it.

    probe without a launcher   which library does mpi4py load
    mpiexec -n 2 probe         do launcher and library belong together
    mpiexec -n cores+1 true    may there be more ranks than cores
    mpiexec --with-ft ulfm     does a run live on when a rank dies
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from keystone_mpi.cli.doctor_checks import Check
from keystone_mpi.execution.environment import scrub

LIMIT_S = 30.0
TERM_GRACE_S = 3.0
ROOT_VARIABLES = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
FIX = (
    f"install an MPI that fits: {sys.executable} -m pip install mpich (the extra keystone_mpi[mpich]), "
    "then use that venv's mpiexec"
)

LIBRARY_PROBE = """
import json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
with open("/proc/self/maps") as maps:
    paths = sorted({line.split()[-1] for line in maps if "/libmpi" in line})
print(json.dumps({"library": MPI.Get_library_version().strip("\\0 ").splitlines()[0], "paths": paths}))
"""
WORLD_PROBE = """
import os
from mpi4py import MPI
os.write(1, b"keystone-world %d\\n" % MPI.COMM_WORLD.size)
MPI.COMM_WORLD.Barrier()
"""
ULFM_PROBE = """
import os
from mpi4py import MPI
assert MPI.COMM_WORLD.Get_failed().size == 0
os.write(1, b"keystone-world %d\\n" % MPI.COMM_WORLD.size)
MPI.COMM_WORLD.Barrier()
"""


class _Ran(msgspec.Struct, frozen=True):
    """A command that ended, or was ended."""

    exit_code: int
    output: str
    timed_out: bool = False

    def worlds(self) -> list[int]:
        """Return the size of the world that each rank saw."""
        return [int(size) for size in re.findall(r"keystone-world (\d+)", self.output)]

    def complaint(self) -> str:
        """Return the line of the output that says most."""
        if self.timed_out:
            return f"no answer within {LIMIT_S:.0f} s"
        lines = [line.strip(" -*\t") for line in self.output.splitlines() if line.strip(" -*=\t")]
        telling = [line for line in lines if re.search(r"error|fail|not |cannot|unable", line, re.IGNORECASE)]
        return (telling or lines or [f"exit code {self.exit_code}"])[0][:200]


class _Library(msgspec.Struct, frozen=True):
    """The MPI library that mpi4py loads."""

    library: str
    paths: list[str] = []

    @property
    def name(self) -> str:
        """Return what the library says of itself, without the details of its build."""
        return " ".join(re.split(r",|ident:", self.library)[0].replace("Version:", "").split())

    @property
    def family(self) -> str:
        """Return ``MPICH``, ``Open MPI``, ``Intel MPI``, ... or empty."""
        return _family(self.library)


class MpiDoctor:
    """The checks of MPI; each uses what the ones before it learned."""

    def __init__(self) -> None:
        self._library: _Library | None = None
        self._mpiexec = shutil.which("mpiexec") or ""
        self._launcher_family = ""
        self._works = False
        self._environment = scrub(dict(os.environ))

    def checks(self) -> list[tuple[str, Callable[[], Check]]]:
        """Return the checks in the order in which they must run."""
        return [
            ("MPI library", self.check_library),
            ("mpiexec", self.check_mpiexec),
            ("launch", self.check_launch),
            ("more ranks than cores", self.check_oversubscription),
            ("fault tolerance", self.check_fault_tolerance),
        ]

    def check_library(self) -> Check:
        """Load the MPI library as a rank would, in a process of its own."""
        ran = self._run([sys.executable, "-c", LIBRARY_PROBE])
        if ran.exit_code != 0:
            if "No module named 'mpi4py'" in ran.output:
                return Check("MPI library", "fail", "mpi4py is not installed", FIX)
            if re.search(r"cannot load MPI library|libmpi[^ ]*: cannot open", ran.output):
                found = "mpi4py finds no MPI library; sweeps still run without mpiexec on this machine"
                return Check("MPI library", "warn", found, FIX)
            return Check("MPI library", "fail", f"mpi4py does not load: {ran.complaint()}", FIX)
        self._library = msgspec.json.decode(ran.output.strip().splitlines()[-1], type=_Library)
        where = f" ({self._library.paths[0]})" if self._library.paths else ""
        return Check("MPI library", "ok", f"{self._library.name}{where}")

    def check_mpiexec(self) -> Check:
        """Find the launcher and whose it is."""
        own = Path(sys.prefix) / "bin" / "mpiexec"
        if not self._mpiexec:
            if own.exists():
                advice = f'it is in this venv but not on PATH: export PATH="{own.parent}:$PATH"'
                return Check("mpiexec", "fail", "not on PATH", advice)
            return Check("mpiexec", "warn", "not on PATH; under Slurm srun does its work", FIX)
        family = self._launcher_family = _family(self._run([self._mpiexec, "--version"]).output)
        found = f"{self._mpiexec}{f' ({family})' if family else ''}"
        if own.exists() and not _same(own, Path(self._mpiexec)):
            advice = f'this venv has its own: export PATH="{own.parent}:$PATH"'
            return Check("mpiexec", "warn", found, advice)
        return Check("mpiexec", "ok", found)

    def check_launch(self) -> Check:
        """Start two ranks and compare the world that they see with what was promised."""
        if not self._mpiexec or self._library is None:
            return Check("launch", "warn", "not tried: no launcher or no library")
        ran = self._run([self._mpiexec, "-n", "2", sys.executable, "-c", WORLD_PROBE])
        worlds = ran.worlds()
        if worlds == [2, 2] and ran.exit_code == 0:
            self._works = True
            return Check("launch", "ok", "mpiexec -n 2 starts 2 ranks that see each other")
        if worlds == [1, 1]:
            found = f"{self._mpiexec} does not belong to {self._library.name}: 2 worlds of 1 rank"
            return Check("launch", "fail", found, self._mismatch_advice())
        if _refuses_root(ran.output):
            advice = "export " + " ".join(f"{name}=1" for name in ROOT_VARIABLES)
            return Check("launch", "fail", "Open MPI does not run as root", advice)
        if _refuses_slots(ran.output):
            return Check(
                "launch", "fail", "fewer than 2 cores for 2 ranks", _oversubscribe_advice(ran.output)
            )
        if {self._launcher_family, self._library.family} == {"Open MPI", "MPICH"}:
            found = f"{self._mpiexec} is {self._launcher_family}'s, but mpi4py loads {self._library.name}"
            return Check("launch", "fail", found, self._mismatch_advice())
        found = f"mpiexec -n 2 failed: {ran.complaint()}"
        return Check("launch", "fail", found, self._mismatch_advice())

    def check_oversubscription(self) -> Check:
        """Ask whether mpiexec starts more ranks than there are cores, as `-n 3` on a laptop does."""
        name = "more ranks than cores"
        if not self._works:
            return Check(name, "warn", "not tried: no working launch")
        ranks = len(os.sched_getaffinity(0)) + 1
        ran = self._run([self._mpiexec, "-n", str(ranks), "true"])
        if ran.exit_code == 0:
            return Check(name, "ok", f"mpiexec -n {ranks} starts")
        if _refuses_slots(ran.output):
            return Check(name, "warn", f"mpiexec -n {ranks} is refused", _oversubscribe_advice(ran.output))
        return Check(name, "warn", f"mpiexec -n {ranks} failed: {ran.complaint()}")

    def check_fault_tolerance(self) -> Check:
        """Ask whether the death of a worker rank leaves the others alive (ULFM)."""
        name = "fault tolerance"
        resumes = "a dead rank ends the job, nothing is lost, and the same command continues"
        if not self._works or self._library is None:
            return Check(name, "warn", "not tried: no working launch")
        if self._library.family != "Open MPI":
            return Check(name, "ok", f"none with {self._library.family or 'this MPI'}: {resumes}")
        ran = self._run([self._mpiexec, "--with-ft", "ulfm", "-n", "2", sys.executable, "-c", ULFM_PROBE])
        if ran.worlds() == [2, 2] and ran.exit_code == 0:
            found = "ULFM works: with `mpiexec --with-ft ulfm` a run survives the death of worker ranks"
            return Check(name, "ok", found)
        return Check(name, "ok", f"no ULFM here ({ran.complaint()}): {resumes}")

    def _mismatch_advice(self) -> str:
        """Name the launcher that does belong to the library."""
        own = Path(sys.prefix) / "bin" / "mpiexec"
        if own.exists() and not _same(own, Path(self._mpiexec)):
            return f"use this venv's own: {own}"
        for path in self._library.paths if self._library else []:
            for parent in Path(path).resolve().parents[:3]:
                candidate = parent / "bin" / "mpiexec"
                if candidate.exists() and not _same(candidate, Path(self._mpiexec)):
                    return f"use the mpiexec of the library that mpi4py loads: {candidate}"
        return FIX

    def _run(self, argv: list[str]) -> _Ran:
        """Run a command in a session of its own and end all of it at the time limit."""
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as error:
                return _Ran(127, f"{argv[0]}: {error.strerror}")
            try:
                exit_code = process.wait(LIMIT_S)
                return _Ran(exit_code, _text(output))
            except subprocess.TimeoutExpired:
                return _Ran(-signal.SIGKILL, _text(output), timed_out=True)
            finally:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its session: mpiexec first by TERM, so that it ends its ranks."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(TERM_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(1 << 20).decode("utf-8", errors="replace")


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


def _family(text: str) -> str:
    """Tell an MPI by what it says of itself."""
    for name, pattern in (
        ("Open MPI", r"open ?mpi|openrte|prrte|prte"),
        ("Intel MPI", r"intel\(r\) mpi"),
        ("MVAPICH", r"mvapich"),
        ("MPICH", r"mpich|hydra"),
        ("Slurm", r"slurm"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return ""


def _refuses_root(text: str) -> bool:
    return "run as root" in text or "running as root" in text or "allow-run-as-root" in text


def _refuses_slots(text: str) -> bool:
    return "not enough slots" in text or "oversubscribe" in text


def _oversubscribe_advice(text: str) -> str:
    version_5 = "prte" in text.lower() or "map-by" in text
    variable = (
        "PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe"
        if version_5
        else "OMPI_MCA_rmaps_base_oversubscribe=1"
    )
    return f"mpiexec --oversubscribe, or once for all: export {variable}"
