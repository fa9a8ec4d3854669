"""Nodes that die, with and without --no-kill; two masters; leases of dead hosts."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest
from runs_support import attempts, command_line_of, states, write_sweep
from slurm_support import ended, solver, started, workers

pytestmark = pytest.mark.slurm  # with multirank: what depends on the MPI, and runs under both

TASKS = 40


def check_story(folder: Path, *, repeated_at_most: int) -> None:
    """Every task ended once, every attempt that ran is listed, few ran twice."""
    path = folder / "demo.h5"
    assert states(path) == ["SUCCESS"] * TASKS
    listed = attempts(path)
    assert len(set(listed)) == len(listed)
    ran = started(folder)
    assert not set(ran) - set(listed), "an attempt ran and is not listed"
    counts = Counter(x for x, _ in ran)
    assert sum(count - 1 for count in counts.values()) <= repeated_at_most
    assert not list(folder.glob("demo.h5.*"))


def script(slurm, sweep: Path, srun_options: str = "") -> str:
    line = " ".join(slurm.srun("--ntasks-per-node=1"))
    return f"{line} {srun_options} keystone-mpi run {sweep.name}; code=$?; echo code $code; exit $code"


def loaded(folder: Path) -> bool:
    """Some tasks have ended, others run."""
    return len(ended(folder / "demo.h5")) >= 8 and len(started(folder)) > len(ended(folder / "demo.h5"))


@pytest.mark.multirank
@pytest.mark.parametrize("victim", ["master", "worker"])
def test_a_requeued_job_goes_on_after_a_node_died(
    slurm, cluster, tmp_path: Path, wait_until, victim: str
) -> None:
    """Also when it is the master's: its lease is taken over at once, since Slurm says it is gone."""
    sweep = write_sweep(tmp_path, solver(0.7), f"x = {{ range = [0, {TASKS}, 1] }}")
    job = slurm.sbatch(
        script(slurm, sweep), "-N2", "--ntasks-per-node=1", "--exclusive", "-t10", "-ojob.log",
        "--open-mode=append", "--requeue",
    )  # fmt: skip
    wait_until(lambda: loaded(tmp_path), timeout_s=40)
    told = ended(tmp_path / "demo.h5")
    first, second = workers_of_job(cluster, job)
    dead = first if victim == "master" else second
    cluster.crash(dead)
    cluster.notice(dead)
    facts = cluster.wait_job(job)
    log = (tmp_path / "job.log").read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), log
    assert "continuing" in log
    if victim == "master":
        assert f"took over from process {digits(log, 'took over from process ')} on {dead}" in log
    assert told.items() <= ended(tmp_path / "demo.h5").items()
    check_story(tmp_path, repeated_at_most=8)


def workers_of_job(cluster, job: str) -> list[str]:
    text = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"])
    return text.split()


def digits(text: str, after: str) -> str:
    rest = text.partition(after)[2]
    return rest[: len(rest) - len(rest.lstrip("0123456789"))]


@pytest.mark.multirank
def test_without_requeue_the_next_submission_goes_on(slurm, cluster, tmp_path: Path, wait_until) -> None:
    sweep = write_sweep(tmp_path, solver(0.7), f"x = {{ range = [0, {TASKS}, 1] }}")
    options = ("-N2", "--ntasks-per-node=1", "--exclusive", "-t10", "-ojob.log", "--no-requeue")
    job = slurm.sbatch(script(slurm, sweep), *options)
    wait_until(lambda: loaded(tmp_path), timeout_s=40)
    dead = workers_of_job(cluster, job)[1]
    cluster.crash(dead)
    cluster.notice(dead)
    assert cluster.wait_job(job)["JobState"] == "NODE_FAIL"
    told = ended(tmp_path / "demo.h5")
    again = slurm.sbatch(script(slurm, sweep), *options)
    assert cluster.wait_job(again)["JobState"] == "COMPLETED", (tmp_path / "job.log").read_text()
    assert told.items() <= ended(tmp_path / "demo.h5").items()
    check_story(tmp_path, repeated_at_most=8)


