"""What `doctor` looks at on this machine, apart from its MPI (`doctor_mpi`).

Rule: a check looks, and says what it found and what to change; it mends
nothing, prints nothing and leaves nothing behind. One that breaks is itself a
failed check, so the others still run.

    doctor --> all_checks() --> Check, Check, ... --> table or JSON
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from keystone_mpi import __version__
from keystone_mpi.cli import wording

Level = Literal["ok", "warn", "fail"]

PACKAGES = ("mpi4py", "numpy", "h5py", "msgspec", "click", "rich", "psutil")
SLOW_SYNC_S = 0.1
LOW_DISK_BYTES = 1 << 30
CLOCK_SKEW_S = 2.0


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    level: Level
    found: str
    advice: str = ""
    """What to change; empty when there is nothing to."""


def run_checks(checks: list[tuple[str, Callable[[], Check]]]) -> Iterator[Check]:
    """Run each check; one that raises becomes a failed check."""
    for name, check in checks:
        try:
            yield check()
        except Exception as error:  # a check that breaks is a finding, too, and the others still count
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            yield Check(name, "fail", f"the check broke: {type(error).__name__}: {error} ({where})")


def machine_checks(folder: Path) -> list[tuple[str, Callable[[], Check]]]:
    """Return the checks of this machine, with `folder` as the place of results."""
    return [
        ("python", check_python),
        ("packages", check_packages),
        ("slots", check_slots),
        ("memory", check_memory),
        ("limits", check_limits),
        ("processes", check_processes),
        ("Slurm", check_slurm),
        ("folder", lambda: check_folder(folder)),
        ("file locks", lambda: check_locks(folder)),
        ("disk sync", lambda: check_sync(folder)),
        ("clock", lambda: check_clock(folder)),
        ("temp folder", check_temp),
        ("solvers", check_solvers),
    ]


def check_python() -> Check:
    """Look at the interpreter."""
    found = f"keystone_mpi {__version__}, Python {platform.python_version()} at {sys.executable}"
    if platform.system() != "Linux":
        return Check("python", "fail", f"{found} on {platform.system()}", "keystone_mpi runs on Linux")
    return Check("python", "ok", found)


def check_solvers() -> Check:
    """Look for the solvers that have a tool; what nobody needs may be missing."""
    from keystone_mpi.tools.table import TOOLS

    found, missing = [], []
    for name in ("fenicsx", "lammps", "openfoam"):
        finding = TOOLS[name].find()
        if finding.found:
            found.append(f"{name} ({finding.where})")
        else:
            missing.append(f"{name}: {finding.install}")
    said = ", ".join(found) or "none"
    if missing:
        said += f"; not found: {', '.join(text.partition(':')[0] for text in missing)}"
    return Check("solvers", "ok", said, "; ".join(f"for {text}" for text in missing))


def check_packages() -> Check:
    """Look for the packages that keystone_mpi stands on."""
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        advice = f"{sys.executable} -m pip install {' '.join(missing)}"
        return Check("packages", "fail", f"missing: {', '.join(missing)}", advice)
    return Check("packages", "ok", ", ".join(versions))


def check_slots() -> Check:
    """Count the cores that solvers may use here."""
    from keystone_mpi.execution.slots import detect

    node = detect()
    found = f"{wording.count(len(node.cpus), 'slot')} ({node.source})"
    logical, mine = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    if mine < logical:
        found += f"; the affinity mask holds {mine} of {logical} logical cores"
        if mine == 1:
            advice = (
                "under Open MPI launch with `mpiexec --bind-to none`; under Slurm ask for more cores per task"
            )
            return Check("slots", "warn", found, advice)
    return Check("slots", "ok", found)


def check_memory() -> Check:
    """Look at the memory that all solvers share."""
    from keystone_mpi.execution.slots import detect

    node = detect()
    per_slot = node.memory_bytes / max(1, len(node.cpus))
    found = f"{wording.size(node.memory_bytes)}, {wording.size(per_slot)} per slot"
    soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        advice = "solvers inherit it and fail with odd errors; remove it with `ulimit -v unlimited`"
        return Check("memory", "warn", f"{found}; address space limited to {wording.size(soft)}", advice)
    return Check("memory", "ok", found)


def check_limits() -> Check:
    """Look at the limits on open files and processes."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    found = f"open files {_limit(files)}, processes {_limit(processes)}"
    needed = 64 + 8 * (os.cpu_count() or 1)
    if files != resource.RLIM_INFINITY and files < needed:
        return Check(
            "limits", "warn", found, f"raise the limit of open files: `ulimit -n {max(1024, needed)}`"
        )
    if processes != resource.RLIM_INFINITY and processes < needed:
        return Check(
            "limits", "warn", found, f"raise the limit of processes: `ulimit -u {max(1024, needed)}`"
        )
    return Check("limits", "ok", found)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"


