"""The master's handle on its store process: what is said of one that dies, and when another is started."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from keystone_mpi.engine import store_child
from keystone_mpi.engine.store_client import GIVEN_UP, RESTARTS, BatchResult, StoreClient

DIES = "import os; os.read(0, 64); raise MemoryError('no room for h5py')"
ANSWERS_ONCE = """
import os, sys
os.write(1, b'{"final": false, "problem": ""}\\n')
if os.read(0, 64):
    died = sys.argv[1] + ".died"
    if os.path.exists(died):
        os.write(1, b'{"final": true, "problem": ""}\\n')
    else:
        open(died, "w").close()
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch):
    """Put another program in the place of the store process."""

    def put(code: str) -> None:
        monkeypatch.setattr(
            store_child, "quick_argv", lambda _code, _packages, *rest: [sys.executable, "-c", code, *rest]
        )

    return put


def test_a_process_that_dies_again_and_again_is_told_with_its_last_words(program, tmp_path: Path) -> None:
    program(DIES)
    client = StoreClient(tmp_path / "a.h5")
    client.ensure_started()
    result = client.finish(30.0)
    assert result == BatchResult(
        final=True,
        problem=f"the store process died {RESTARTS + 1} times in a row: MemoryError: no room for h5py",
    )


def test_a_process_that_dies_once_is_replaced(program, tmp_path: Path) -> None:
    program(ANSWERS_ONCE)
    client = StoreClient(tmp_path / "a.h5")
    client.ensure_started()
    assert client.finish(30.0) == BatchResult(final=True)


def test_a_batch_that_was_written_renews_the_patience(program, tmp_path: Path, wait_until) -> None:
    program('import os; os.write(1, b\'{"final": false, "problem": ""}\\n\')')
    client = StoreClient(tmp_path / "a.h5")
    client.ensure_started()
    started = set()

    def many() -> bool:
        if client._child is not None:
            started.add(client._child.pid)
        client.poll()
        return len(started) > 2 * RESTARTS

    wait_until(many)
    assert client.problem == ""
    client.close()


def test_a_store_that_is_given_up_starts_nothing_more(program, tmp_path: Path, wait_until) -> None:
    program("import time; time.sleep(600)")
    client = StoreClient(tmp_path / "a.h5")
    client.ensure_started()
    results: list[BatchResult] = []
    waiting = threading.Thread(target=lambda: results.append(client.finish(600.0)))
    waiting.start()
    wait_until(lambda: client.is_writing)
    client.give_up()
    waiting.join(30)
    assert results == [BatchResult(final=True, problem=GIVEN_UP)]
    assert not client.is_writing
    client.close()
    client.ensure_started()
    assert client._child is None
    assert client.finish(1.0).problem == GIVEN_UP


def test_one_that_died_too_often_is_told_at_once(program, tmp_path: Path, wait_until) -> None:
    program("raise MemoryError('no room for h5py')")
    client = StoreClient(tmp_path / "a.h5")
    client.ensure_started()

    def told() -> bool:
        client.poll()
        return bool(client.problem)

    wait_until(told)
    assert client.problem.endswith(f"died {RESTARTS + 1} times in a row: MemoryError: no room for h5py")
    client.close()


FORKS = """
import subprocess
import sys
import textwrap
from pathlib import Path
from keystone_mpi.engine.store_child import LOAD_REQUEST, fork_store
child = fork_store()
{body}
"""


def run_python(body: str) -> subprocess.CompletedProcess[str]:
    """Fork a store process from another Python: this one has threads and much open."""
    code = FORKS.format(body=textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )


def test_a_forked_store_holds_nothing_of_the_rank_and_ends_with_it(wait_until) -> None:
    done = run_python(
        """
        import os, time
        name = Path(f"/proc/{child.pid}/comm")
        while name.read_text().strip() != "keystone-store":
            time.sleep(0.01)
        print(child.pid, *sorted(os.listdir(f"/proc/{child.pid}/fd")))
        print(os.getsid(child.pid) == child.pid)
        """
    )
    first, own_session = done.stdout.splitlines()
    pid, *descriptors = map(int, first.split())
    assert own_session == "True"
    assert descriptors == [0, 1, 2]
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=10)


def test_what_a_forked_store_says_last_is_told() -> None:
    done = run_python(
        """
        child.ask(b"dance")
        assert child.read_lines(30.0) is None
        while not child.has_ended:
            pass
        print(child.last_words())
        assert not child.ask(LOAD_REQUEST)
        child.end()
        """
    )
    assert (
        done.stdout
        == ": keystone_mpi.core.errors.InternalError: the store process knows no request b'dance'\n"
    )


def test_a_forked_store_that_dies_is_replaced(tmp_path: Path) -> None:
    done = run_python(
        f"""
        import os, signal
        from keystone_mpi.engine.store_client import StoreClient
        client = StoreClient(Path({str(tmp_path)!r}) / "a.h5", child)
        os.kill(child.pid, signal.SIGKILL)
        print(client.finish(30.0).problem)
        """
    )
    assert done.stdout == "the journal has no header yet\n"


def test_a_process_that_cannot_be_started_is_a_problem_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(store_child.subprocess, "Popen", refuse)
    monkeypatch.setattr("keystone_mpi.engine.store_client.START_AFTER_S", 0.0)
    open_before = len(os.listdir("/proc/self/fd"))
    client = StoreClient(tmp_path / "a.h5")
    for _ in range(3):
        client.poll()
    assert client.problem == "the store process cannot be started: Resource temporarily unavailable"
    assert client.finish(5.0).problem == client.problem
    assert len(os.listdir("/proc/self/fd")) == open_before