@pytest.mark.multirank
def test_no_kill_ends_or_shrinks_and_never_hangs(slurm, cluster, tmp_path: Path, wait_until) -> None:
    """MPICH may go on with the nodes that are left, PMIx ends the step; the next run completes either."""
    sweep = write_sweep(tmp_path, solver(0.7), f"x = {{ range = [0, {TASKS}, 1] }}")
    options = ("-N3", "--ntasks-per-node=1", "--exclusive", "-t10", "-ojob.log", "--no-kill", "--no-requeue")
    job = slurm.sbatch("export KEYSTONE_SILENCE=4\n" + script(slurm, sweep, "--no-kill"), *options)
    wait_until(lambda: loaded(tmp_path), timeout_s=40)
    dead = workers_of_job(cluster, job)[1]
    cluster.crash(dead)
    cluster.notice(dead)
    cluster.wait_job(job)
    log = (tmp_path / "job.log").read_text()
    assert "code " in log, log
    if "has not been heard of" in log:
        assert f"on {dead} has not been heard of" in log
        assert len(ended(tmp_path / "demo.h5")) == TASKS, "the nodes that are left did the rest"
    told = ended(tmp_path / "demo.h5")
    assert len(told) >= 8
    slurm(
        [*slurm.srun("-N2", f"-x{dead}", "--ntasks-per-node=1", "-c4"), "keystone-mpi", "run", sweep]
    ).check()
    assert told.items() <= ended(tmp_path / "demo.h5").items()
    check_story(tmp_path, repeated_at_most=12)


@pytest.mark.multirank
def test_workers_whose_master_is_gone_leave(slurm, cluster, tmp_path: Path, wait_until) -> None:
    """The master's node dies under --no-kill: no rank and no solver waits for it for ever."""
    sweep = write_sweep(tmp_path, solver(0.7), f"x = {{ range = [0, {TASKS}, 1] }}")
    job = slurm.start(
        [
            *slurm.srun("-N3", "--ntasks-per-node=1", "-c4", "--no-kill"),
            "keystone-mpi", "run", sweep,
        ],
        env={"KEYSTONE_SILENCE": "4"},
    )  # fmt: skip
    wait_until(lambda: loaded(tmp_path), timeout_s=40)
    told = ended(tmp_path / "demo.h5")
    dead = "node1"
    cluster.crash(dead)
    cluster.notice(dead)
    done = job.wait(60)
    assert not done.timed_out, done.output
    assert done.returncode != 0
    slurm(
        [*slurm.srun("-N2", f"-x{dead}", "--ntasks-per-node=1", "-c4"), "keystone-mpi", "run", sweep]
    ).check()
    assert told.items() <= ended(tmp_path / "demo.h5").items()
    check_story(tmp_path, repeated_at_most=12)


def test_a_frozen_node_is_taken_for_lost(slurm, cluster, tmp_path: Path, wait_until) -> None:
    """It neither answers nor resets a connection: only its silence tells."""
    sweep = write_sweep(tmp_path, solver(0.5), f"x = {{ range = [0, {TASKS}, 1] }}")
    job = slurm.start(
        [*slurm.srun("-N3", "--ntasks-per-node=1", "-c4", "--no-kill"), "keystone-mpi", "run", sweep],
        env={"KEYSTONE_SILENCE": "4"},
    )
    wait_until(lambda: loaded(tmp_path), timeout_s=40)
    cluster.freeze("node2")
    try:
        wait_until(lambda: len(ended(tmp_path / "demo.h5")) == TASKS, timeout_s=40)
        wait_until(lambda: "node2 has not been heard of" in job.output_so_far(), timeout_s=5)
    finally:
        cluster.thaw("node2")
        cluster.crash("node2")
        cluster.notice("node2")
    assert not job.wait(60).timed_out
    slurm([*slurm.srun("-N2", "-xnode2", "--ntasks-per-node=1", "-c4"), "keystone-mpi", "run", sweep]).check()
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * TASKS