def check_processes() -> Check:
    """Look whether leftover processes can be found: /proc with environments and children."""
    if not Path("/proc/self/environ").exists():
        advice = "mount /proc; without it leftover solvers cannot be found by their tag"
        return Check("processes", "fail", "no /proc", advice)
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        advice = "the kernel lacks CONFIG_PROC_CHILDREN; process trees are found by a slower walk of /proc"
        return Check("processes", "warn", "/proc without the list of children", advice)
    return Check("processes", "ok", "/proc shows environments and children")


def check_slurm() -> Check:
    """Look for Slurm, an allocation and the MPI start-up that srun offers."""
    if shutil.which("srun") is None:
        return Check("Slurm", "ok", "not on this machine")
    version = _output(["srun", "--version"]).strip() or "srun found"
    offers = " ".join(
        line.strip()
        for line in _output(["srun", "--mpi=list"]).splitlines()
        if line.strip() and "plugin types" not in line.lower()
    )
    found = f"{version}; srun --mpi offers {offers or 'nothing'}"
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return Check("Slurm", "ok", f"{found}; outside an allocation")
    tasks = os.environ.get("SLURM_NTASKS", "?")
    found = f"{found}; inside job {job}: {os.environ.get('SLURM_JOB_NUM_NODES', '?')} nodes, {tasks} tasks"
    if "pmi" not in offers:
        return Check(
            "Slurm", "warn", found, "srun cannot start MPI ranks here; use mpiexec inside the allocation"
        )
    return Check("Slurm", "ok", found)


