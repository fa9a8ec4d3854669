"""The run is killed at every system call that it makes on its own files, by fault injection.

strace kills the process at its n-th call on one of the run's files, before the
kernel does it. Whatever was told as finished before must be there afterwards,
and the next start completes the run with every attempt listed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from runs_support import FINAL, attempts, shell, states, viewed, write_sweep

from keystone_mpi.core.errors import OutputError

pytestmark = pytest.mark.multirank

TASKS = 6
CALLS = "pwrite64,write,fdatasync,fsync,ftruncate,rename,unlink,link,copy_file_range,openat"
SUFFIXES = ("", ".journal", ".lease")
SHORT = (1, 2, 3, 5, 8)
MOST = 400


def run_killed_at(keystone, folder: Path, suffix: str, number: int) -> bool:
    """Run and kill at the `number`-th call; False when the run ended before there were so many."""
    folder.mkdir()
    sweep = write_sweep(
        folder,
        shell('echo "{x} $KEYSTONE_ATTEMPT" >> started.log; echo "{{\\"v\\": {x}}}"'),
        f"x = {{ range = [0, {TASKS}, 1] }}",
    )
    path = folder / "demo.h5"
    strace = shutil.which("strace")
    assert strace is not None
    program = shutil.which("keystone-mpi", path=keystone.environment["PATH"])
    job = keystone.start_command(
        [
            *(strace, "-f", "-qq", "-o", os.devnull, "-P", f"{path}{suffix}"),
            *("-e", f"trace={CALLS}", "-e", f"inject={CALLS}:signal=KILL:when={number}"),
            *(program, "run", sweep, "--slots", "2"),
        ],
        cwd=folder,
    )
    done = job.wait(60)
    assert not done.timed_out, done.output
    told: dict[int, int] = {}
    if path.exists() or path.with_name("demo.h5.journal").exists():
        try:
            with viewed(path) as view:
                told = {task: int(state) for task, state in enumerate(view.states) if state in FINAL}
        except OutputError:
            # Killed before the first record was whole: nothing was told to anybody.
            assert not path.exists()
    keystone(["run", "sweep.toml", "--slots", "2"], cwd=folder).check(0)
    with viewed(path) as view:
        now = {task: int(state) for task, state in enumerate(view.states)}
    assert told.items() <= now.items(), f"{suffix}, call {number}: lost {told.items() - now.items()}"
    assert states(path) == ["SUCCESS"] * TASKS
    listed = attempts(path)
    ran = [tuple(map(int, line.split())) for line in (folder / "started.log").read_text().splitlines()]
    assert len(set(listed)) == len(listed)
    assert set(ran) <= set(listed), f"{suffix}, call {number}: ran and not listed: {set(ran) - set(listed)}"
    assert len(set(ran)) == len(ran), f"{suffix}, call {number}: an attempt ran twice under one number"
    left = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("demo.h5.damaged"))
    assert left == ["demo.h5", "started.log", "sweep.toml"], f"{suffix}, call {number}: {left}"
    return done.returncode != 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_at_some_writes(keystone, tmp_path: Path, suffix: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    killed = [run_killed_at(keystone, tmp_path / str(number), suffix, number) for number in SHORT]
    assert killed[0], "the first call on the file was not met"


@pytest.mark.soak
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_at_every_write(keystone, tmp_path: Path, suffix: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    for number in range(1, MOST):
        if not run_killed_at(keystone, tmp_path / str(number), suffix, number):
            return
    pytest.fail(f"still killed at call {MOST}")
