"""Between the farewell and the end of MPI: whoever waits there waits for the living only.

The store process is stopped, so that the last batch of the file takes as long as the test wants.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs_support import kill, runner_processes, shell, states, write_sweep

pytestmark = pytest.mark.multirank

SILENCE_S = 3.0
TASKS = 12

EVERY_FILE_IS_LARGE = """
from keystone_mpi.engine import store_client
store_client.SMALL_FILE_TASKS = 0
from keystone_mpi.cli.entry import main
main()
"""
"""A keystone-mpi that keeps its workers until the file is written, which it does for large ones."""


class Parting:
    """A run whose workers have said goodbye while its last batch is being written."""

    def __init__(  # type: ignore[no-untyped-def] # fixtures of tests have no types
        self, mpiexec, folder: Path, wait_until, *, large: bool
    ) -> None:
        self.sweep = write_sweep(folder, shell("sleep 1.5"), f"x = {{ range = [0, {TASKS}, 1] }}")
        self.path = folder / "demo.h5"
        program = folder / "keystone-mpi"
        program.write_text(EVERY_FILE_IS_LARGE)
        command = [sys.executable, program] if large else ["keystone-mpi"]
        self.job = mpiexec.start(
            [*command, "run", self.sweep, "--slots", "4"], n=3, env={"KEYSTONE_SILENCE": str(SILENCE_S)}
        )
        wait_until(lambda: bool(self.all("solver")), timeout_s=30)
        (self.store,) = self.all("store")
        kill(self.store, signal.SIGSTOP)
        (self.master,) = self.all("master")
        self.workers = self.all("worker")
        assert len(self.workers) == 2
        wait_until(lambda: not self.all("launcher"), timeout_s=30)
        time.sleep(0.3)  # the goodbyes are on their way

    def all(self, kind: str) -> list[int]:
        return runner_processes(self.job.processes())[kind]

    def end(self) -> None:
        """Let everybody run again who was stopped."""
        for pid in (self.store, self.master, *self.workers):
            kill(pid, signal.SIGCONT)


@pytest.fixture
def parting(mpiexec, tmp_path: Path, wait_until):  # type: ignore[no-untyped-def] # as above
    made = Parting(mpiexec, tmp_path, wait_until, large=True)
    yield made
    made.end()


@pytest.fixture
def alone(mpiexec, tmp_path: Path, wait_until):  # type: ignore[no-untyped-def] # as above
    """Rank 0 with a small file: the others have left MPI and are gone."""
    made = Parting(mpiexec, tmp_path, wait_until, large=False)
    wait_until(lambda: not made.all("worker"), timeout_s=30)
    yield made
    made.end()


def test_mpi_ends_while_a_small_file_is_written(alone: Parting) -> None:
    lease = alone.path.with_name("demo.h5.lease")
    os.utime(lease, (time.time() - 50, time.time() - 50))
    time.sleep(3 * SILENCE_S)  # nothing is to happen in that time
    assert alone.all("master") == [alone.master]
    assert time.time() - lease.stat().st_mtime < 10, "another host would take the run over"
    kill(alone.store, signal.SIGCONT)
    done = alone.job.wait(30).check(0)
    assert "12 of 12 tasks succeeded" in done.stdout
    assert states(alone.path) == ["SUCCESS"] * TASKS
    assert not list(alone.path.parent.glob("demo.h5.*"))


def test_the_last_rank_need_not_be_waited_for(alone: Parting, mpiexec, wait_until) -> None:
    kill(alone.master, signal.SIGTERM)
    wait_until(lambda: "once more, and the next start writes it" in alone.job.output_so_far(), timeout_s=10)
    time.sleep(0.5)  # two within 0.3 s would count as one
    kill(alone.master, signal.SIGTERM)
    alone.job.wait(15).check(75)
    mpiexec(["keystone-mpi", "run", alone.sweep, "--slots", "4"], n=3).check(0)
    assert states(alone.path) == ["SUCCESS"] * TASKS


def test_the_last_rank_may_be_killed(alone: Parting, mpiexec) -> None:
    kill(alone.master)
    alone.end()
    done = alone.job.wait(30)
    assert not done.timed_out, done.output
    assert done.returncode != 0, done.output
    again = mpiexec(["keystone-mpi", "run", alone.sweep, "--slots", "4"], n=3).check(0)
    assert "nothing to do" in again.stdout
    assert states(alone.path) == ["SUCCESS"] * TASKS


def test_workers_leave_a_master_that_freezes_after_the_farewell(
    parting: Parting, mpiexec, wait_until
) -> None:
    kill(parting.master, signal.SIGSTOP)
    wait_until(lambda: not parting.all("worker"), timeout_s=4 * SILENCE_S)
    assert "rank 0 has not been heard of for 3 s" in parting.job.errors_so_far()
    parting.end()
    done = parting.job.wait(30)
    assert not done.timed_out, done.output
    assert done.returncode != 0, done.output
    mpiexec(["keystone-mpi", "run", parting.sweep, "--slots", "4"], n=3).check(0)
    assert states(parting.path) == ["SUCCESS"] * TASKS


def test_a_long_last_batch_is_no_silence(parting: Parting) -> None:
    """The master gives signs of life while the file is written, and keeps its lease."""
    lease = parting.path.with_name("demo.h5.lease")
    os.utime(lease, (time.time() - 50, time.time() - 50))
    time.sleep(3 * SILENCE_S)
    assert parting.all("worker") == parting.workers
    assert time.time() - lease.stat().st_mtime < 10, "another host would take the run over"
    kill(parting.store, signal.SIGCONT)
    done = parting.job.wait(30).check(0)
    assert "not been heard of" not in done.output
    assert states(parting.path) == ["SUCCESS"] * TASKS
    assert not list(parting.path.parent.glob("demo.h5.*"))


def test_a_worker_that_freezes_after_its_goodbye_is_not_waited_for(parting: Parting) -> None:
    """MPI_Finalize would wait for it for ever; the file is written all the same."""
    kill(parting.workers[0], signal.SIGSTOP)
    time.sleep(2 * SILENCE_S)
    kill(parting.store, signal.SIGCONT)
    done = parting.job.wait(30)
    assert not done.timed_out, done.output
    assert "has not been heard of for 3 s" in done.output
    assert states(parting.path) == ["SUCCESS"] * TASKS
    assert not list(parting.path.parent.glob("demo.h5.*"))


def test_who_does_not_wait_for_the_last_batch_says_so_twice(parting: Parting, mpiexec, wait_until) -> None:
    """To rank 0 itself: what launchers make of signals is their own affair."""
    kill(parting.master, signal.SIGTERM)
    wait_until(lambda: "once more, and the next start writes it" in parting.job.output_so_far(), timeout_s=10)
    time.sleep(0.5)
    kill(parting.master, signal.SIGTERM)
    done = parting.job.wait(15).check(75)
    assert "the file does not hold all of them yet (stopped (signal SIGTERM) while it was being written)" in (
        done.stdout
    )
    again = mpiexec(["keystone-mpi", "run", parting.sweep, "--slots", "4"], n=3).check(0)
    assert "nothing to do" in again.stdout
    assert states(parting.path) == ["SUCCESS"] * TASKS


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code whose silence is noticed soon."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KEYSTONE_SILENCE": str(SILENCE_S)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_mpi_that_does_not_end_is_left() -> None:
    """A rank whose peer is gone between the dismissal and MPI_Finalize."""
    code = (
        "import time\nfrom keystone_mpi.engine.parting import finalize_in_time\n"
        "finalize_in_time(lambda: None, 'rank 7')\nprint('ended')\n"
        "finalize_in_time(lambda: time.sleep(60), 'rank 7')\n"
    )
    began = time.monotonic()
    done = in_a_process(code)
    assert (done.returncode, done.stdout) == (75, "ended\n")
    assert "rank 7: MPI did not end within 3 s" in done.stderr
    assert time.monotonic() - began >= SILENCE_S


FINALIZE = """
import sys, time
from keystone_mpi.engine.parting import finalize_in_time
from keystone_mpi.transport.world import MpiWorld
world = MpiWorld(None)
if world.rank == 1:
    time.sleep(120)