def test_two_masters_on_one_file(slurm, cluster, tmp_path: Path, wait_until) -> None:
    """The second one, on another node, is refused by the lease and told whose it is."""
    sweep = write_sweep(tmp_path, solver(1.0), "x = { range = [0, 16, 1] }")
    first = slurm.start([*slurm.srun("-N1", "-n1", "-c4", "-w", "node1"), "keystone-mpi", "run", sweep])
    wait_until(lambda: len(started(tmp_path)) >= 4, timeout_s=40)
    second = slurm([*slurm.srun("-N1", "-n1", "-c4", "-w", "node2"), "keystone-mpi", "run", sweep])
    assert second.returncode == 2, second.output
    assert "on node1, job" in second.stderr
    assert "Traceback" not in second.stderr
    first.wait(60).check()
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 16
    assert [count for _, count in Counter(started(tmp_path)).items()] == [1] * 16


def test_the_lease_of_a_dead_host_without_slurm_is_waited_for(
    slurm, cluster, tmp_path: Path, wait_until
) -> None:
    """A machine that Slurm knows nothing of: only the age of the stamp tells."""
    sweep = write_sweep(tmp_path, solver(0.5), "x = { range = [0, 40, 1] }")
    run = [
        *slurm.srun("-N1", "-n1", "-c4", "-w", "node1"),
        "env",
        "-u",
        "SLURM_JOB_ID",
        "keystone-mpi",
        "run",
    ]
    job = slurm.start([*run, sweep])
    wait_until(lambda: len(ended(tmp_path / "demo.h5")) >= 4, timeout_s=40)
    cluster.crash("node1")
    cluster.notice("node1")
    job.wait(60)
    lease = tmp_path / "demo.h5.lease"
    elsewhere = [*slurm.srun("-N1", "-n1", "-c4", "-w", "node2"), "keystone-mpi", "run", sweep]
    refused = slurm(elsewhere).check(2)
    assert "on node1" in refused.stderr
    assert "60 s old" in refused.stderr
    os.utime(lease, (time.time() - 61, time.time() - 61))
    done = slurm(elsewhere).check()
    assert "took over from process" in done.stdout
    assert "on node1" in done.stdout
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 40
    assert {host for host, _slots in workers(tmp_path / "demo.h5")} == {"node1", "node2"}


@pytest.mark.multirank
def test_no_kill_and_the_batch_host_dies(slurm, cluster, tmp_path: Path, wait_until) -> None:
    """The script, srun and the master are gone at once; what is left on the other nodes ends by itself."""
    sweep = write_sweep(tmp_path, solver(0.7), f"x = {{ range = [0, {TASKS}, 1] }}")
    options = ("-N3", "--ntasks-per-node=1", "--exclusive", "-t10", "-ojob.log", "--no-kill", "--no-requeue")
    job = slurm.sbatch("export KEYSTONE_SILENCE=4\n" + script(slurm, sweep, "--no-kill"), *options)
    wait_until(lambda: loaded(tmp_path), timeout_s=40)
    told = ended(tmp_path / "demo.h5")
    dead, *others = workers_of_job(cluster, job)
    assert cluster.job(job)["BatchHost"] == dead
    cluster.crash(dead)
    cluster.notice(dead)
    wait_until(lambda: not any(runs_of(cluster, node) for node in others), timeout_s=30)
    # Slurm keeps such a job until its time limit, although nothing of it can run any more.
    cluster.run("scancel", job, check=False)
    cluster.wait_job(job)
    assert told.items() <= ended(tmp_path / "demo.h5").items()
    slurm(
        [*slurm.srun("-N2", f"-x{dead}", "--ntasks-per-node=1", "-c4"), "keystone-mpi", "run", sweep]
    ).check()
    assert told.items() <= ended(tmp_path / "demo.h5").items()
    check_story(tmp_path, repeated_at_most=12)


def runs_of(cluster, node: str) -> list[int]:
    """Processes of a run on a node: ranks, launchers and solvers."""
    lines = {pid: command_line_of(pid) for pid in cluster.processes(node)}
    return [pid for pid, line in lines.items() if "keystone" in line or "sleep 0.7" in line]
