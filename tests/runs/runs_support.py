"""What the tests of whole runs share: writing sweeps, reading results, finding the runner's processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from keystone_mpi.core.model import TaskState
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.execution.forking import LAUNCHER_NAME, SLOT_NAME, STORE_NAME
from keystone_mpi.records.view import RunView, open_view

FINAL = {TaskState.SUCCESS, TaskState.FAILURE, TaskState.TIMEOUT, TaskState.CANCELLED}


def write_sweep(folder: Path, command: list[str], params: str = "x = [0, 1, 2, 3]", extra: str = "") -> Path:
    """Write ``sweep.toml`` (results in demo.h5)."""
    argv = ", ".join(f"'''{word}'''" for word in command)
    path = folder / "sweep.toml"
    path.write_text(f'[sweep]\nname = "demo"\ncommand = [{argv}]\n{extra}\n[params]\n{params}\n')
    return path


def shell(line: str) -> list[str]:
    """Return the argv of a shell line."""
    return ["/bin/sh", "-c", line]


@contextmanager
def viewed(path: Path) -> Iterator[RunView]:
    """Open a run as `status` does."""
    view = open_view(path, columns_from_spec)
    try:
        yield view
    finally:
        view.close()


def states(path: Path) -> list[str]:
    """Names of the tasks' states, in the order of rows, by plain h5py."""
    with h5py.File(path, "r") as file:
        return [TaskState(int(value)).name for value in file["tasks/state"][:]]


def attempts(path: Path) -> list[tuple[int, int]]:
    """(task, attempt) of every row of /attempts, by plain h5py."""
    with h5py.File(path, "r") as file:
        numbers = zip(file["attempts/task_index"][:], file["attempts/number"][:], strict=True)
        return [(int(task), int(number)) for task, number in numbers]


def environment_of(pid: int) -> dict[str, str]:
    """Environment of a process; empty when it is gone."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in data.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in pairs}


def command_line_of(pid: int) -> str:
    """Command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def name_of(pid: int) -> str:
    """Name of a process as the kernel has it; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip()
    except OSError:
        return ""


def rank_of(pid: int) -> int:
    """MPI rank of a process from its environment; 0 without a launcher."""
    environment = environment_of(pid)
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        if name in environment:
            return int(environment[name])
    return 0


def runner_processes(pids: list[int]) -> dict[str, list[int]]:
    """Sort a job's processes: mpiexec, master, workers, launchers, slots, store, solvers."""
    found: dict[str, list[int]] = {
        kind: [] for kind in ("mpiexec", "master", "worker", "launcher", "slot", "store", "solver")
    }
    for pid in sorted(pids):
        line = command_line_of(pid)
        name = name_of(pid)
        if "KEYSTONE_RUN" in environment_of(pid):
            found["solver"].append(pid)
        elif name == LAUNCHER_NAME:
            found["launcher"].append(pid)
        elif name == SLOT_NAME:
            found["slot"].append(pid)
        elif name == STORE_NAME:
            found["store"].append(pid)
        elif "mpiexec" in line or "prterun" in line or "hydra" in line:
            found["mpiexec"].append(pid)
        elif "keystone-mpi run" in line:
            found["master" if rank_of(pid) == 0 else "worker"].append(pid)
    # What a launcher forks is about to become a slot process, and what that forks a solver.
    found["slot"] = [pid for pid in found["slot"] if parent_of(pid) in found["launcher"]]
    return found


def parent_of(pid: int) -> int:
    """Parent of a process, 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
