"""Runs over three nodes of a real cluster: srun and mpiexec, slots, wrong flags, exit codes, signals."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from runs_support import attempts, shell, states, write_sweep
from slurm_support import ended, hosts_of_tasks, solver, workers

pytestmark = [pytest.mark.multirank, pytest.mark.slurm]

NODES = ["node1", "node2", "node3"]


def test_one_rank_per_node_uses_every_core_of_every_node(slurm, tmp_path: Path) -> None:
    """Three nodes of four slots write one file, rank 0's node works too, file locks are not needed."""
    sweep = write_sweep(tmp_path, solver(0.3), "x = { range = [0, 60, 1] }")
    slurm(
        [*slurm.srun("-N3", "--ntasks-per-node=1", "-c4"), "keystone-mpi", "run", sweep],
        env={"HDF5_USE_FILE_LOCKING": "FALSE"},
    ).check()
    path = tmp_path / "demo.h5"
    assert workers(path) == [(node, 4) for node in NODES]
    assert states(path) == ["SUCCESS"] * 60
    ran = hosts_of_tasks(path)
    assert sorted(ran) == NODES
    assert min(ran.values()) >= 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.h5", "started.log", "sweep.toml"]


def test_one_rank_per_core(slurm, tmp_path: Path) -> None:
    """Twelve ranks, eleven workers: the node of the master lends all its cores to its three workers."""
    sweep = write_sweep(tmp_path, solver(0.1), "x = { range = [0, 24, 1] }")
    run = [*slurm.srun("-N3", "--ntasks-per-node=4"), "keystone-mpi", "run", sweep]
    done = slurm(run)
    for _ in range(3):
        # Open MPI 5 under Slurm 22.05's PMIx: a rank that is early may crash one that is still in MPI_Init.
        if "PMPI_Init_thread" in done.stderr and "Segmentation fault" in done.stderr:
            done = slurm(run)
    done.check()
    found = workers(tmp_path / "demo.h5")
    assert len(found) == 11
    for node in NODES:
        assert sum(slots for host, slots in found if host == node) == 4


DIRTY_HEAP = """\
import random
_random = random.Random(1)
_blocks = [_random.randbytes(_random.choice([300, 400, 500, 600, 700, 800, 1000, 1300, 1500, 2000]))
           for _ in range(20000)]
_kept = _blocks[::2]
del _blocks
"""


