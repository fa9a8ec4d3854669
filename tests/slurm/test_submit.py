"""``keystone-mpi submit`` on a real queue: one allocation, an array and its merge, requeue, walltime."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from runs_support import shell, states, write_sweep
from slurm_support import ended, hosts_of_tasks, solver, started, status

pytestmark = pytest.mark.slurm  # with multirank: what depends on the MPI, and runs under both


def job_ids(text: str) -> list[str]:
    """Ids in what `submit` printed."""
    return [line.split()[2].rstrip(":") for line in text.splitlines() if line.startswith("submitted job")]


@pytest.mark.multirank
def test_submit_runs_watches_and_continues(slurm, cluster, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, solver(0.1), "x = { range = [0, 40, 1] }")
    command = ["keystone-mpi", "submit", sweep, "--nodes", "3", "--time", "10min"]
    shown = slurm([*command, "--dry-run"]).check().stdout
    assert f"srun --mpi={slurm.flag}" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.toml"], "a dry run writes nothing"
    said = slurm([*command, "--", "--comment", "hello"]).check().stdout
    (job,) = job_ids(said)
    assert "keystone-mpi status demo.h5" in said
    assert (tmp_path / "demo.job.sh").read_text() == shown.replace(
        "#SBATCH --open-mode=append\n", "#SBATCH --open-mode=append\n#SBATCH --comment hello\n"
    )
    facts = cluster.wait_job(job)
    log = (tmp_path / f"demo.{job}.log").read_text()
    assert facts["ExitCode"] == "0:0", log
    assert facts["Comment"] == "hello"
    assert "the allocation ends in 10 min" in log, "Slurm's own figure"
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 40
    assert len(hosts_of_tasks(tmp_path / "demo.h5")) == 3
    again = slurm(command).check().stdout
    assert "nothing to do" in again
    assert not job_ids(again)


def test_refusals_come_before_anything_is_written(slurm, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, solver(0.1))
    for arguments, words in (
        (["--array", "1000"], "100 elements at most"),
        (["--array", "ten"], "10%4"),
        (["--time", "120"], "120min"),
        (["--time", "soon"], "1-12:00:00"),
        (["--partition", "nowhere"], "nvalid partition"),
        (["--", "stray"], "stray"),
    ):
        refused = slurm(["keystone-mpi", "submit", sweep, *arguments])
        assert refused.returncode == 2, refused.output
        assert words in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1, refused.output
        assert "Traceback" not in refused.stderr
    (tmp_path / "demo.job.sh").write_text("#!/bin/sh\necho mine\n")
    refused = slurm(["keystone-mpi", "submit", sweep]).check(2)
    assert "not written by keystone-mpi" in refused.stderr


def table(path: Path) -> dict[str, object]:
    """All of a results file but timings, hosts and what tells runs apart."""
    found: dict[str, object] = {}
    timings = {
        "submitted", "started", "finished", "recorded", "duration_s", "user_s", "system_s", "max_rss_bytes",
        "epoch", "worker", "cpus", "cores", "last_attempt", "results_from",
    }  # fmt: skip
    with h5py.File(path) as file:
        index, number = file["attempts/task_index"][:], file["attempts/number"][:]
        order = np.lexsort((number, index))

        for stream in ("stdout", "stderr"):
            if f"output/{stream}" in file:
                places = (file[f"attempts/{stream}_kept_{what}"][:][order] for what in ("offset", "bytes"))
                data = file[f"output/{stream}"][:].tobytes()
                found[stream] = [data[at : at + size] for at, size in zip(*places, strict=True) if at >= 0]

        def visit(name: str, item: object) -> None:
            group, _, column = name.rpartition("/")
            if not isinstance(item, h5py.Dataset) or group == "workers" or name == "provenance":
                return
            attributes = {
                key: str(value)
                for key, value in item.attrs.items()
                if key not in ("DIMENSION_LIST", "REFERENCE_LIST", "_Netcdf4Dimid", "NAME")
            }
            anywhere = column in timings or group == "output" or column.endswith("_kept_offset")
            values = np.empty(0) if anywhere else np.asarray(item[()])
            if group == "attempts" and column != "attempt" and not anywhere:
                values = values[order]
            # As text, so that a missing value equals a missing value.
            found[name] = (str(item.dtype), item.shape, attributes, repr(values.tolist()))

        file.visititems(visit)
        found["/"] = sorted(file.attrs), file.attrs["state"], sorted(file["attempts"])
    return found


def test_an_array_merges_into_what_a_single_run_gives(slurm, cluster, tmp_path: Path, keystone) -> None:
    """Also when some of it fails, with arrays of several shapes, and when it is merged in two steps."""
    script = tmp_path / "solve.py"
    script.write_text(
        "import json, os, sys\nimport numpy as np\nx = int(sys.argv[1])\n"
        "print('working on', x)\n"
        "np.savez(os.environ['KEYSTONE_RESULT'], field=np.arange(x % 5 + 1) / 2, mask=np.arange(2) > x % 2,"
        " double=2 * x, share=x / 7, row=int(sys.argv[2]), seed=int(sys.argv[3]))\n"
        "sys.exit(x == 7 and os.environ['KEYSTONE_ATTEMPT'] == '1' or x == 11)\n"
    )
    sweep = write_sweep(
        tmp_path,
        ["python", "solve.py", "{x}", "{index}", "{seed}"],
        "x = { range = [0, 30, 1] }",
        '[task]\nretries = 1\nkeep_output = "failed"\n',
    )
    submitted = slurm(["keystone-mpi", "submit", sweep, "--array", "3%2", "--time", "10min"]).check().stdout
    array, merging = job_ids(submitted)
    cluster.wait_job(array)
    facts = cluster.wait_job(merging)
    log = (tmp_path / f"demo-merge.{merging}.log").read_text()
    assert facts["ExitCode"] == "0:0", log
    assert facts["Dependency"] in ("(null)", f"afterany:{array}_*")
    assert "merged 3 of 3 shards" in log
    whole = tmp_path / "whole.h5"
    slurm(["keystone-mpi", "run", sweep, "--output", whole, "--slots", "4"]).check(1)
    merged = table(tmp_path / "demo.h5")
    assert merged == table(whole)
    before = (tmp_path / "demo.h5").read_bytes()
    assert "nothing to do" in slurm(["keystone-mpi", "merge", "demo.h5"]).check().stdout
    assert (tmp_path / "demo.h5").read_bytes() == before, "a second merge changes nothing"
    # In two steps, the second shard late: what is missing is said.
    (tmp_path / "demo.h5").unlink()
    late = tmp_path / "demo.shard-2-of-3.h5"
    late.rename(tmp_path / "late.h5")
    said = slurm(["keystone-mpi", "merge", "demo.h5"]).check(75).stdout
    assert "missing: shard 2" in said
    (tmp_path / "late.h5").rename(late)
    slurm(["keystone-mpi", "merge", sweep.name, "--clean"]).check()
    assert table(tmp_path / "demo.h5") == merged
    assert not list(tmp_path.glob("demo.shard-*")) + list(tmp_path.glob("demo.deal-*"))


@pytest.mark.multirank
def test_requeue_at_the_walltime_until_all_is_done(slurm, cluster, tmp_path: Path) -> None:
    """What does not fit is not started; the job goes round until all is done."""
    tasks = 30
    sweep = write_sweep(tmp_path, solver(2), f"x = {{ range = [0, {tasks}, 1] }}")
    shown = (
        slurm(["keystone-mpi", "submit", sweep, "--nodes", "3", "--time", "10min", "--requeue", "--dry-run"])
        .check()
        .stdout
    )
    # Slurm counts in minutes: the same job with an end in seconds.
    job = slurm.sbatch(shown.replace("--output demo.h5", "--output demo.h5 --walltime 9s"))
    facts = cluster.wait_job(job)
    log = (tmp_path / f"demo.{job}.log").read_text()
    assert facts["JobState"] == "COMPLETED", log
    assert int(facts["Restarts"]) >= 1, log
    assert "not expected to end before the allocation does" in log
    assert "the allocation ends in 9" in log or "the allocation ends in 8" in log
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * tasks
    with h5py.File(tmp_path / "demo.h5") as file:
        assert len(file["attempts/number"]) == tasks, "nothing was started that did not fit"
    assert status(slurm, tmp_path / "demo.h5")["starts"] == int(facts["Restarts"]) + 1


@pytest.mark.multirank
def test_requeue_stops_when_a_round_brings_nothing(slurm, cluster, tmp_path: Path, wait_until) -> None:
    """Tasks that need longer than the allocation would be started for ever."""
    # A solver that is one process: a shell whose command the signal reached first would go on without it.
    command = ["/bin/sh", "-c", 'echo "{x} $KEYSTONE_ATTEMPT" >> started.log; exec sleep 600']
    sweep = write_sweep(tmp_path, command, "x = [1, 2, 3]")
    said = slurm(["keystone-mpi", "submit", sweep, "--time", "10min", "--requeue"]).check()
    (job,) = job_ids(said.stdout)
    wait_until(lambda: len(started(tmp_path)) == 3, timeout_s=30)
    cluster.run("scancel", "--signal=TERM", f"{job}.0")
    facts = cluster.wait_job(job)
    log = (tmp_path / f"demo.{job}.log").read_text()
    assert facts["Restarts"] == "0", log
    assert facts["ExitCode"] == "75:0"
    assert "not again" in log
    assert states(tmp_path / "demo.h5") == ["PENDING"] * 3


@pytest.mark.multirank
def test_mpiexec_passes_the_warning_of_the_batch_script_on(
    slurm, cluster, tmp_path: Path, wait_until
) -> None:
    sweep = write_sweep(tmp_path, solver(1.0), "x = { range = [0, 60, 1] }")
    said = slurm(
        ["keystone-mpi", "submit", sweep, "--nodes", "2", "--time", "10min", "--launcher", "mpiexec"]
    ).check()
    (job,) = job_ids(said.stdout)
    wait_until(lambda: len(ended(tmp_path / "demo.h5")) >= 8, timeout_s=40)
    cluster.run("scancel", "--signal=USR1", "--batch", job)
    facts = cluster.wait_job(job)
    log = (tmp_path / f"demo.{job}.log").read_text()
    assert facts["ExitCode"] == "75:0", log
    found = states(tmp_path / "demo.h5")
    assert 8 <= found.count("SUCCESS") < 60
    assert found.count("PENDING") == 60 - found.count("SUCCESS")


def test_a_changed_time_limit_is_followed(slurm, cluster, tmp_path: Path, wait_until) -> None:
    """Raised, then lowered: the run says so, and ends by itself before the new limit."""
    sweep = write_sweep(
        tmp_path, ["/bin/sh", "-c", "sleep {x}"], "x = [0.1, 0.2, 30.0, 31.0]", "[task]\ntimeout = 90\n"
    )
    job = slurm.sbatch(
        f"export KEYSTONE_ASK_SLURM=1\n{' '.join(slurm.srun('-n1', '-c1'))} "
        f"keystone-mpi run {sweep.name} --slots 1; echo code $?",
        "-N1", "-t10", "-ojob.log",
    )  # fmt: skip
    log = tmp_path / "job.log"
    wait_until(lambda: len(ended(tmp_path / "demo.h5")) >= 1, timeout_s=30)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    wait_until(lambda: "time limit was changed: the allocation ends in 20 min" in log.read_text())
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    wait_until(lambda: "time limit was changed: the allocation ends in 5" in log.read_text())
    facts = cluster.wait_job(job)
    said = log.read_text()
    assert "code 75" in said, said
    assert facts["JobState"] == "COMPLETED", "it ended by itself, before the limit"


def test_a_run_knows_its_end_without_slurm(slurm, tmp_path: Path) -> None:
    """--walltime elsewhere: a task that is under way is stopped in time, and the run says so."""
    sweep = write_sweep(tmp_path, shell("sleep 60"), "x = [1, 2]")
    done = slurm(["keystone-mpi", "run", sweep, "--walltime", "6s", "--slots", "1"]).check(75)
    assert "about to end" in done.stdout
    assert states(tmp_path / "demo.h5") == ["PENDING", "PENDING"]
