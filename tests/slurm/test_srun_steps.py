"""``launcher = "srun"``: the ranks of a solver as a step of the allocation, on one node or on several."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

pytestmark = [pytest.mark.multirank, pytest.mark.slurm]

RANKS = """
import contextlib, os
from keystone_mpi.transport.pmi_relay import short_requests
# README, "Parallel solvers": without it MPICH 5 may hang under --mpi=pmi2.
with short_requests(os.environ) if "PMI_FD" in os.environ else contextlib.nullcontext():
    from mpi4py import MPI
from keystone_solver import report_result
world = MPI.COMM_WORLD
hosts = world.allgather(os.environ["SLURMD_NODENAME"])
report_result(ranks=world.size, hosts=",".join(sorted(set(hosts))), threads=os.environ["OMP_NUM_THREADS"])
"""


def write_sweep(folder: Path, flag: str, params: str) -> None:
    """Write the sweep; the solver is Open MPI's too, whose MPI_Init at times fails under Slurm's PMIx."""
    (folder / "ranks.py").write_text(RANKS)
    (folder / "s.toml").write_text(
        f"""
[sweep]
tool = "python"
script = "ranks.py"
[params]
{params}
[task]
launcher = "srun"
launcher_flags = ["--mpi={flag}"]
ranks = "{{k}}"
timeout = "60s"
retries = 2
"""
    )


def results(path: Path) -> tuple[list[int], list[str], list[int]]:
    with h5py.File(path) as file:
        hosts = file["results/hosts"].asstr()[:].tolist() if "results/hosts" in file else []
        ranks = file["results/ranks"][:].tolist() if "results/ranks" in file else []
        return ranks, hosts, file["tasks/state"][:].tolist()


def test_steps_on_the_workers_own_node(slurm, tmp_path: Path) -> None:
    write_sweep(tmp_path, slurm.flag, "k = [2, 4, 5]\nx = [1, 2]")
    done = slurm(
        [*slurm.srun("-N2", "--ntasks-per-node=1", "-c4"), "keystone-mpi", "run", "s.toml"], timeout_s=120
    ).check(1)
    ranks, hosts, states = results(tmp_path / "s.h5")
    assert states == [2, 2, 2, 2, 3, 3]
    assert ranks[:4] == [2, 2, 4, 4]
    assert all(host in ("node1", "node2") for host in hosts[:4])
    # Wider than any worker: refused at once, with the reason.
    assert "it needs 5 cores; the largest worker has 4" in done.stdout


def test_a_step_may_span_the_nodes_of_the_allocation(slurm, cluster, tmp_path: Path) -> None:
    write_sweep(tmp_path, slurm.flag, "k = [2, 6, 12, 13]")
    job = slurm.sbatch("keystone-mpi run s.toml", "-N3", "--exclusive", "-t5", "-ojob.log")
    facts = cluster.wait_job(job)
    log = (tmp_path / "job.log").read_text()
    assert facts["ExitCode"] == "1:0", log
    ranks, hosts, states = results(tmp_path / "s.h5")
    assert states == [2, 2, 2, 3], log
    assert ranks[:3] == [2, 6, 12]
    assert hosts[2] == "node1,node2,node3"
    assert "it needs 13 cores; the largest worker has 12" in log


def test_a_step_that_is_stopped_is_gone(slurm, cluster, tmp_path: Path, wait_until) -> None:
    (tmp_path / "s.toml").write_text(
        """
[sweep]
command = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
[params]
x = [1]
[task]
launcher = "srun"
ranks = 6
timeout = "3s"
grace = "2s"
"""
    )
    job = slurm.sbatch("keystone-mpi run s.toml", "-N3", "--exclusive", "-t5", "-ojob.log")
    cluster.wait_job(job)
    log = (tmp_path / "job.log").read_text()
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["tasks/state"][:].tolist() == [4], log
    assert "1 timed out" in log
