"""Programs that are drained, stopped or overtaken by the end of their allocation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from programs_support import WAYS

pytestmark = pytest.mark.multirank

SWEEP = """
import os, signal, sys, threading, time
from keystone_mpi import RunInterruptedError, TaskPipeline
pipeline = TaskPipeline("out.h5", resume=True, slots=2)
ids = pipeline.parameter_sweep("command", ["sleep", "{s}"], {"s": [0.3], "k": range(6)})
"""
SIGNAL = "threading.Timer(0.4, os.kill, (os.getpid(), signal.{})).start()\n"


def states(path: Path) -> list[int]:
    with h5py.File(path) as file:
        return file["tasks/state"][:].tolist()


def check_interrupted(done: Any, path: Path, reason: str) -> None:
    """Exit code 75, two lines and no traceback; what ran has ended, the rest waits."""
    done.check(75)
    lines = [line for line in done.stderr.splitlines() if line.startswith("keystone_mpi: ")]
    assert [line.split()[1] for line in lines] == ["stopping", "stopped"], done.output
    assert all(f"({reason}" in line for line in lines), done.output
    assert "Traceback" not in done.stderr
    found = states(path)
    assert set(found) == {0, 2}, found
    assert f"{found.count(0)} task" in lines[1], done.output
    with h5py.File(path) as file:
        assert file.attrs["state"] == "interrupted"
    assert sorted(p.name for p in path.parent.iterdir()) == ["out.h5", "program.py", "solve.py"]


@pytest.mark.parametrize("way", WAYS)
def test_a_drained_program_ends_with_75_and_goes_on(run: Callable[..., Any], folder: Path, way: str) -> None:
    done = run(SWEEP + SIGNAL.format("SIGUSR1") + "pipeline.wait_for_workflow(ids)\n", way)
    check_interrupted(done, folder / "out.h5", "signal SIGUSR1")
    run(SWEEP + "print(pipeline.wait_for_workflow(ids)['completed'])\n", way).check()
    assert states(folder / "out.h5") == [2] * 6


def test_one_term_is_a_drain(run: Callable[..., Any], folder: Path) -> None:
    done = run(SWEEP + SIGNAL.format("SIGTERM") + "pipeline.wait_for_task(ids[-1])\n")
    check_interrupted(done, folder / "out.h5", "signal SIGTERM")


def test_a_second_term_ends_a_program_that_is_anywhere(run: Callable[..., Any], folder: Path) -> None:
    twice = SIGNAL.format("SIGTERM") + SIGNAL.format("SIGTERM").replace("0.4", "1.0")
    began = time.monotonic()
    done = run(SWEEP + twice + "time.sleep(100)\n").check(75)
    assert time.monotonic() - began < 15
    assert "Traceback" not in done.stderr
    with h5py.File(folder / "out.h5") as file:
        assert file.attrs["state"] == "interrupted"


@pytest.mark.parametrize("way", ["plain", "module"])
def test_a_program_that_is_drained_at_its_end_ends_with_75(
    run: Callable[..., Any], folder: Path, way: str
) -> None:
    check_interrupted(run(SWEEP + SIGNAL.format("SIGUSR1"), way), folder / "out.h5", "signal SIGUSR1")


def test_an_interruption_can_be_caught(run: Callable[..., Any]) -> None:
    source = SWEEP + SIGNAL.format("SIGUSR1") + (
        "with pipeline:\n"
        "    try:\n"
        "        pipeline.wait_for_workflow(ids)\n"
        "    except RunInterruptedError:\n"
        "        print('later', pipeline.get_workflow_status(ids)['running'])\n"
        "print('end')\n"
    )  # fmt: skip
    assert run(source).check().stdout == "later 0\nend\n"


@pytest.mark.parametrize("way", ["plain", "module"])
def test_what_does_not_fit_the_allocation_is_not_started(
    run: Callable[..., Any], folder: Path, way: str
) -> None:
    source = "import os\nos.environ['KEYSTONE_WALLTIME'] = '7s'\n" + SWEEP.replace("0.3", "2.5")
    began = time.monotonic()
    done = run(source + "pipeline.wait_for_workflow(ids)\n", way)
    assert time.monotonic() - began < 7
    check_interrupted(done, folder / "out.h5", "the allocation")
    with h5py.File(folder / "out.h5") as file:
        assert len(file["attempts/outcome"]) == states(folder / "out.h5").count(2) == 2


def test_slurm_says_when_the_allocation_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from keystone_mpi.engine.end_watch import AllocationEnd
    from keystone_mpi.engine.program import PROGRAM

    monkeypatch.delenv("KEYSTONE_WALLTIME", raising=False)
    assert PROGRAM.find_end(5.0) == AllocationEnd(None, None)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3600))
    end = PROGRAM.find_end(5.0)
    deadline = end.deadline
    assert deadline is not None
    assert end.watch is not None, "the limit may be changed"
    assert 3400 < deadline.drain_at - time.monotonic() < deadline.stop_at - time.monotonic() < 3600


def test_a_changed_time_limit_is_followed(run: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    """Somebody lowers the limit of the job while the program waits; Slurm is a script here."""
    programs = tmp_path / "bin"
    programs.mkdir()
    scontrol = programs / "scontrol"
    scontrol.write_text(f"#!/bin/sh\ncat {programs}/job\n")
    scontrol.chmod(0o755)
    job = "JobId=7 JobState=RUNNING Restarts=0 TimeLimit=01:00:00 EndTime="
    (programs / "job").write_text(
        f"{job}{time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(time.time() + 3600))}\n"
    )
    source = SWEEP.replace("[0.3]", "[1.0]").replace("range(6)", "range(60)") + (
        "pipeline.wait_for_task(ids[0])\n"
        "end = time.strftime('%Y-%m-%dT%H:%M:%S', time.localtime(time.time() + 9))\n"
        f"from pathlib import Path; Path('{programs}/job').write_text('{job}' + end)\n"
        "pipeline.wait_for_workflow(ids)\n"
    )
    environment = {
        "SLURM_JOB_ID": "7",
        "KEYSTONE_ASK_SLURM": "1",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    done = run(source, "plain", env=environment).check(75)
    assert "the time limit was changed: the allocation ends in 0 min" in done.stderr
    # Nothing can end before then, and then is now: either may be noticed first.
    reasons = (
        "(the allocation is about to end)",
        "(the allocation ends, and nothing that is left is expected",
    )
    assert any(reason in done.stderr for reason in reasons), done.stderr
    found = states(folder / "out.h5")
    assert set(found) == {0, 2}, found
    assert found.count(2) < 20


CALLS = """
import os, signal, threading, time
from keystone_mpi import KeystoneExecutor, ParallelExecutor, RunInterruptedError
def work(k):
    time.sleep(0.4)
    return k
