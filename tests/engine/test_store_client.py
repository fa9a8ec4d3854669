"""The master's handle on its store process: what is said of one that dies, and when another is started."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from keystone_mpi.engine import store_process
from keystone_mpi.engine.store_process import GIVEN_UP, RESTARTS, BatchResult, StoreClient

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
            store_process, "quick_argv", lambda _code, _packages, *rest: [sys.executable, "-c", code, *rest]
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
        if client._process is not None:
            started.add(client._process.pid)
        client.poll()
        return len(started) > 2 * RESTARTS

    wait_until(many)
    assert client.problem == ""
    client.close()


def test_a_store_that_is_given_up_starts_nothing_more(program, tmp_path: Path) -> None:
    program("import time; time.sleep(600)")
    client = StoreClient(tmp_path / "a.h5")
    client.ensure_started()
    results: list[BatchResult] = []
    waiting = threading.Thread(target=lambda: results.append(client.finish(600.0)))
    waiting.start()
    while not client.is_writing:
        time.sleep(0.01)
    client.give_up()
    waiting.join(30)
    assert results == [BatchResult(final=True, problem=GIVEN_UP)]
    assert not client.is_writing
    client.close()
    client.ensure_started()
    assert client._process is None
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