def test_what_lies_in_memory_does_not_keep_ranks_from_starting(slurm, tmp_path: Path) -> None:
    """MPICH tells Slurm what lies behind its UCX address; incompressible bytes there made ranks hang."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DIRTY_HEAP)
    sweep = write_sweep(tmp_path, solver(0.1), "x = { range = [0, 6, 1] }")
    slurm(
        [*slurm.srun("-N3", "--ntasks-per-node=1", "-c4"), "keystone-mpi", "run", sweep],
        env={"PYTHONPATH": str(tmp_path / "site")},
    ).check()
    assert workers(tmp_path / "demo.h5") == [(node, 4) for node in NODES]


def test_mpiexec_in_a_batch_job(slurm, cluster, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, solver(0.1), "x = { range = [0, 24, 1] }")
    spread = "-ppn 1" if slurm.mpi_kind == "mpich" else "--map-by ppr:1:node --bind-to none"
    job = slurm.sbatch(
        f"mpiexec -n 3 {spread} keystone-mpi run {sweep.name}",
        "-N3", "--ntasks-per-node=1", "--exclusive", "-t5", "-ojob.log",
    )  # fmt: skip
    facts = cluster.wait_job(job)
    assert facts["ExitCode"] == "0:0", (tmp_path / "job.log").read_text()
    assert workers(tmp_path / "demo.h5") == [(node, 4) for node in NODES]


@pytest.mark.parametrize("flag", ["none", "other"])
def test_a_wrong_mpi_flag_is_refused_with_the_right_one(slurm, tmp_path: Path, flag: str) -> None:
    """N worlds of size 1 that exit with 0, or a library that aborts in MPI_Init."""
    wrong = {"mpich": "pmix", "openmpi": "pmi2"}[slurm.mpi_kind] if flag == "other" else "none"
    sweep = write_sweep(tmp_path, solver(0.0), "x = [1, 2]")
    done = slurm(
        ["srun", f"--mpi={wrong}", "-N3", "--ntasks-per-node=1", "--exclusive", "keystone-mpi", "run", sweep]
    )
    assert done.returncode == 2, done.output
    assert f"srun --mpi={slurm.flag}" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sweep.toml"]


def test_exit_codes_survive_kill_on_bad_exit(slurm, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("test {x} -ne 3"), "x = [1, 2, 3, 4]")
    run = [*slurm.srun("-N3", "--ntasks-per-node=1", "-c4"), "keystone-mpi", "run", sweep]
    assert slurm(run).returncode == 1
    assert slurm([*run, "--allow-failures", "1"]).returncode == 0
    bad = slurm([*run[:-1], "missing.toml"])
    assert bad.returncode == 2, bad.output


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["USR1", "TERM"])
def test_a_signal_to_the_step_drains_it(slurm, cluster, tmp_path: Path, wait_until, number: int) -> None:
    """What runs is finished, nothing more is started, and 75 comes through srun."""
    sweep = write_sweep(tmp_path, solver(1.5), "x = { range = [0, 60, 1] }")
    job = slurm.sbatch(
        f"{' '.join(slurm.srun('--ntasks-per-node=1'))} keystone-mpi run {sweep.name}; echo code $?",
        "-N3", "--ntasks-per-node=1", "--exclusive", "-t5", "-ojob.log",
    )  # fmt: skip
    path = tmp_path / "demo.h5"
    wait_until(lambda: len(ended(path)) >= 12, timeout_s=40)
    cluster.run("scancel", f"--signal={signal.Signals(number).name.removeprefix('SIG')}", f"{job}.0")
    cluster.wait_job(job)
    log = (tmp_path / "job.log").read_text()
    assert "code 75" in log, log
    assert "signal" in log
    found = states(path)
    done = found.count("SUCCESS")
    assert 12 <= done < 60
    assert found.count("PENDING") == 60 - done, "being cut off costs nothing"
    if number == signal.SIGUSR1:
        assert len(attempts(path)) == done, "what ran was to be finished"
    assert not path.with_name("demo.h5.journal").exists()


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGUSR1, signal.SIGTERM)],
    ids=["TERM-TERM", "INT-INT", "USR1-TERM"],
)
def test_a_second_signal_to_the_step_stops_it_at_once(
    slurm, cluster, tmp_path: Path, wait_until, numbers: tuple[int, int]
) -> None:
    """Solvers that take no notice of the first one are killed; they count as not run, and 75 comes out."""
    sweep = write_sweep(
        tmp_path, shell("trap '' TERM INT; echo >> started.log; sleep 90"), "x = { range = [0, 20, 1] }"
    )
    job = slurm.sbatch(
        f"{' '.join(slurm.srun('--ntasks-per-node=1'))} keystone-mpi run {sweep.name}; echo code $?",
        "-N3", "--ntasks-per-node=1", "--exclusive", "-t5", "-ojob.log",
    )  # fmt: skip
    path, log = tmp_path / "demo.h5", tmp_path / "job.log"
    started = tmp_path / "started.log"
    wait_until(lambda: started.exists() and started.read_text().count("\n") == 12, timeout_s=40)
    time.sleep(1.0)  # what has only just begun is stopped by the first one, too
    first, second = (signal.Signals(number).name.removeprefix("SIG") for number in numbers)
    cluster.run("scancel", f"--signal={first}", f"{job}.0")
    wait_until(lambda: "what runs is finished" in log.read_text(), timeout_s=10)
    time.sleep(1.0)
    assert cluster.state(job) == "RUNNING"
    cluster.run("scancel", f"--signal={second}", f"{job}.0")
    began = time.monotonic()
    cluster.wait_job(job)
    assert time.monotonic() - began < 15, "that was the grace after a single TERM, not the second signal"
    said = log.read_text()
    assert "stopping now" in said, said
    assert "code 75" in said, said
    assert states(path) == ["PENDING"] * 20
    assert len(attempts(path)) == 12
    assert not path.with_name("demo.h5.journal").exists()


def test_usr1_may_come_twice(slurm, cluster, tmp_path: Path, wait_until) -> None:
    """Slurm's warning reaches the step more than once: what runs is finished all the same."""
    sweep = write_sweep(tmp_path, solver(4.0), "x = { range = [0, 30, 1] }")
    job = slurm.sbatch(
        f"{' '.join(slurm.srun('--ntasks-per-node=1'))} keystone-mpi run {sweep.name}; echo code $?",
        "-N3", "--ntasks-per-node=1", "--exclusive", "-t5", "-ojob.log",
    )  # fmt: skip
    started = tmp_path / "started.log"
    wait_until(lambda: started.exists() and started.read_text().count("\n") == 12, timeout_s=40)
    for _ in range(2):
        cluster.run("scancel", "--signal=USR1", f"{job}.0")
        time.sleep(0.6)
    cluster.wait_job(job)
    assert "code 75" in (tmp_path / "job.log").read_text()
    assert states(tmp_path / "demo.h5").count("SUCCESS") == 12


def test_ctrl_c_under_srun(slurm, tmp_path: Path, wait_until) -> None:
    """srun -X passes each one on. Without it the first only tells, and srun kills at a second one."""
    sweep = write_sweep(
        tmp_path, shell("trap '' TERM INT; echo >> started.log; sleep 90"), "x = { range = [0, 20, 1] }"
    )
    started = tmp_path / "started.log"
    run = ["-N3", "--ntasks-per-node=1", "-c4", "keystone-mpi", "run", sweep]

    def start(*options: str):  # type: ignore[no-untyped-def]
        started.unlink(missing_ok=True)
        job = slurm.start([*slurm.srun(*options), *run])
        wait_until(lambda: started.exists() and started.read_text().count("\n") == 12, timeout_s=40)
        time.sleep(1.0)  # what has only just begun is stopped by the first one, too
        job.send_signal(signal.SIGINT)
        return job

    job = start("-X")
    wait_until(lambda: "what runs is finished" in job.output_so_far(), timeout_s=10)
    time.sleep(1.5)
    job.send_signal(signal.SIGINT)
    assert "stopping now" in job.wait(20).check(75).stdout
    assert states(tmp_path / "demo.h5") == ["PENDING"] * 20
    job = start()
    wait_until(lambda: "one more within 1 sec to abort" in job.errors_so_far(), timeout_s=10)
    job.send_signal(signal.SIGINT)
    killed = job.wait(20)
    assert not killed.timed_out, killed.output
    assert killed.returncode != 0
    # What was killed with it is listed, and costs nothing; the next start goes on at once.
    write_sweep(tmp_path, shell("true"), "x = { range = [0, 20, 1] }")
    done = slurm([*slurm.srun(), *run]).check()
    assert "took over from process" in done.stdout
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 20
    assert len(attempts(tmp_path / "demo.h5")) == 12 + 12 + 20
