"""Programs whose workers are gone without a word: what they had runs elsewhere, and the program ends."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from keystone_mpi.execution.scratch import remove_stale_roots

SILENCE = {"KEYSTONE_SILENCE": "3"}
HEADER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from keystone_mpi import KeystoneExecutor, RunInterruptedError, TaskPipeline

def rank_of(pid):
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\\0"):
        name, _, value = entry.partition(b"=")
        if name in (b"PMI_RANK", b"OMPI_COMM_WORLD_RANK"):
            return int(value)

def worker_ranks():
    found = {}
    mine = Path("/proc/self/cmdline").read_bytes()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes() == mine and rank_of(entry.name):
                found[rank_of(entry.name)] = int(entry.name)
        except OSError:
            continue
    return found

def freeze(rank):
    os.kill(worker_ranks()[rank], signal.SIGSTOP)
"""


@pytest.fixture
def run_lost(run: Callable[..., Any]) -> Callable[..., Any]:
    """Run a program on three ranks of one slot each, which are lost after three seconds of silence."""

    def run_program(source: str, way: str = "mpiexec") -> Any:
        return run(HEADER + textwrap.dedent(source), way, env={**SILENCE, "KEYSTONE_SLOTS": "2"})

    return run_program


def check_file(path: Path, *, state: str, states: list[int]) -> None:
    with h5py.File(path) as file:
        assert file.attrs["state"] == state
        assert file["tasks/state"][:].tolist() == states
    assert sorted(p.name for p in path.parent.iterdir()) == ["out.h5", "program.py", "solve.py"]


TASKS = """
pipeline = TaskPipeline("out.h5")
ids = pipeline.parameter_sweep("command", ["sleep", "{s}"], {"s": [0.5], "k": range(8)})
pipeline.wait_for_task(ids[0])
freeze(1)
"""


@pytest.mark.multirank
@pytest.mark.parametrize("way", ["mpiexec", "module"])
def test_tasks_of_a_silent_worker_run_elsewhere(run_lost: Callable[..., Any], folder: Path, way: str) -> None:
    """Exit code 75, as of a sweep that lost a worker: MPI cannot end without it."""
    done = run_lost(TASKS + "print(pipeline.wait_for_workflow(ids)['completed'], flush=True)\n", way)
    done.check_abort(75)
    assert done.stdout.splitlines()[0] == "8", done.output
    assert "worker rank 1" in done.stderr, done.output
    assert "has not been heard of for 3 s and is taken for lost" in done.stderr, done.output
    check_file(folder / "out.h5", state="complete", states=[2] * 8)
    with h5py.File(folder / "out.h5") as file:
        assert len(file["attempts/outcome"]) > 8, "the lost attempts are in the file"


@pytest.mark.multirank
def test_a_call_of_a_silent_worker_fails_and_the_others_are_answered(run_lost: Callable[..., Any]) -> None:
    source = """
    def work(k):
        time.sleep(0.5)
        return k
    with KeystoneExecutor() as pool:
        futures = [pool.submit(work, k) for k in range(8)]
        futures[0].result()
        freeze(1)
        failed = [k for k, future in enumerate(futures) if future.exception()]
        print(len(failed), type(futures[failed[0]].exception()).__name__ if failed else "", flush=True)
        assert pool.submit(work, 9).result() == 9
    """
    done = run_lost(source).check_abort(75)
    assert done.stdout.splitlines()[0] in ("1 CallCrashedError", "0 "), done.output
    assert "is taken for lost" in done.stderr
    remove_stale_roots()  # as the next start would: the frozen rank's own folder, since it was killed


@pytest.mark.multirank
@pytest.mark.parametrize("end", ["failure", "drain"])
def test_the_file_is_finished_though_mpi_cannot_end(
    run_lost: Callable[..., Any], folder: Path, end: str
) -> None:
    """A program that fails, or is drained, after a worker was lost."""
    last = {"failure": "1 / 0", "drain": "os.kill(os.getpid(), signal.SIGUSR1)"}[end]
    more = f"""
    pipeline.wait_for_workflow(ids)
    more = pipeline.parameter_sweep("command", ["sleep", "{{s}}"], {{"s": [1.5], "k": range(3)}})
    time.sleep(0.5)
    {last}
    pipeline.wait_for_workflow(more)
    """
    done = run_lost(TASKS + textwrap.dedent(more))
    assert not done.timed_out, done.output
    # mpiexec may mix the program's own exit code with that of the worker that it has to kill.
    assert done.returncode != 0, done.output
    if end == "drain":
        done.check_abort(75)
    else:
        assert done.returncode != 75, done.output
    check_file(folder / "out.h5", state="interrupted", states=[2] * 8 + [2 * (end == "drain"), 0, 0])


@pytest.mark.multirank
def test_workers_notice_that_rank_0_is_gone(
    mpiexec: Any, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    source = """
    pipeline = TaskPipeline("out.h5")
    pipeline.wait_for_task(pipeline.submit_task("command", ["true"]))
    time.sleep(2.0)
    print(os.getpid(), *worker_ranks().values(), flush=True)
    time.sleep(60)
    """
    program = tmp_path / "program.py"
    program.write_text(HEADER + textwrap.dedent(source))
    job = mpiexec.start([sys.executable, program], n=3, env=SILENCE)
    wait_until(lambda: job.output_so_far().endswith("\n"))
    master, *workers = map(int, job.output_so_far().split())
    assert len(workers) == 2
    os.kill(master, signal.SIGSTOP)
    try:
        wait_until(lambda: "rank 0 has not been heard of for 3 s" in job.errors_so_far(), timeout_s=12)
        wait_until(lambda: not any(_lives(pid) for pid in workers), timeout_s=12)
    finally:
        job.kill()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.multirank
def test_a_worker_that_wakes_up_goes_home(run_lost: Callable[..., Any], folder: Path) -> None:
    """It was taken for lost; what it had is elsewhere, and the program ends in order."""
    more = """
    assert pipeline.wait_for_workflow(ids)["completed"] == 8
    os.kill(worker_ranks()[1], signal.SIGCONT)
    last = pipeline.parameter_sweep("command", ["sleep", "{s}"], {"s": [0.5], "k": range(8)})
    print(pipeline.wait_for_workflow(last)["completed"], flush=True)
    """
    done = run_lost(TASKS + textwrap.dedent(more)).check()
    assert done.stdout.splitlines()[0] == "8", done.output
    assert "is taken for lost" in done.stderr
    check_file(folder / "out.h5", state="complete", states=[2] * 16)
