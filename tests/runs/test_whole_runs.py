"""Whole runs from a user's shell: a sweep file in, one sound file out, and again."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from runs_support import attempts, shell, states, viewed, write_sweep

pytestmark = pytest.mark.multirank


def test_results_parameters_and_exit_code(mpiexec, tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path,
        shell("""echo noise; echo '{{"double": {twice}, "label": "a{x}"}}'"""),
        "x = [1, 2, 3]\ny = { linspace = [0.0, 1.0, 2] }",
        'derived = { twice = "2 * x" }',
    )
    done = mpiexec(["keystone-mpi", "run", sweep], n=3).check()
    assert "6 of 6" in done.stdout
    with h5py.File(tmp_path / "demo.h5") as file:
        assert file.attrs["state"] == "complete"
        assert file["params/x"][:].tolist() == [1, 1, 2, 2, 3, 3]
        assert file["params/y"][:].tolist() == [0.0, 1.0] * 3
        assert file["results/double"][:].tolist() == [2, 2, 4, 4, 6, 6]
        assert file["results/label"].asstr()[:].tolist() == ["a1", "a1", "a2", "a2", "a3", "a3"]
        assert not np.isnan(file["tasks/duration_s"][:]).any()
        assert len(file["workers/rank"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.h5", "sweep.toml"]


def test_again_there_is_nothing_to_do(mpiexec, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x}"))
    mpiexec(["keystone-mpi", "run", sweep], n=2).check()
    before = (tmp_path / "demo.h5").stat()
    done = mpiexec(["keystone-mpi", "run", sweep], n=2).check()
    assert "nothing to do" in done.stdout
    after = (tmp_path / "demo.h5").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_failures_exit_1_and_are_retried_on_request(mpiexec, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("test {x} -ne 2 || test -e fixed || exit 3"))
    done = mpiexec(["keystone-mpi", "run", sweep], n=2).check(1)
    assert "task 2" in done.stdout
    assert states(tmp_path / "demo.h5") == ["SUCCESS", "SUCCESS", "FAILURE", "SUCCESS"]
    (tmp_path / "fixed").touch()
    mpiexec(["keystone-mpi", "run", sweep], n=2).check(1)  # final is final
    mpiexec(["keystone-mpi", "run", sweep, "--allow-failures", "25%"], n=2).check(0)
    mpiexec(["keystone-mpi", "run", sweep, "--allow-failures", "24%"], n=2).check(1)
    mpiexec(["keystone-mpi", "run", sweep, "--retry-failed"], n=2).check(0)
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 4
    assert sorted(attempts(tmp_path / "demo.h5")) == [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1)]


def test_retries_are_counted_by_cause(keystone, tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path,
        shell("test $KEYSTONE_ATTEMPT -gt {x}"),
        "x = [0, 1, 2]",
        "[task]\nretries = 1\n",
    )
    keystone(["run", sweep, "--slots", "2"]).check(1)
    assert states(tmp_path / "demo.h5") == ["SUCCESS", "SUCCESS", "FAILURE"]
    assert sorted(attempts(tmp_path / "demo.h5")) == [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)]


def test_a_grown_sweep_keeps_its_tasks(mpiexec, tmp_path: Path) -> None:
    write_sweep(tmp_path, shell("echo '{{\"v\": {x}}}'"), "x = [10, 20, 30]")
    mpiexec(["keystone-mpi", "run", "sweep.toml"], n=2).check()
    write_sweep(tmp_path, shell("echo '{{\"v\": {x}}}'"), "x = [5, 10, 30, 40]")
    done = mpiexec(["keystone-mpi", "run", "sweep.toml"], n=2).check()
    assert "2 new" in done.stdout
    assert "1 no longer" in done.stdout
    with h5py.File(tmp_path / "demo.h5") as file:
        assert file["params/x"][:].tolist() == [10, 20, 30, 5, 40]
        assert file["results/v"][:].tolist() == [10, 20, 30, 5, 40]
        assert file["tasks/attempts"][:].tolist() == [1, 1, 1, 1, 1]
    done = mpiexec(["keystone-mpi", "run", "sweep.toml"], n=2).check()
    assert "nothing to do" in done.stdout


def test_a_changed_command_is_refused(keystone, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x}; test {x} -ne 3"))
    keystone(["run", sweep]).check(1)
    write_sweep(tmp_path, shell("echo {x} again"))
    refused = keystone(["run", sweep, "--retry-failed"]).check(2)
    assert "command" in refused.stderr
    assert "--accept-changed" in refused.stderr
    assert "Traceback" not in refused.stderr
    keystone(["run", sweep, "--retry-failed", "--accept-changed"]).check(0)
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 4


def test_a_changed_script_is_refused(keystone, tmp_path: Path) -> None:
    (tmp_path / "solve.sh").write_text("exit 0\n")
    sweep = write_sweep(tmp_path, ["/bin/sh", "solve.sh", "{x}"])
    keystone(["run", sweep]).check()
    (tmp_path / "solve.sh").write_text("exit 1\n")
    refused = keystone(["run", sweep]).check(2)
    assert "solve.sh" in refused.stderr


def test_fresh_moves_the_old_file_aside(keystone, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x}"))
    keystone(["run", sweep]).check()
    keystone(["run", sweep, "--fresh"]).check()
    files = sorted(path.name for path in tmp_path.glob("*.h5"))
    assert len(files) == 2
    with viewed(tmp_path / "demo.h5") as new, viewed(tmp_path / files[0]) as old:
        assert new.run_id != old.run_id
        assert new.epoch == 1


def test_another_sweeps_output_is_never_overwritten(keystone, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x}"))
    keystone(["run", sweep]).check()
    content = (tmp_path / "demo.h5").read_bytes()
    sweep.write_text(sweep.read_text().replace('"demo"', '"other"'))
    refused = keystone(["run", sweep, "-o", "demo.h5"]).check(2)
    assert "another" in refused.stderr or "'demo'" in refused.stderr
    (tmp_path / "other.h5").write_text("my thesis")
    refused = keystone(["run", sweep]).check(2)
    assert (tmp_path / "other.h5").read_text() == "my thesis"
    assert (tmp_path / "demo.h5").read_bytes() == content
    assert "Traceback" not in refused.stderr


def test_dry_run_writes_nothing(mpiexec, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x} >> ran"), "x = { range = [0, 1000, 1] }")
    shown = mpiexec(["keystone-mpi", "run", sweep, "--dry-run"], n=2).check()
    assert "1,000 tasks" in shown.stdout
    assert "echo 0" in shown.stdout
    assert "slots" in shown.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


def test_resume_needs_something_to_resume(keystone, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x}"))
    refused = keystone(["run", sweep, "--resume"]).check(2)
    assert "nothing to resume" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


def test_a_task_file_runs_shell_lines(mpiexec, tmp_path: Path) -> None:
    (tmp_path / "tasks.txt").write_text(
        "# comment\n"
        "mkdir -p a && cd a && OMP_NUM_THREADS=2 sh -c 'echo $OMP_NUM_THREADS' > log\n"
        "\n"
        'echo "{not a template}" > b.txt\n'
        "exit 4\n"
        "exit 4\n"
    )
    mpiexec(["keystone-mpi", "run", "tasks.txt"], n=2).check(1)
    assert (tmp_path / "a/log").read_text() == "2\n"
    assert (tmp_path / "b.txt").read_text() == "{not a template}\n"
    assert states(tmp_path / "tasks.h5") == ["SUCCESS", "SUCCESS", "FAILURE", "FAILURE"]


def test_json_sweep_and_status(keystone, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(
        json.dumps({"sweep": {"name": "j", "command": ["echo", "{x}"]}, "params": {"x": [1, 2, 3]}})
    )
    keystone(["run", "s.json"]).check()
    facts = json.loads(keystone(["status", "j.h5", "--json"]).check().stdout)
    expected = {"total": 3, "completed": 3, "failed": 0, "running": 0, "pending": 0, "all_complete": True}
    assert expected.items() <= facts.items()
    assert facts["state"] == "complete"


def test_work_folders_inputs_and_collected_arrays(mpiexec, tmp_path: Path) -> None:
    (tmp_path / "deck.in").write_text("mesh = {x}\n")
    (tmp_path / "solve.py").write_text(
        "import struct\n"
        "n = int(open('input.nml').read().split('=')[1])\n"
        "head = \"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }\".ljust(117) + '\\n'\n"
        "open('u.npy', 'wb').write(b'\\x93NUMPY\\x01\\x00' + struct.pack('<H', 118) + head.encode()\n"
        "    + struct.pack('<3d', n, 2 * n, 3 * n))\n"
        "open('keep.vtu', 'w').write('x')\n"
        "print('residual = 1e-%d' % n)\n"
    )
    (tmp_path / "s.toml").write_text(
        f"""
        [sweep]
        name = "deck"
        command = ["python3", "{tmp_path}/solve.py"]
        [params]
        x = [1, 2]
        [task]
        workdir = "task"
        keep = ["*.vtu"]
        [files]
        "input.nml" = {{ template = "deck.in" }}
        [collect]
        field = {{ file = "u.npy" }}
        residual = {{ regex = 'residual = (\\S+)', type = "float" }}
        [success]
        finite = ["residual"]
        """
    )
    mpiexec(["keystone-mpi", "run", "s.toml"], n=2).check()
    with h5py.File(tmp_path / "deck.h5") as file:
        assert file["results/field"][:].tolist() == [[1, 2, 3], [2, 4, 6]]
        assert file["results/residual"][:].tolist() == [0.1, 0.01]
    kept = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "deck.h5.work").rglob("*.vtu"))
    assert kept == ["deck.h5.work/0/attempt-1/keep.vtu", "deck.h5.work/1/attempt-1/keep.vtu"]
    assert not list((tmp_path / "deck.h5.work").rglob("u.npy"))


def test_ten_million_tasks_start_at_once(keystone, tmp_path: Path, wait_until) -> None:
    sweep = write_sweep(
        tmp_path,
        shell("sleep 0.05"),
        "x = { range = [0, 10000000, 1] }",
        'where = "x % 2 == 0"',
    )
    job = keystone.start(["run", sweep, "--slots", "2"])
    wait_until(lambda: "5,000,000 tasks" in job.output_so_far(), timeout_s=20)
    wait_until(lambda: (tmp_path / "demo.h5.journal").exists())

    def some_done() -> bool:
        with viewed(tmp_path / "demo.h5") as view:
            return bool((view.states == 2).any())

    wait_until(some_done, timeout_s=30)
    master_rss_kb = next(
        int(line.split()[1])
        for line in Path(f"/proc/{job.pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    assert master_rss_kb < 400_000, "the master's memory grows with what is queued"
    job.kill()


def test_raising_repeat_keeps_what_is_done(keystone, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x}"), "x = [1, 2]")
    keystone(["run", sweep]).check()
    write_sweep(tmp_path, shell("echo {x}"), "x = [1, 2]", "repeat = 2")
    done = keystone(["run", sweep]).check()
    assert "2 new" in done.stdout
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 4
    assert sorted(attempts(tmp_path / "demo.h5")) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert "nothing to do" in keystone(["run", sweep]).check().stdout


def test_priorities_and_cores_come_from_parameters(keystone, tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path,
        shell("echo {x} {cores} $OMP_NUM_THREADS >> order.log"),
        "x = [1, 3, 2]",
        '[task]\npriority = "{x}"\ncores = "{x}"\n',
    )
    keystone(["run", sweep, "--slots", "3"]).check()
    lines = [tuple(map(int, line.split())) for line in (tmp_path / "order.log").read_text().splitlines()]
    assert lines[0] == (3, 3, 3)
    assert sorted(lines) == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_a_task_wider_than_any_worker_is_refused_with_the_reason(mpiexec, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, shell("echo {x}"), "x = [1, 64]", '[task]\ncores = "{x}"\n')
    done = mpiexec(["keystone-mpi", "run", sweep, "--slots", "2"], n=2).check(1)
    assert states(tmp_path / "demo.h5") == ["SUCCESS", "FAILURE"]
    assert "64 cores" in done.stdout