finalize_in_time(world.finalize, "rank 0")
"""


def test_the_real_mpi_finalize_can_be_left(mpiexec, tmp_path: Path) -> None:
    """It must let the thread run that watches it: mpi4py's own call would not."""
    (tmp_path / "program.py").write_text(FINALIZE)
    done = mpiexec(
        [sys.executable, tmp_path / "program.py"], n=2, env={"KEYSTONE_SILENCE": str(SILENCE_S)}, timeout_s=60
    )
    assert not done.timed_out, done.output
    assert done.returncode != 0
    assert "rank 0: MPI did not end within 3 s" in done.output


def test_the_end_by_force_waits_for_what_else_is_at_work() -> None:
    code = (
        "import time\nfrom keystone_mpi.engine.parting import finalize_in_time\n"
        "ends = time.monotonic() + 5\n"
        "def busy():\n    print('looked', flush=True)\n    return time.monotonic() < ends\n"
        "finalize_in_time(lambda: time.sleep(60), 'rank 0', busy=busy)\n"
    )
    began = time.monotonic()
    done = in_a_process(code)
    assert done.returncode == 75, done.stderr
    assert done.stdout.count("looked") > 1
    assert time.monotonic() - began >= 5


def test_mpi_that_ends_late_is_no_trouble() -> None:
    """It ended beyond the limit, but in order, while something else was at work."""
    code = (
        "import time\nfrom keystone_mpi.engine.parting import finalize_in_time\n"
        "ends = time.monotonic() + 9\n"
        "finalize_in_time(lambda: time.sleep(5), 'rank 0', busy=lambda: time.monotonic() < ends,\n"
        "                 meanwhile=lambda: print('meanwhile', flush=True))\n"
        "time.sleep(6)\nprint('ended')\n"
    )
    done = in_a_process(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("meanwhile") > 1
    assert done.stdout.endswith("ended\n")


def test_work_that_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    """What is raised meanwhile is raised when the work has ended, not beside it."""
    from keystone_mpi.engine.parting import attend

    told: list[str] = []
    stop = threading.Event()

    def work() -> None:
        stop.wait(30)
        told.append("the work has ended")

    def meanwhile(_wait_s: float) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        attend(work, meanwhile, lambda: None, stop.set)
    assert told == ["the work has ended"]


def test_a_worker_that_wakes_up_goes_home(mpiexec, tmp_path: Path, wait_until) -> None:
    """It was taken for lost, and its tasks run elsewhere; the run ends in order all the same."""
    sweep = write_sweep(tmp_path, shell("sleep 1"), "x = { range = [0, 16, 1] }", "[task]\nretries = 0\n")
    job = mpiexec.start(["keystone-mpi", "run", sweep, "--slots", "2"], n=3, env={"KEYSTONE_SILENCE": "3"})
    wait_until(lambda: len(runner_processes(job.processes())["worker"]) == 2, timeout_s=30)
    wait_until((tmp_path / "demo.h5.journal").exists, timeout_s=30)
    worker = runner_processes(job.processes())["worker"][0]
    time.sleep(1.0)  # the worker has given its first sign of life
    kill(worker, signal.SIGSTOP)
    wait_until(lambda: "is taken for lost" in job.output_so_far(), timeout_s=20)
    kill(worker, signal.SIGCONT)
    job.wait(60).check(0)
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 16


REFUSED = """
import os, sys
from keystone_mpi.core.errors import ClusterError
from keystone_mpi.execution import launcher_client
def start(self, *, fork=False):
    raise ClusterError("no room for a launcher here")
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
    launcher_client.LauncherClient.start = start
from keystone_mpi.cli.entry import main
main()
"""


def test_a_worker_that_cannot_work_is_not_waited_for(mpiexec, tmp_path: Path) -> None:
    """It says so and answers no farewell: MPI ends in order all the same, and the run counts."""
    sweep = write_sweep(tmp_path, shell("true"), "x = { range = [0, 4, 1] }")
    program = tmp_path / "keystone-mpi"
    program.write_text(REFUSED)
    done = mpiexec([sys.executable, program, "run", sweep, "--slots", "1"], n=3).check(0)
    assert "no room for a launcher here" in done.output
    assert "4 of 4 tasks succeeded" in done.stdout
    assert states(tmp_path / "demo.h5") == ["SUCCESS"] * 4
