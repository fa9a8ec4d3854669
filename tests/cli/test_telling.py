"""What a run says is said by a thread: nobody waits for a terminal that was stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
import threading
from pathlib import Path

import h5py
import pytest

from keystone_mpi.cli.progress import PlainProgress
from keystone_mpi.cli.telling import PatientObserver
from keystone_mpi.engine.observer import Progress


class Stopped(PlainProgress):
    """A terminal that takes nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.said: list[object] = []

    def notice(self, text: str) -> None:
        self.go.wait(30)
        self.said.append(text)

    def progress(self, progress: Progress) -> None:
        self.said.append(progress.succeeded)

    def close(self) -> None:
        self.said.append("closed")


def snapshot(succeeded: int) -> Progress:
    return Progress(100, succeeded, 0, 1, 99 - succeeded, float(succeeded), succeeded, 1.0, 1.0, 1, 1)


def test_nobody_waits_and_only_the_last_snapshot_is_shown() -> None:
    inner = Stopped()
    observer = PatientObserver(inner)
    observer.notice("first")
    for number in range(50):
        observer.progress(snapshot(number))
    observer.notice("second")
    observer.flush(0.05)
    assert inner.said == []
    inner.go.set()
    observer.flush(30.0)
    observer.progress(snapshot(77))
    observer.close()
    assert inner.said == ["first", 49, "second", 77, "closed"]


def test_a_defect_comes_out_at_the_end() -> None:
    inner = Stopped()
    inner.run_opened = lambda info: 1 / 0  # type: ignore[assignment,return-value] # the defect
    observer = PatientObserver(inner)
    observer.run_opened(None)  # type: ignore[arg-type] # it does not come to that
    inner.go.set()
    observer.notice("still said")
    with pytest.raises(ZeroDivisionError):
        observer.close()
    assert inner.said == ["still said", "closed"]


def test_a_stopped_terminal_stops_no_run(tmp_path: Path, wait_until) -> None:
    """Ctrl-S on a terminal: the tasks run on, and the file is finished."""
    (tmp_path / "sweep.toml").write_text(
        '[sweep]\nname = "demo"\ncommand = ["sleep", "{x}"]\n[params]\nx = { range = [0.2, 1.2, 0.05] }\n'
    )
    ours, terminal = os.openpty()
    termios.tcflow(terminal, termios.TCOOFF)
    run = [Path(sys.executable).with_name("keystone-mpi"), "run", "sweep.toml", "--slots", "4"]
    process = subprocess.Popen(run, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE)
    try:

        def is_complete() -> bool:
            if not (tmp_path / "demo.h5").exists() or (tmp_path / "demo.h5.journal").exists():
                return False
            with h5py.File(tmp_path / "demo.h5") as file:
                return bool(file.attrs["state"] == "complete")

        wait_until(is_complete, timeout_s=40)
        assert process.poll() is None, "it has still to say how it ended"
        termios.tcflow(terminal, termios.TCOON)
        text = b""
        while b"results: demo.h5" not in text:
            text += os.read(ours, 65536)
        assert b"complete: 20 of 20 tasks succeeded" in text
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
        os.close(terminal)
