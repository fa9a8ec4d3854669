"""What launchers promise, and what solvers do not get to see."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from keystone_mpi.execution.environment import (
    Promised,
    environment_before_launch,
    launcher_environment,
    scrub,
)

MPICH = {
    "PMI_RANK": "1",
    "PMI_SIZE": "4",
    "PMI_FD": "9",
    "MPI_LOCALNRANKS": "2",
    "MPI_LOCALRANKID": "1",
    "HYDI_CONTROL_FD": "7",
    "PMI_HOSTNAME": "vm",
    "GFORTRAN_UNBUFFERED_PRECONNECTED": "y",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
    "OMPI_LIBDIR_LOC": "/opt/openmpi/lib",
    "OMPI_MCA_PREFIXES": "mca,opal",
    "OPAL_PREFIX": "/opt/openmpi",
    "PMIX_RANK": "2",
    "PMIX_PREFIX": "/opt/pmix",
    "PRTE_LAUNCHED": "1",
}
SLURM_JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOBID": "17",
    "SLURM_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_TMPDIR": "/local",
    "SLURM_PROCID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
SLURM_STEP = {
    **SLURM_JOB,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "3,1",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Promised(launcher=None)),
        (MPICH, Promised(launcher="mpich", rank=1, size=4, local_size=2)),
        (OPENMPI, Promised(launcher="openmpi", rank=2, size=3, local_size=3)),
        (SLURM_JOB, Promised(launcher=None)),
        ({**SLURM_JOB, "SLURM_STEP_ID": "4294967291"}, Promised(launcher=None)),
        (SLURM_STEP, Promised(launcher="slurm", rank=3, size=4, local_size=1)),
        (
            {**SLURM_STEP, "PMI_RANK": "3", "PMI_SIZE": "4"},
            Promised(launcher="slurm", rank=3, size=4, local_size=1),
        ),
        ({**SLURM_STEP, "PMIX_RANK": "3"}, Promised(launcher="slurm", rank=3, size=4, local_size=1)),
        # mpiexec inside a job starts its daemons with srun.
        ({**SLURM_STEP, **MPICH}, Promised(launcher="mpich", rank=1, size=4, local_size=2)),
        ({**SLURM_STEP, **OPENMPI}, Promised(launcher="openmpi", rank=2, size=3, local_size=3)),
        ({"PMI_RANK": "oops", "PMI_SIZE": "4"}, Promised(launcher=None)),
    ],
)
def test_promised(environ: dict[str, str], expected: Promised) -> None:
    assert launcher_environment(environ) == expected


def test_scrub_removes_what_the_launcher_set() -> None:
    users = {"PATH": "/bin", "MPICH_ASYNC_PROGRESS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "MPI_HOME": "/opt"}
    assert scrub({**users, **MPICH}) == users
    assert scrub({**users, **OPENMPI}) == users


def test_scrub_keeps_what_the_user_set_before_the_launch() -> None:
    user = {"OMPI_MCA_btl": "self,vader", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    environ = {**OPENMPI, **user, "OMPI_MCA_initial_wdir": "/tmp"}
    before = {**user, "OMPI_MCA_PREFIXES": "mca,opal"}
    assert scrub(environ, before_launch=before) == user
    assert scrub(environ) == {}
    # Without a launcher nobody but the user can have set them.
    assert scrub({**user, "OPAL_PREFIX": "/opt/openmpi"}) == {**user, "OPAL_PREFIX": "/opt/openmpi"}


def test_scrub_takes_the_launchers_libraries_off_the_path() -> None:
    def path(text: str) -> str | None:
        return scrub({**OPENMPI, "LD_LIBRARY_PATH": text}).get("LD_LIBRARY_PATH")

    assert path("/opt/openmpi/lib:/mine/lib:/opt/openmpi/lib/:/opt/pmix/lib") == "/mine/lib"
    assert path("/opt/openmpi/lib:/opt/openmpi/lib") is None
    assert scrub({"LD_LIBRARY_PATH": "/opt/openmpi/lib"}) == {"LD_LIBRARY_PATH": "/opt/openmpi/lib"}


def test_scrub_under_slurm() -> None:
    clean = scrub(SLURM_STEP)
    assert clean == {"SLURM_JOB_ID": "17", "SLURM_TMPDIR": "/local", "SLURM_MPI_TYPE": "none"}


def test_environment_before_launch() -> None:
    """The variables of the parents of a process, not its own."""
    env = {**os.environ, "OF_THE_PARENT": "1"}
    script = "OF_THE_CHILD=1 sleep 1000 & echo $!; wait"
    parent = subprocess.Popen(["/bin/sh", "-c", script], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        before = environment_before_launch(child)
        assert before["OF_THE_PARENT"] == "1"
        assert "OF_THE_CHILD" not in before
    finally:
        os.kill(child, 9)
        parent.communicate()
    assert environment_before_launch(2**22 + 1) == {}


@pytest.mark.multirank
def test_what_a_real_launcher_says(mpiexec, mpi_kind: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import sys

    script = (
        "import os\n"
        "from keystone_mpi.execution.environment import *\n"
        "p = launcher_environment()\n"
        "clean = scrub(os.environ, before_launch=environment_before_launch(os.getpid()))\n"
        "names = ('PMI', 'OMPI', 'OPAL', 'PRTE', 'HYD', 'MPI_LOCAL')\n"
        "left = [n for n in clean if n.startswith(names) and not n.startswith('PRTE_MCA_rmaps')]\n"
        "text = f'{p.launcher} {p.rank} {p.size} {p.local_size} {sorted(left)}\\n'\n"
        "os.write(1, text.encode())\n"
    )
    users = {"OMPI_MCA_btl_base_verbose": "0"}
    result = mpiexec([sys.executable, "-c", script], n=2, env=users).check()
    kept = sorted(
        {
            "OMPI_ALLOW_RUN_AS_ROOT",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
            "OMPI_MCA_btl_base_verbose",
        }
    )
    expected = {f"{mpi_kind} {rank} 2 2 {kept}" for rank in (0, 1)}
    assert set(result.stdout.splitlines()) == expected