def check_folder(folder: Path) -> Check:
    """Look whether results can be written here, and how much room there is."""
    space = os.statvfs(folder)
    free_bytes = space.f_bavail * space.f_frsize
    kind = _file_system(folder)
    found = f"{folder} on {kind or 'an unknown file system'}, {wording.size(free_bytes)} free"
    try:
        with tempfile.NamedTemporaryFile(prefix=".keystone-doctor-", dir=folder) as file:
            # Reserving room meets a quota that statvfs does not know of.
            os.posix_fallocate(file.fileno(), 0, 16 << 20)
    except OSError as error:
        if error.errno == errno.EDQUOT:
            return Check(
                "folder", "fail", f"{found}, but your quota is used up", "free some room or use -o elsewhere"
            )
        if error.errno == errno.ENOSPC:
            return Check("folder", "fail", f"{found}: full", "free some room or use -o elsewhere")
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            advice = "start keystone-mpi where you may write, or name the output with -o"
            return Check("folder", "fail", f"{found}: {error.strerror}", advice)
    if free_bytes < LOW_DISK_BYTES:
        return Check(
            "folder", "warn", found, "a run goes on when the disk is full and waits to write; make room"
        )
    if space.f_files and space.f_favail < 10_000:
        return Check("folder", "warn", f"{found}, only {space.f_favail:,} inodes left", "remove small files")
    return Check("folder", "ok", found)


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds `folder`, from /proc/self/mountinfo."""
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        fields = line.split()
        mount = fields[4].encode().decode("unicode_escape")
        if len(mount) >= len(best) and (folder == Path(mount) or Path(mount) in folder.parents):
            best, kind = mount, fields[fields.index("-") + 1]
    return kind


def check_locks(folder: Path) -> Check:
    """Look whether the mount knows file locks, which other HDF5 programs ask for."""
    setting = os.environ.get("HDF5_USE_FILE_LOCKING")
    said = f"; HDF5_USE_FILE_LOCKING={setting}" if setting is not None else ""
    with tempfile.NamedTemporaryFile(prefix=".keystone-doctor-", dir=folder) as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            advice = (
                "keystone-mpi needs no locks; if other HDF5 programs refuse to open the results, "
                "set HDF5_USE_FILE_LOCKING=FALSE for them"
            )
            return Check("file locks", "warn", f"this mount has none ({error.strerror}){said}", advice)
        with open(file.name, "rb") as second:
            try:
                fcntl.flock(second.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Check("file locks", "ok", f"work in this folder{said}")
    return Check(
        "file locks", "warn", f"two programs got the same lock{said}", "keystone-mpi does not need them"
    )


def check_sync(folder: Path) -> Check:
    """Measure how long the disk takes to say that a record is safe."""
    times_s: list[float] = []
    with tempfile.NamedTemporaryFile(prefix=".keystone-doctor-", dir=folder) as file:
        end = time.perf_counter() + 2.0
        while len(times_s) < 20 and time.perf_counter() < end:
            os.write(file.fileno(), b"\0" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times_s.append(time.perf_counter() - began)
    median_s = statistics.median(times_s)
    found = (
        f"{wording.duration(median_s)} (median), {wording.duration(max(times_s))} (worst of {len(times_s)})"
    )
    if median_s > SLOW_SYNC_S:
        advice = "results are acknowledged this much later; tasks are dealt out without waiting for it"
        return Check("disk sync", "warn", found, advice)
    return Check("disk sync", "ok", found)


def check_clock(folder: Path) -> Check:
    """Compare this machine's clock with that of the file server."""
    with tempfile.NamedTemporaryFile(prefix=".keystone-doctor-", dir=folder) as file:
        file.write(b"x")
        file.flush()
        skew_s = os.stat(file.name).st_mtime - time.time()
    if time.time() < 1_700_000_000:
        return Check("clock", "fail", f"it is {wording.local_time(time.time())} here", "set the clock")
    if abs(skew_s) > CLOCK_SKEW_S:
        advice = "synchronise the clocks (NTP): results older than their attempt are not believed"
        return Check("clock", "warn", f"the file server's differs by {skew_s:+.1f} s", advice)
    return Check("clock", "ok", f"{wording.local_time(time.time())}, as the file system's")


def check_temp() -> Check:
    """Look at the folder for work folders on the node's own disk."""
    folder = Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())
    kind = _file_system(folder.resolve())
    free_bytes = shutil.disk_usage(folder).free
    found = f"{folder} on {kind or 'an unknown file system'}, {wording.size(free_bytes)} free"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("temp folder", "fail", f"{found}: not writable", "set TMPDIR to a folder of your own")
    if len(str(folder)) > 60:
        return Check(
            "temp folder", "warn", f"{found}: a long path", "some MPIs need a TMPDIR below 60 characters"
        )
    if kind in ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph"):
        return Check("temp folder", "warn", f"{found}: shared", "set TMPDIR to a disk of the node's own")
    if kind in ("tmpfs", "ramfs"):
        return Check(
            "temp folder", "warn", f"{found}: in memory", 'workdir = "local" will use up memory there'
        )
    return Check("temp folder", "ok", found)


def _output(argv: list[str]) -> str:
    """Return what a small command says, or nothing when it fails or takes long."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
