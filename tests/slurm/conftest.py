"""The cluster that all Slurm tests of a session share, and ways to submit to it.

    cluster   a SlurmCluster of three nodes with four CPUs each, idle
    slurm     commands on its login node: slurm.sbatch(script), slurm(["srun", ...])

Where a cluster cannot be made the tests are skipped by name; in CI
(KEYSTONE_REQUIRE=1) that is a failure.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from slurm_cluster import SBIN, SlurmCluster, missing

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))

MPI_FLAG = {"mpich": "pmi2", "openmpi": "pmix"}


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[SlurmCluster]:
    """Bring the cluster up once."""
    problem = missing()
    if problem:
        if os.environ.get("KEYSTONE_REQUIRE") == "1":
            pytest.fail(f"the Slurm tests are required here: {problem}")
        pytest.skip(f"no Slurm cluster on this machine: {problem}")
    folder = Path(tempfile.mkdtemp(prefix="ksl-"))
    made = SlurmCluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(slurm_session: SlurmCluster) -> Iterator[SlurmCluster]:
    """Lend an idle cluster to one test."""
    yield slurm_session
    slurm_session.clean()


@pytest.fixture
def slurm(cluster: SlurmCluster, mpiexec, mpi_kind: str) -> Slurm:  # type: ignore[no-untyped-def]
    """Commands on the login node."""
    return Slurm(cluster, mpiexec, mpi_kind)


class Slurm:
    """Submits and runs for one test, in its temporary folder."""

    def __init__(self, cluster: SlurmCluster, commands, mpi_kind: str) -> None:  # type: ignore[no-untyped-def]
        self.cluster = cluster
        self.mpi_kind = mpi_kind
        self.flag = MPI_FLAG[mpi_kind]
        self.folder: Path = commands.cwd
        self._commands = commands
        commands.prefix = lambda n, mpiexec_args: []
        for name in [name for name in commands.environment if name.startswith("SLURM_")]:
            del commands.environment[name]
        commands.environment |= cluster.environment
        commands.environment["PATH"] += f":{SBIN}"
        # A site profile of whoever runs the tests must not change them.
        commands.environment["KEYSTONE_PROFILE"] = "/dev/null"
        self.start = commands.start

    def __call__(self, args: Sequence[object], *, timeout_s: float = 60.0, env=None):  # type: ignore[no-untyped-def]
        """Run a command on the login node to its end."""
        return self._commands(args, timeout_s=timeout_s, env=env)

    def srun(self, *options: str) -> list[str]:
        """Return an srun line with the flag of this MPI."""
        return ["srun", f"--mpi={self.flag}", "--kill-on-bad-exit=1", *options]

    def sbatch(self, script: str | Path, *options: str) -> str:
        """Submit a script (its text or its path) and return the job's id."""
        if isinstance(script, str):
            path = self.folder / "job.sh"
            path.write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}\n")
        else:
            path = script
        done = self(["sbatch", "--parsable", *options, path]).check()
        return done.stdout.strip().split(";")[0]
