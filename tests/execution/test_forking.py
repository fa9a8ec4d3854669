"""Helpers that are forked: what they hold, how they end, and what this Python may lack."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEADER = """
import os, signal, subprocess, sys, time
from keystone_mpi.execution.forking import fork_apart
null = os.open(os.devnull, os.O_RDWR)
report = os.memfd_create("report")
def fork(work, **more):
    return fork_apart("keystone-test", work, stdin_fd=null, stdout_fd=null, stderr_fd=report, **more)
def told():
    return os.pread(report, 65536, 0).decode()
"""


def run_python(body: str) -> str:
    """Run a program of its own: it has one thread and little open."""
    code = HEADER + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_exit_code_signal_and_last_words() -> None:
    said = run_python(
        """
        print(fork(lambda: 7).wait(30))
        killed = fork(lambda: time.sleep(600) or 0)
        assert killed.poll() is None
        killed.kill()
        print(killed.wait(30), killed.poll())
        killed.kill()
        print(fork(lambda: 1 / 0).wait(30), "ZeroDivisionError" in told())
        """
    )
    assert said.splitlines() == ["7", "-9 -9", "70 True"]


def test_who_is_waited_for_in_vain() -> None:
    said = run_python(
        """
        child = fork(lambda: time.sleep(600) or 0)
        try:
            child.wait(0.05)
        except subprocess.TimeoutExpired as error:
            print(error)
        child.kill()
        child.wait()
        """
    )
    assert "keystone-test" in said


def test_it_keeps_four_descriptors_at_most() -> None:
    said = run_python(
        """
        many = [os.dup(null) for _ in range(100)]
        def work():
            print(sorted(os.listdir("/proc/self/fd")), file=sys.stderr, flush=True)
            return 0
        fork(work).wait(30)
        fork(work, kept_fd=many[-1]).wait(30)
        print(told(), end="")
        """
    )
    # One more each: the one that the list is read with.
    assert [len(line.split(", ")) for line in said.splitlines()] == [4, 5]


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 2)])
def test_standard_streams_that_were_closed(closed: tuple[int, ...]) -> None:
    body = f"""
    def work():
        os.write(2, b"here")
        return 0
    for fd in {closed}:
        os.close(fd)
    again = os.open("/proc/self/fd/" + str(report), os.O_RDWR)
    child = fork_apart("keystone-test", work, stdin_fd=null, stdout_fd=null, stderr_fd=again)
    assert child.wait(30) == 0
    assert told() == "here"
    """
    run_python(body)


def test_a_kernel_that_was_told_to_forget_children() -> None:
    """`trap '' CHLD` in a job script is inherited."""
    said = run_python(
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        child = fork(lambda: 3)
        print(child.wait(30))
        child.kill()
        """
    )
    assert said == "0\n"


def test_several_threads_may_wait_and_kill() -> None:
    run_python(
        """
        import threading
        child = fork(lambda: time.sleep(600) or 0)
        threads = [threading.Thread(target=child.wait) for _ in range(4)]
        threads += [threading.Thread(target=child.kill) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert child.poll() == -9
        """
    )


@pytest.mark.parametrize("lacks", ["memfd_create", "pidfd_open"])
def test_a_run_on_a_python_that_lacks_something(tmp_path: Path, lacks: str) -> None:
    """conda's is built against an old C library."""
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('[sweep]\nname = "demo"\ncommand = ["true"]\n[params]\nx = [1, 2]\n')
    code = (
        f"import os, sys; del os.{lacks}; sys.argv = ['keystone-mpi', 'run', 'sweep.toml', '-q']\n"
        "from keystone_mpi.cli.entry import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.h5", "sweep.toml"]


@pytest.mark.parametrize("kind", ["store", "launcher"])
def test_a_machine_that_has_no_room_for_another_process(tmp_path: Path, kind: str) -> None:
    """The writer of the file is started later instead; without a launcher nothing can run, in one line."""
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('[sweep]\nname = "demo"\ncommand = ["true"]\n[params]\nx = [1, 2]\n')
    failing = 1 if kind == "store" else 2
    code = (
        "import errno, os, sys\n"
        "fork, calls = os.fork, []\n"
        "def refuse():\n"
        "    calls.append(0)\n"
        f"    if len(calls) == {failing}:\n"
        "        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    return fork()\n"
        "os.fork = refuse\n"
        "sys.argv = ['keystone-mpi', 'run', 'sweep.toml', '-q']\n"
        "from keystone_mpi.cli.entry import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
    if kind == "store":
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.h5", "sweep.toml"]
    else:
        assert done.returncode == 2, done.stderr
        assert "the launcher process cannot be started" in done.stderr


@pytest.mark.parametrize("word", ["λ", "naïve"])
def test_words_in_a_locale_that_cannot_say_them(tmp_path: Path, word: str) -> None:
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(
        f'[sweep]\nname = "demo"\ncommand = ["/bin/sh", "-c", "printf %s {word} > said"]\n', encoding="utf-8"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "keystone_mpi", "run", "sweep.toml", "-q"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "said").read_text(encoding="utf-8") == word
