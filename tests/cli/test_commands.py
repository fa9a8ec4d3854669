"""status, show, rerun and drain on real runs: finished, going on, dead."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOLVER = """
import json, os, sys, time
n = int(sys.argv[1])
print("solver", n)
if n == 1:
    sys.stderr.write("matrix is singular\\n")
    sys.exit(3)
if n == 2:
    time.sleep(60)
if n == 3:
    os.kill(os.getpid(), 11)
print(json.dumps({"square": n * n, "field": [n, n + 1]}))
"""

SWEEP = """
[sweep]
name = "mixed"
command = ["python", "solver.py", "{zeta}", "--alpha", "{alpha}"]
[params]
zeta = [0, 1, 2, 3]
alpha = [0.5]
[task]
timeout = 1
retries = { failed = 1 }
grace = 0.5
"""

SLOW_SWEEP = """
[sweep]
name = "slow"
command = ["sleep", "{seconds}"]
[params]
seconds = [0.1, 60, 61, 62]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that ended with failures of three kinds; not to be written."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "solver.py").write_text(SOLVER)
    (folder / "mixed.toml").write_text(SWEEP)
    program = Path(sys.executable).parent / "keystone-mpi"
    done = subprocess.run(
        [program, "run", "mixed.toml", "--slots", "2"],
        cwd=folder,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return folder


@pytest.fixture
def mixed(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of that run's file, in the folder where commands are started."""
    return Path(shutil.copy(finished / "mixed.h5", tmp_path))


@pytest.fixture
def slow(keystone, tmp_path: Path, wait_until):
    """Start a run that does not end by itself; return its job once it runs two tasks."""
    (tmp_path / "slow.toml").write_text(SLOW_SWEEP)
    job = keystone.start(["run", "slow.toml", "--slots", "2"])

    def is_busy() -> bool:
        done = keystone(["status", "slow.h5", "--json"])
        return done.returncode == 0 and json.loads(done.stdout)["completed"] == 1

    wait_until(is_busy, 30.0, 0.3)
    yield job
    for _ in range(2):
        if job.process.poll() is None:
            job.send_signal(signal.SIGINT)
            time.sleep(0.3)
    job.wait(30)


def status(keystone, name: str) -> dict:
    return json.loads(keystone(["status", name, "--json"]).check(0).stdout)


def test_status_of_a_finished_run(keystone, mixed: Path) -> None:
    before = mixed.read_bytes()
    facts = status(keystone, "mixed.h5")
    assert facts["state"] == "complete"
    assert (facts["total"], facts["completed"], facts["failed"]) == (4, 1, 3)
    assert (facts["running"], facts["pending"], facts["timed_out"]) == (0, 0, 1)
    assert facts["all_complete"]
    assert not facts["all_succeeded"]
    assert {group["tasks"][0] for group in facts["failures"]} == {"1", "2", "3"}
    text = keystone(["status", "mixed.h5"]).check(0).stdout
    assert "is complete" in text
    assert "3 did not succeed (1 timed out)" in text
    assert "keystone-mpi show mixed.h5 " in text
    assert mixed.read_bytes() == before
    assert [path.name for path in mixed.parent.iterdir()] == ["mixed.h5"]


def test_show_tells_a_failure(keystone, mixed: Path) -> None:
    text = keystone(["show", "mixed.h5", "1"]).check(0).stdout
    assert text.startswith("task 1 of mixed (mixed.h5): FAILURE (exit code)\n")
    assert "params:   zeta=1 alpha=0.5\n" in text, "not in the order of the sweep file"
    assert "command:  python solver.py 1 --alpha 0.5\n" in text
    assert text.count("exit code 3   ") == 2, "two attempts"
    assert "  | matrix is singular\n" in text
    assert "  | solver 1\n" in text
    assert "run it here: keystone-mpi rerun mixed.h5 1\n" in text
    assert "TIMEOUT" in keystone(["show", "mixed.h5", "2"]).check(0).stdout
    assert "signal SEGV" in keystone(["show", "mixed.h5", "3"]).check(0).stdout


def test_show_for_programs(keystone, mixed: Path) -> None:
    facts = json.loads(keystone(["show", "mixed.h5", "0", "--json"]).check(0).stdout)
    assert facts["state"] == "SUCCESS"
    assert facts["params"] == {"zeta": 0, "alpha": 0.5}
    assert facts["results"]["square"] == 0
    assert facts["results"]["field"] == [0, 1]
    assert facts["attempts"][0]["outcome"] == "SUCCESS"
    assert keystone(["show", "mixed.h5", "1", "--stderr"]).check(0).stdout == "matrix is singular\n"


@pytest.mark.parametrize("task", ["4", "-1", "x", "01", "1.0", ""])
def test_a_task_that_is_not_there(keystone, mixed: Path, task: str) -> None:
    for command in ("show", "rerun"):
        done = keystone([command, "mixed.h5", "--", task]).check(2)
        assert "0 to 3" in done.stderr
        assert done.stderr.count("\n") == 1


def test_rerun_returns_the_solvers_exit_code_and_changes_nothing(
    keystone, finished: Path, mixed: Path
) -> None:
    before = mixed.read_bytes()
    done = keystone(["rerun", "mixed.h5", "1"]).check(3)
    assert done.stdout == "solver 1\n"
    assert "matrix is singular" in done.stderr
    assert "exit code 3; mixed.h5 is unchanged" in done.stderr
    assert '"square": 0' in keystone(["rerun", "mixed.h5", "0"]).check(0).stdout
    assert "signal SIGSEGV" in keystone(["rerun", "mixed.h5", "3"]).check(128 + 11).stderr
    printed = keystone(["rerun", "mixed.h5", "1", "--print"]).check(0)
    assert printed.stdout == "python solver.py 1 --alpha 0.5\n"
    assert mixed.read_bytes() == before
    assert list(Path(os.environ["TMPDIR"]).glob("keystone-rerun-*")) == []


def test_rerun_passes_signals_on(keystone, mixed: Path, wait_until) -> None:
    job = keystone.start(["rerun", "mixed.h5", "2"])
    wait_until(lambda: "solver 2" in job.output_so_far() or len(job.processes()) > 1, 20.0, 0.05)
    wait_until(lambda: any("solver.py" in line for line in map(command_of, job.processes())), 20.0, 0.05)
    job.send_signal(signal.SIGTERM)
    assert "signal SIGTERM" in job.wait(20).check(128 + signal.SIGTERM).stderr


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_rerun_in_a_fresh_folder_with_its_own_environment(keystone, tmp_path: Path) -> None:
    (tmp_path / "deck.in").write_text("n = {n}\n")
    (tmp_path / "own.toml").write_text(
        """
        [sweep]
        command = ["/bin/sh", "-c", "cat deck.txt; env | sort; pwd; touch left"]
        [params]
        n = [7]
        [task]
        workdir = "task"
        cores = 1
        env = { MINE = "value {n}" }
        keep = ["nothing"]
        [files]
        "deck.txt" = { template = "deck.in" }
        """
    )
    keystone(["run", "own.toml"]).check(0)
    files = sorted(path for path in tmp_path.rglob("*"))
    launched = {"PMI_RANK": "0", "PMI_SIZE": "1", "OMPI_COMM_WORLD_X": "1"}
    words = keystone(["rerun", "own.h5", "0"], env=launched).check(0).stdout.splitlines()
    assert words[0] == "n = 7"
    assert "MINE=value 7" in words
    assert "KEYSTONE_ATTEMPT=2" in words
    assert 'KEYSTONE_PARAMS={"n":7}' in words
    assert "OMP_NUM_THREADS=1" in words
    assert not [word for word in words if word.startswith(("PMI_", "OMPI_COMM_"))]
    assert not Path(words[-1]).exists(), "its temporary folder is removed"
    assert sorted(path for path in tmp_path.rglob("*")) == files
    kept = keystone(["rerun", "own.h5", "0", "--keep-workdir"]).check(0)
    folder = Path(kept.stdout.splitlines()[-1])
    assert (folder / "left").exists()
    assert str(folder) in kept.stderr
    shutil.rmtree(next(path for path in folder.parents if path.name.startswith("keystone-rerun-")))


def test_a_run_that_goes_on(keystone, slow, tmp_path: Path) -> None:
    facts = status(keystone, "slow.h5")
    assert facts["state"] == "running"
    assert facts["completed"] + facts["failed"] + facts["running"] + facts["pending"] == facts["total"] == 4
    assert facts["running"] == 2
    assert not facts["all_complete"]
    text = keystone(["status", "slow.h5"]).check(0).stdout
    assert "is running" in text
    assert f"process {slow.pid} on " in text
    assert "RUNNING" in keystone(["show", "slow.h5", "1"]).check(0).stdout
    assert "not been started" in keystone(["show", "slow.h5", "3"]).check(0).stdout


def test_drain_and_its_cancellation(keystone, slow, tmp_path: Path, wait_until) -> None:
    done = keystone(["drain", "slow.h5"]).check(0)
    assert f"process {slow.pid} on " in done.stdout
    assert "start nothing more" in done.stdout
    assert status(keystone, "slow.h5")["draining"]
    assert "taken back" in keystone(["drain", "--cancel", "slow.h5"]).check(0).stdout
    assert "nobody asked" in keystone(["drain", "--cancel", "slow.h5"]).check(0).stdout


def test_drain_ends_the_run_with_75(keystone, tmp_path: Path, wait_until) -> None:
    (tmp_path / "short.toml").write_text(
        '[sweep]\ncommand = ["sleep", "{t}"]\n[params]\nt = { linspace = [1.5, 1.6, 50] }\n'
    )
    job = keystone.start(["run", "short.toml", "--slots", "2"])
    wait_until(lambda: "[0:00:02]" in job.output_so_far(), 20.0, 0.1)
    keystone(["drain", "short.h5"]).check(0)
    result = job.wait(30).check(75)
    assert "run the same command again" in result.stdout
    facts = status(keystone, "short.h5")
    assert facts["state"] == "interrupted"
    assert facts["running"] == 0
    assert 0 < facts["completed"] < 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.h5", "short.toml"]
    assert "nothing to drain" in keystone(["drain", "short.h5"]).check(2).stderr


def test_a_run_that_died(keystone, slow, tmp_path: Path) -> None:
    os.kill(slow.pid, signal.SIGKILL)
    slow.process.wait()
    text = keystone(["status", "slow.h5"]).check(0).stdout
    assert "died" in text
    assert "nothing that was recorded is lost" in text
    facts = status(keystone, "slow.h5")
    assert facts["state"] == "interrupted"
    assert (facts["completed"], facts["running"], facts["pending"]) == (1, 0, 3)
    assert not (tmp_path / "slow.h5.journal").exists()
    assert "interrupted" in keystone(["show", "slow.h5", "1"]).check(0).stdout


def test_a_master_elsewhere_that_is_silent_is_let_alone(keystone, slow, tmp_path: Path, wait_until) -> None:
    lease = tmp_path / "slow.h5.lease"
    os.kill(slow.pid, signal.SIGSTOP)
    try:
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"boot_id": "another", "host": "n17"}))
        os.utime(lease, (time.time() - 605, time.time() - 605))
        text = keystone(["status", "slow.h5"]).check(0).stdout
        assert "is silent; if it is dead, the same run command takes over" in text
        assert f"process {slow.pid} on n17 was last heard of 10 min ago" in text
        facts = status(keystone, "slow.h5")
        assert facts["state"] == "silent"
        assert (facts["completed"], facts["pending"]) == (1, 3)
        shown = keystone(["show", "slow.h5", "0"]).check(0)
        assert "was last heard of" in shown.stderr
        assert "task 0" in shown.stdout
        assert "is silent" in keystone(["status", "--watch", "slow.h5"]).check(0).stdout
        assert (tmp_path / "slow.h5.journal").exists()
    finally:
        os.kill(slow.pid, signal.SIGCONT)
    wait_until(lambda: time.time() - lease.stat().st_mtime < 60, 20.0)
    facts = status(keystone, "slow.h5")
    assert facts["state"] == "running"
    assert (facts["completed"], facts["running"]) == (1, 2)


@pytest.mark.parametrize("command", ["status", "show", "rerun", "drain"])
def test_a_file_that_is_not_there(command: str, keystone, mixed: Path) -> None:
    more = ["1"] if command in ("show", "rerun") else []
    done = keystone([command, "mixd.h5", *more]).check(2)
    assert done.stderr == "keystone-mpi: error: mixd.h5: no such results file; . has mixed.h5\n"
    (mixed.parent / "mixed.toml").write_text("")
    done = keystone([command, "mixed.toml", *more]).check(2)
    assert "its results are in mixed.h5" in done.stderr
    (mixed.parent / "other.h5").write_text("not HDF5")
    done = keystone([command, "other.h5", *more]).check(2)
    assert "other.h5" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_companion_means_the_file(keystone, mixed: Path) -> None:
    assert status(keystone, "mixed.h5.journal")["total"] == 4