with KeystoneExecutor() as pool:
    futures = [pool.submit(work, k) for k in range(16)]
    futures[0].result()
    os.kill(os.getpid(), signal.SIGUSR1)
    answered = [f.result() for f in futures if f.exception() is None]
    assert answered == list(range(len(answered))), answered
    assert 2 <= len(answered) < 12
    assert all(isinstance(f.exception(), RunInterruptedError) for f in futures[len(answered):])
print("answered", flush=True)
ParallelExecutor().execute_map(work, [1])
"""


@pytest.mark.parametrize("way", ["plain", "mpiexec"])
def test_calls_that_run_end_and_no_more_begin(run: Callable[..., Any], way: str) -> None:
    done = run(CALLS, way).check(75)
    assert done.stdout == "answered\n"
    assert "Traceback" not in done.stderr


def test_results_of_tasks_are_not_mistaken_for_failures(run: Callable[..., Any]) -> None:
    source = CALLS.split("with Keystone")[0] + (
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()\n"
        "ex = ParallelExecutor(2)\n"
        "print(len(ex.execute_parallel([{'func': work, 'args': (k,)} for k in range(12)])))\n"
    )
    done = run(source).check(75)
    assert done.stdout == ""


def test_a_forked_child_dies_of_term(run: Callable[..., Any]) -> None:
    source = SWEEP + (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    time.sleep(60)\n"
        "time.sleep(0.2)\n"
        "os.kill(pid, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "pipeline.close(wait=False)\n"
    )
    assert run(source).check().stdout == "-15\n"


def test_an_engine_inside_a_call_leaves_signals_to_the_outer_one(run: Callable[..., Any]) -> None:
    source = """
    from keystone_mpi import KeystoneExecutor
    def inner():
        import signal
        with KeystoneExecutor(1) as pool:
            return pool.submit(pow, 2, 3).result(), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with KeystoneExecutor() as pool:
        print(pool.submit(inner).result())
    """
    done = run(source).check()
    assert (done.stdout, done.stderr) == ("(8, True)\n", "")


@pytest.mark.parametrize("way", WAYS)
def test_what_goes_wrong_at_the_very_end_is_no_success(run: Callable[..., Any], way: str) -> None:
    source = SWEEP.replace("range(6)}", "range(1)}, callback=lambda facts: 1 / 0")
    done = run("import atexit\natexit.register(print, 'first hook')\n" + source, way)
    assert done.returncode == 1, done.output
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_an_engine_that_cannot_start_ends_all_ranks(run: Callable[..., Any], way: str) -> None:
    began = time.monotonic()
    done = run("import os\nos.environ['KEYSTONE_WALLTIME'] = 'soon'\n" + SWEEP, way)
    assert time.monotonic() - began < 15
    assert done.returncode == 1, done.output
    assert "KEYSTONE_WALLTIME: found 'soon'" in done.stderr


def test_a_worker_rank_of_a_program_loads_little(run: Callable[..., Any], folder: Path) -> None:
    first = (
        "import atexit, os, sys\n"
        "def tell():\n"
        "    heavy = {'numpy', 'h5py', 'rich', 'click', 'scipy'} & set(sys.modules)\n"
        "    open(f'loaded-{os.getpid()}', 'w').write(' '.join(sorted(heavy)))\n"
        "atexit.register(tell)\n"
    )
    source = first + SWEEP.replace("range(6)", "range(1)") + "from keystone_mpi import KeystoneExecutor\n"
    run(source, "mpiexec").check()
    loaded = sorted(path.read_text() for path in folder.glob("loaded-*"))
    assert len(loaded) == 3
    assert loaded[:2] == ["", ""], loaded
