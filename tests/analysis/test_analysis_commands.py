"""stats, report and status --watch from a shell, on runs of all kinds."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_runs import SMALL, T0, task_end, write_run

from keystone_mpi.cli import watch
from keystone_mpi.cli.main import main
from keystone_mpi.core.model import TaskState
from keystone_mpi.records.entries import AttemptStarted, TasksAssigned
from keystone_mpi.records.journal import journal_path
from keystone_mpi.records.lease import acquire

PROGRAM = Path(sys.executable).parent / "keystone-mpi"
SCREEN = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
ASSIGNED = [
    TasksAssigned(worker=1, at=T0 + 2, attempts=[(1, 1)]),
    AttemptStarted(worker=1, index=1, attempt=1, at=T0 + 2),
]


def plain(text: str) -> str:
    """Return what a terminal shows, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def many_failures(folder: Path) -> Path:
    """Return a run of 40 tasks on 4 hosts, 12 of which failed, 10 of them on node3."""
    sweep = SMALL.replace("x = [0, 1]", "x = { range = [0, 20, 1] }")
    entries = []
    for i in range(40):
        report = {}
        if i % 4 == 2 or i in (1, 3):
            report = {
                "exit_code": 7,
                "stderr_tail": f"disk {i} full\n",
                "error": f"exit code 7: disk {i} full",
            }
        state = TaskState.FAILURE if report else TaskState.SUCCESS
        entries.append(task_end(i, worker=1 + i % 4, start=float(i // 4), took=0.9, state=state, **report))
    return write_run(folder, sweep, entries, hosts=("node1", "node2", "node3", "node4"), slots=1)


def test_status_stats_and_report_tell_the_same_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = many_failures(tmp_path)
    assert main(["status", str(path)]) == 0
    status = capsys.readouterr().out
    assert main(["stats", str(path)]) == 0
    stats = capsys.readouterr().out
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 0
    report = (tmp_path / "r.html").read_text(encoding="utf-8")
    for said in (status, stats, report):
        assert "10 of 12 failures are on node3" in said
        assert "exit code 7: disk … full" in said
    capsys.readouterr()
    assert main(["status", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["failures"][0]["count"] == 12
    assert facts["failures"][0]["hosts"]["node3"] == 10
    assert facts["common"] == ["10 of 12 failures are on node3"]


def test_stats_says_numbers_with_their_denominators(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = many_failures(tmp_path)
    assert main(["stats", str(path), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["total_tasks"] == 40
    assert stats["speedup"] == pytest.approx(36 / 9.9)
    assert stats["efficiency"] == pytest.approx(36 / 9.9 / 4)
    assert set(stats["denominators"]) == {"speedup", "efficiency"}
    assert len(stats["workers"]) == 4
    assert main(["stats", str(path), "--select", "state=FAILURE", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total_tasks"] == 12


def test_report_goes_to_the_present_folder(
    first_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(first_version)]) == 0
    assert "v1.html" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["v1.html"]


def test_watch_says_which_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished = many_failures(tmp_path)
    assert main(["status", str(finished), "--watch"]) == 0
    said = capsys.readouterr().out
    assert "is complete: 40/40, done 28, failed 12" in said
    assert "10 of 12 failures are on node3" in said
    dead = write_run(tmp_path, SMALL, [task_end(0), *ASSIGNED], name="dead.h5", closed="")
    assert main(["status", str(dead), "--watch"]) == 0
    assert "died; nothing that was recorded is lost: 1/4" in capsys.readouterr().out
    assert journal_path(dead).exists()  # watching changes nothing
    stopped = write_run(tmp_path, SMALL, [task_end(0)], name="stopped.h5", closed="interrupted")
    assert main(["status", str(stopped), "-w"]) == 0
    assert "was stopped with work left" in capsys.readouterr().out
    assert main(["status", str(stopped), "--watch", "--json"]) == 2


def test_watch_follows_a_run_to_its_end(tmp_path: Path) -> None:
    from rich.console import Console

    path = write_run(tmp_path, SMALL, [task_end(0), *ASSIGNED], closed="")
    lease = acquire(path, run_id="run-run.h5", epoch=1)
    lease.renew({"rate_per_s": 2.0, "eta_s": 90.0, "waiting": [{"text": "1 task waits for memory"}]})
    console = Console(force_terminal=True, width=100, height=30, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        assert seconds >= 0.2
        if looks == 2:
            lease.release()

    assert watch.watch_run(path, 0.2, console=console, sleep=sleep) == 0
    console.file.close()
    shown = console.export_text()
    assert "small" in shown
    assert "is running" in shown
    assert "about 90 s left" in shown
    assert "waiting: 1 task waits for memory" in shown
    assert "node1" in shown
    assert "1 (" in shown  # task 1 and for how long
    assert "Ctrl-C leaves the run alone" in shown
    assert "died; nothing that was recorded is lost" in shown


def test_watch_in_a_real_terminal_and_ctrl_c(tmp_path: Path) -> None:
    path = write_run(tmp_path, SMALL, [task_end(0), *ASSIGNED], closed="")
    with acquire(path, run_id="run-run.h5", epoch=1):
        master, terminal = pty.openpty()
        process = subprocess.Popen(
            [PROGRAM, "status", "--watch", path], stdin=terminal, stdout=terminal, stderr=terminal,
            start_new_session=True,
            env={**os.environ, **SCREEN},
        )  # fmt: skip
        os.close(terminal)
        seen = ""
        end = time.monotonic() + 20
        try:
            while "Ctrl-C" not in seen and time.monotonic() < end:
                seen += os.read(master, 65536).decode(errors="replace")
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
            os.close(master)
    shown = plain(seen)
    assert "is running" in shown
    assert "1 of 4 tasks" in shown
    assert "1/2" in shown  # one of two slots is busy


def test_a_wide_run_fits_the_screen() -> None:
    from rich.console import Console

    workers = [
        watch.WorkerLook(f"node{n}", n, 64, [(n * 64 + k, 3.0 + n) for k in range(64)]) for n in range(500)
    ]
    seen = watch.Look(
        name="wide", path="w.h5", phase="running", reason="", total=10**6, completed=5, failed=2,
        running=32_000, pending=10**6 - 32_007, rate_per_s=3.0, eta_s=float("nan"), elapsed_s=60.0,
        workers=workers, waiting=["[bold]x[/bold]"], problem="", draining=True, failures=["a", "b"],
    )  # fmt: skip
    console = Console(width=80, height=24, force_terminal=True, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    console.print(watch.render(seen, 24))
    console.file.close()
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert any("and 4" in line and "more" in line for line in lines)
    assert any("[bold]x[/bold]" in line for line in lines)  # no markup of others is obeyed
    assert any("node499" in line for line in lines)  # runs longest
