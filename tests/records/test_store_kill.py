"""A fold, a final fold and a recovery, killed -9 at every single write that they make.

After every kill the visible file opens with plain h5py and shows all rows of
one generation, and the next recovery yields the complete truth.

Two mechanisms: strace injects SIGKILL on entering the n-th system call of a
kind (every write of the HDF5 library included); hooks on os functions do the
same for the steps of ours where strace is missing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from written_runs import Columns, Run, done, failed, given, joined, make_columns

from keystone_mpi.records.store import finish, fold, folding  # noqa: F401  (folding: h5py is loaded before the forks)
from keystone_mpi.records.view import open_view, recover

TASKS = 6
CALLS = (
    "pwrite64", "write", "copy_file_range", "fsync", "rename", "unlink", "truncate",
    "ftruncate", "link", "fchmod", "chmod",
)  # fmt: skip


class Scenario:
    """Something that is done to a run, and what may be seen when it is killed on the way."""

    def __init__(self, folder: Path, name: str) -> None:
        self.template = folder / "template"
        self.template.mkdir()
        self.folder = folder / "work"
        self.output = self.folder / "run.h5"
        run = Run(self.template, TASKS).add(joined(), given((0, 1), (1, 1)), done(0), failed(1, retried=True))
        self.allowed_rows = {None, 2}
        if name != "first fold":
            fold(run.output, run.journal, Columns(TASKS), final=False)
            run.add(given((1, 2), (2, 1)), done(1, 2, stdout_tail="x" * 200), done(2))
            self.allowed_rows = {2, 4}
        if name == "recovery":
            run.add(given((3, 1)))
            self.allowed_rows = {2, 5}
        run.stop()
        self.has_flight = name == "recovery"
        self.name = name
        self.checked: set[frozenset[tuple[str, bytes]]] = set()
        """States of the folder that were recovered from; what a temp holds is never read."""

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.template, self.folder)

    def act(self) -> None:
        journal = self.folder / "run.h5.journal"
        match self.name:
            case "first fold" | "next fold":
                fold(self.output, journal, Columns(TASKS), final=False)
            case "recovery":
                recover(self.output, make_columns)
            case _:
                raise AssertionError(self.name)

    def check(self) -> None:
        """Hold what must hold after any kill; then recover and hold the rest."""
        assert visible_rows(self.output) in self.allowed_rows
        state = frozenset(
            (path.name, path.read_bytes()) if ".next-" not in path.name else (".next", b"")
            for path in self.folder.iterdir()
        )
        if state in self.checked:
            return
        self.checked.add(state)
        with open_view(self.output, make_columns) as view:  # the truth is seen before anybody recovers
            expected = [2, 2, 2, 0, 0, 0] if self.name != "first fold" else [2, 0, 0, 0, 0, 0]
            assert view.states.tolist() == expected
            assert view.last_attempt.tolist()[:3] == ([1, 2, 1] if self.name != "first fold" else [1, 1, 0])
        recover(self.output, make_columns)
        with h5py.File(self.output, "r") as file:
            assert file.attrs["state"] == "interrupted"
            assert file["tasks/state"][:].tolist() == expected
            assert file["params/mesh_size"][:].tolist() == [k * 8 for k in range(TASKS)]
            pairs = list(
                zip(file["attempts/task_index"][:].tolist(), file["attempts/number"][:].tolist(), strict=True)
            )
            full = [(0, 1), (1, 1), (1, 2), (2, 1)] if self.name != "first fold" else [(0, 1), (1, 1)]
            assert sorted(pairs) == full + ([(3, 1)] if self.has_flight else [])
            assert file["results/residual"][0] == 0.0
        assert [path.name for path in self.folder.iterdir()] == ["run.h5"]


def visible_rows(path: Path) -> int | None:
    """Read everything there is to read with plain h5py; return the number of attempts."""
    if not path.exists():
        return None
    with h5py.File(path, "r", locking=True) as file:
        lengths: set[tuple[str, int]] = set()

        def read(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                item[()]
                if "/" in name and item.ndim == 1:
                    lengths.add((name.split("/")[0], len(item)))

        file.visititems(read)
        assert len([group for group, _length in lengths if group == "attempts"]) == 1
        return int(file["attempts/attempt"].shape[0])


def fork(action: Callable[[], None], prepare: Callable[[], None]) -> int:
    """Run `action` in a child process."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # numpy's idle threads do not matter to this child
        child = os.fork()
    if child == 0:
        status = 9
        try:
            prepare()
            action()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.fixture(params=["first fold", "next fold", "recovery"])
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scenario]:
    yield Scenario(tmp_path, request.param)
    shutil.rmtree(tmp_path)


HOOKED = (
    "fsync",
    "rename",
    "copy_file_range",
    "truncate",
    "unlink",
    "link",
    "fchmod",
    "ftruncate",
    "rmdir",
    "open",
)


def test_killed_at_every_step_of_ours(scenario: Scenario) -> None:
    step = 0
    while True:
        step += 1
        scenario.reset()
        count = 0

        def hook(real: Callable[..., Any], when: int = step) -> Callable[..., Any]:
            def stepped(*arguments: Any, **keywords: Any) -> Any:
                nonlocal count
                count += 1
                if count == when:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **keywords)

            return stepped

        def prepare(make: Callable[[Callable[..., Any]], Callable[..., Any]] = hook) -> None:
            for name in HOOKED:
                setattr(os, name, make(getattr(os, name)))

        _pid, status = os.waitpid(fork(scenario.act, prepare), 0)
        scenario.check()
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert step > (8 if scenario.name == "recovery" else 4)


def stop_for_tracer() -> None:
    """Let any process of ours trace this one, and wait for it."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)


def run_under_strace(scenario: Scenario, call: str, when: int) -> bool:
    """Kill the scenario on entering the `when`-th `call`; False when it came to its end before that."""
    child = fork(scenario.act, stop_for_tracer)
    os.waitpid(child, os.WUNTRACED)
    tracer = subprocess.Popen(
        ["strace", "-p", str(child), "-o", "/dev/null", "-e", f"trace={call}",
         "-e", f"inject={call}:signal=KILL:when={when}"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert tracer.stderr is not None
    try:
        line = tracer.stderr.readline()
        if "attached" not in line:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.skip(f"strace cannot attach here: {line.strip()}")
        os.kill(child, signal.SIGCONT)
        _pid, status = os.waitpid(child, 0)
    finally:
        tracer.stderr.close()
        tracer.wait(10)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


def test_killed_at_every_write(scenario: Scenario) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: test_killed_at_every_step_of_ours covers our own steps")
    kills = 0
    for call in CALLS:
        when = 0
        while True:
            when += 1
            scenario.reset()
            killed = run_under_strace(scenario, call, when)
            scenario.check()
            if not killed:
                break
            kills += 1
    assert kills > 30
