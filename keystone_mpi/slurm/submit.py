"""Submission: settings become scripts beside the results, and jobs in the queue.

Rule: everything that can be refused is refused before a file is written or a
job exists. A script of somebody else's is never overwritten.

    JobSettings + sweep --make_request--> JobRequest --write_script--> NAME.job.sh --submit--> job id
                                          array: NAME.merge.sh, afterany of the array
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import ClusterError, OutputError, UserError
from keystone_mpi.slurm.allocation import ask, max_array_size
from keystone_mpi.slurm.profile import JobSettings
from keystone_mpi.slurm.script import MARK, JobRequest

PROBE = """
import json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(json.dumps(MPI.Get_library_version()))
"""
PROBE_LIMIT_S = 60.0


class Libraries(msgspec.Struct, frozen=True):
    """How srun and mpiexec start ranks of one MPI library."""

    srun: str
    mpiexec: str


LAUNCHERS = {
    "mpich": Libraries("srun --mpi=pmi2", "mpiexec -n {ranks} -ppn {ranks_per_node}"),
    "openmpi": Libraries(
        "srun --mpi=pmix", "mpiexec -n {ranks} --map-by ppr:{ranks_per_node}:node --bind-to none"
    ),
}


def family_of(version: str) -> str:
    """Name the MPI library that says this of itself: ``mpich``, ``openmpi`` or empty."""
    if re.search(r"open mpi", version, re.IGNORECASE):
        return "openmpi"
    # Intel MPI, MVAPICH and Cray MPICH are MPICH at heart and speak PMI-2, too.
    return "mpich" if re.search(r"mpich|intel.*mpi|mvapich", version, re.IGNORECASE) else ""


def library_family() -> str:
    """Ask mpi4py, in a process of its own, which library the ranks will load; empty: cannot be told here."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode:
        return ""
    return family_of(json.loads(done.stdout.strip().splitlines()[-1]))


def choose_launcher(wanted: str | None) -> str:
    """Return the launcher line: as given, or for the library that is found.

    Parameters
    ----------
    wanted : str or None
        A whole line, ``"srun"`` or ``"mpiexec"`` alone, or None for srun.

    Raises
    ------
    UserError
        The library cannot be told, so somebody has to say.
    """
    if wanted is not None and wanted not in ("srun", "mpiexec"):
        return wanted
    family = library_family()
    if not family:
        raise UserError(
            "the MPI library cannot be told here, and with it srun's --mpi: give the whole line, such as "
            "--launcher 'srun --mpi=pmi2' (MPICH) or 'srun --mpi=pmix' (Open MPI), or put launcher = ... "
            "into the site profile; `keystone-mpi doctor` tells more"
        )
    lines = LAUNCHERS[family]
    return lines.mpiexec if wanted == "mpiexec" else lines.srun


def check_array(count: int) -> None:
    """Refuse an array that Slurm would refuse.

    Raises
    ------
    UserError
        It has more elements than Slurm allows.
    """
    largest = max_array_size() - 1
    if count > largest:
        raise UserError(
            f"--array {count}: this cluster allows arrays of {largest} elements at most "
            f"(MaxArraySize in `scontrol show config`); an element runs many tasks: take --array {largest}"
        )


def make_request(
    settings: JobSettings,
    *,
    name: str,
    sweep_path: Path,
    output_path: Path,
    launcher: str,
    array: int = 0,
    at_once: int = 0,
    requeue: bool = False,
    run_options: tuple[str, ...] = (),
) -> JobRequest:
    """Put settings and files together; paths are absolute here and relative in the script."""
    folder = Path.cwd()
    return JobRequest(
        name=name,
        program=str(Path(sys.executable).parent / "keystone-mpi"),
        folder=str(folder),
        script=os.path.relpath(script_path(output_path), folder),
        sweep=os.path.relpath(sweep_path, folder),
        output=os.path.relpath(output_path, folder),
        launcher=launcher,
        nodes=settings.nodes or 1,
        ranks_per_node=settings.ranks_per_node or 1,
        cores_per_node=settings.cores_per_node or 0,
        time_s=settings.time_s or 0.0,
        partition=settings.partition or "",
        account=settings.account or "",
        qos=settings.qos or "",
        constraint=settings.constraint or "",
        reservation=settings.reservation or "",
        memory=settings.memory or "",
        gpus_per_node=settings.gpus_per_node or 0,
        array=array,
        at_once=at_once,
        requeue=requeue,
        setup=settings.setup,
        run_options=run_options,
        options=settings.options,
    )


def script_path(output_path: Path) -> Path:
    """Return where the script of a results file is kept."""
    return output_path.with_name(f"{output_path.stem}.job.sh")


def merge_script_path(output_path: Path) -> Path:
    """Return where the script that merges an array is kept."""
    return output_path.with_name(f"{output_path.stem}.merge.sh")


def write_script(path: Path, text: str) -> None:
    """Write a script, executable, in one step.

    Raises
    ------
    OutputError
        There is a file that is not ours, or the folder cannot be written.
    """
    try:
        present = path.read_text(encoding="utf-8", errors="replace") if path.exists() else MARK
        if MARK not in present:
            raise OutputError(f"{path}: exists and was not written by keystone-mpi submit; move it away")
        temp = path.with_name(f".{path.name}.{os.getpid()}")
        temp.write_text(text, encoding="utf-8")
        temp.chmod(0o755)
        os.replace(temp, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def submit(path: Path, *options: str) -> str:
    """Hand a script to sbatch and return the job's id.

    Raises
    ------
    ClusterError
        Slurm refuses; with its own words.
    """
    said = ask("sbatch", "--parsable", *options, str(path), limit_s=120.0).strip().splitlines()
    job_id = said[-1].split(";")[0] if said else ""
    if not job_id.isdigit():
        raise ClusterError(f"sbatch: printed no job id but {' '.join(said) or 'nothing'}")
    return job_id
