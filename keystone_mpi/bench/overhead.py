"""What the runner costs while it does nothing: its start-up, and its processes while solvers run.

Rule: whole runs as users start them.

    start-up   mpiexec -n 2 keystone-mpi run (one trivial task), beside bare mpi4py on 2 ranks,
               and beside that with numpy and h5py on rank 0: what any program pays that writes an HDF5 file
    idle       mpiexec -n 3 keystone-mpi run (every slot sleeps), processor time of each process
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from keystone_mpi.bench.contenders import keystone_command, mpiexec_path, write_sweep
from keystone_mpi.bench.measure import end_session, environment, time_command
from keystone_mpi.core.errors import ClusterError
from keystone_mpi.execution.forking import LAUNCHER_NAME, SLOT_NAME, STORE_NAME

SETTLE_S = 4.0
"""After the start, before the idle time is measured."""

_WITH_H5PY = """
import os
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "0":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import h5py
import mpi4py.MPI
"""


class Startup(msgspec.Struct, frozen=True):
    """Medians of interleaved starts."""

    keystone_s: float
    mpi4py_s: float
    h5py_s: float
    """Of bare mpi4py whose rank 0 imports numpy and h5py."""
    local_s: float
    """Of `keystone-mpi run` without a launcher."""


class IdleProcess(msgspec.Struct, frozen=True):
    """One process of the runner while every slot sleeps."""

    name: str
    percent: float
    """Of one core."""


def measure_startup(rounds: int, scratch: Path, say: Callable[[str], None]) -> Startup:
    """Time starts of the runner and of bare mpi4py, in turn."""
    mpiexec = mpiexec_path()
    if not mpiexec:
        raise ClusterError("no mpiexec on PATH: start-up under it cannot be measured")
    walls: dict[str, list[float]] = {"keystone": [], "mpi4py": [], "h5py": [], "local": []}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: start-up")
        for name in walls:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            sweep = write_sweep(folder, 1, ["/bin/true"], numbered=True)
            run = [*keystone_command(), "run", str(sweep)]
            argv = {
                "keystone": [mpiexec, "-n", "2", *run],
                "mpi4py": [mpiexec, "-n", "2", sys.executable, "-c", "import mpi4py.MPI"],
                "h5py": [mpiexec, "-n", "2", sys.executable, "-c", _WITH_H5PY],
                "local": run,
            }[name]
            walls[name].append(time_command(argv, folder))
    medians = {name: statistics.median(times_s) for name, times_s in walls.items()}
    return Startup(medians["keystone"], medians["mpi4py"], medians["h5py"], medians["local"])


def measure_idle(seconds: float, scratch: Path, say: Callable[[str], None]) -> list[IdleProcess]:
    """Start a run whose every slot sleeps and read the processor time of its processes."""
    mpiexec = mpiexec_path()
    if not mpiexec:
        raise ClusterError("no mpiexec on PATH: a run on 3 ranks cannot be measured")
    say(f"idle processes, for {seconds:.0f} s")
    folder = Path(tempfile.mkdtemp(dir=scratch))
    sweep = write_sweep(folder, 64, ["/bin/sleep", str(int(SETTLE_S + seconds + 60))], numbered=False)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [mpiexec, "-n", "3", *keystone_command(), "run", str(sweep)],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            time.sleep(SETTLE_S)
            before = _cpu_times_s(process.pid)
            began = time.perf_counter()
            time.sleep(seconds)
            after = _cpu_times_s(process.pid)
            elapsed_s = time.perf_counter() - began
            if process.poll() is not None:
                raise ClusterError(f"the idle run ended at once with exit code {process.returncode}")
            found = [
                IdleProcess(_name(pid), 100.0 * (after[pid] - before[pid]) / elapsed_s)
                for pid in before
                if pid in after
            ]
        finally:
            _stop(process)
    return sorted((item for item in found if item.name), key=lambda item: -item.percent)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the run in order, so that nothing of it is left."""
    for _ in range(2):
        if process.poll() is None:
            process.terminate()
            time.sleep(0.5)
    try:
        process.wait(20.0)
    except subprocess.TimeoutExpired:
        end_session(process)


def _cpu_times_s(root: int) -> dict[int, float]:
    """Return the processor time of `root` and of all below it."""
    from keystone_mpi.execution.processes import descendants

    times_s: dict[int, float] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for pid in [root, *descendants(root)]:
        try:
            # Nanoseconds on the processor, per thread; absent on some kernels.
            threads = os.listdir(f"/proc/{pid}/task")
            times_s[pid] = sum(
                int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0]) for thread in threads
            ) / 1e9  # fmt: skip
        except OSError:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            times_s[pid] = (int(fields[11]) + int(fields[12])) / ticks
    return times_s


def _name(pid: int) -> str:
    """Say what a process of the runner is; empty for solvers."""
    words = _command_line(pid)
    program = Path(words.partition(" ")[0]).name
    if not words or program in ("sleep", "sh"):
        return ""
    helpers = {LAUNCHER_NAME: "launcher", SLOT_NAME: "slot", STORE_NAME: "store"}
    helper = helpers.get(_read_text(f"/proc/{pid}/comm").rstrip())
    if helper is not None:
        return f"{helper} ({pid})"
    if "keystone" in words and "python" in program:
        return f"rank ({pid})"
    return f"{program} ({pid}), not ours"


def _command_line(pid: int) -> str:
    return _read_text(f"/proc/{pid}/cmdline").replace("\0", " ")


def _read_text(path: str) -> str:
    """Return what a file of /proc says; nothing when its process is gone."""
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""
