"""What a run says while it goes on: bounded in lines, prompt with what matters."""

from __future__ import annotations

import io
import math

import pytest

from keystone_mpi.cli.progress import (
    FAILURE_LINES,
    NOTICE_LINES,
    LiveProgress,
    PlainProgress,
    closing_lines,
    make_observer,
    opening_line,
    progress_line,
)
from keystone_mpi.engine.observer import Progress, RunClosing, RunInfo


def info(**changes) -> RunInfo:
    values = {"name": "poisson", "output_path": "/nowhere/poisson.h5", "total": 100, "already_done": 0}
    return RunInfo(**{**values, "to_run": 100, "continued": False, **changes})


def snapshot(elapsed_s: float, **changes) -> Progress:
    values = {
        "total": 100, "succeeded": 10, "failed": 0, "running": 2, "pending": 88, "done_this_start": 10,
        "rate_per_s": 2.0, "eta_s": 44.0, "workers": 1, "slots": 2,
    }  # fmt: skip
    return Progress(elapsed_s=elapsed_s, **{**values, **changes})


def closing(**changes) -> RunClosing:
    values = {
        "state": "complete", "reason": "", "total": 100, "succeeded": 100, "failed": 0, "pending": 0,
        "out_of_memory": 0, "timed_out": 0, "elapsed_s": 12.0, "output_path": "/nowhere/poisson.h5",
    }  # fmt: skip
    return RunClosing(**{**values, **changes})


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_night_of_progress_is_a_bounded_number_of_lines() -> None:
    stream = io.StringIO()
    observer = PlainProgress(stream)
    for tick in range(8 * 3600 * 4):
        observer.progress(snapshot(tick / 4))
    first_minute = [line for line in lines_of(stream) if line.startswith("[0:00:")]
    assert 4 <= len(first_minute) <= 6
    assert lines_of(stream)[0].startswith("[0:00:02]")
    assert 8 * 60 <= len(lines_of(stream)) <= 8 * 60 + 20


def test_the_first_failures_are_said_at_once_and_a_broken_sweep_does_not_flood() -> None:
    stream = io.StringIO()
    observer = PlainProgress(stream)
    observer.progress(snapshot(0.1))
    assert lines_of(stream) == []
    observer.progress(snapshot(0.2, failed=1))
    assert "failed 1" in lines_of(stream)[0]
    for tick in range(4000):
        observer.progress(snapshot(0.3 + tick / 100, failed=2 + tick))
    assert len(lines_of(stream)) <= FAILURE_LINES + 8


def test_a_full_disk_stays_in_sight() -> None:
    assert progress_line(snapshot(3.0, problem="no space left on /scratch")).endswith("waiting for the disk")


def test_notices_are_bounded_and_repeats_are_said_once() -> None:
    stream = io.StringIO()
    observer = PlainProgress(stream)
    for _ in range(50):
        observer.notice("worker 3 on n07 is lost")
    assert len(lines_of(stream)) == 1
    for number in range(5000):
        observer.notice(f"worker {number} is lost")
    assert len(lines_of(stream)) == NOTICE_LINES + 1
    observer.run_closed(closing())
    assert "4801 notices not shown" in stream.getvalue().replace(",", "")


def test_quiet_says_only_the_end() -> None:
    stream = io.StringIO()
    observer = PlainProgress(stream, quiet=True)
    observer.run_opened(info())
    observer.progress(snapshot(100.0))
    assert lines_of(stream) == []
    observer.run_closed(closing())
    assert lines_of(stream)[0] == "complete: 100 of 100 tasks succeeded in 12 s"


def test_the_opening_tells_fresh_from_continued_from_done() -> None:
    assert opening_line(info()) == "poisson: 100 tasks -> /nowhere/poisson.h5"
    continued = info(continued=True, already_done=40, to_run=63, total=103, added=3, dropped=2)
    assert opening_line(continued) == (
        "poisson: continuing /nowhere/poisson.h5: 40 of 103 tasks done, 63 to run "
        "(3 new in the sweep, 2 no longer in the sweep (kept in the file))"
    )
    assert "nothing to do: all 100 tasks" in opening_line(info(continued=True, already_done=100, to_run=0))


def test_nothing_to_do_is_one_line() -> None:
    stream = io.StringIO()
    observer = PlainProgress(stream)
    observer.run_opened(info(continued=True, already_done=100, to_run=0))
    observer.run_closed(closing())
    assert len(lines_of(stream)) == 1


def test_the_summary_names_failures_and_the_next_commands() -> None:
    text = closing_lines(
        closing(
            succeeded=97, failed=3, timed_out=1, first_failures=[("7", "exit code 3"), ("9", "timed out")]
        )
    )
    assert text[0] == "complete: 97 of 100 tasks succeeded in 12 s"
    assert text[1] == "3 did not succeed (1 timed out):"
    assert "  task 7: exit code 3" in text
    assert any("keystone-mpi show /nowhere/poisson.h5 7" in line for line in text)
    assert any("keystone-mpi rerun /nowhere/poisson.h5 7" in line for line in text)
    assert any("and 1 more" in line for line in text)
    assert text[-1] == "results: /nowhere/poisson.h5"


def test_a_stopped_run_says_how_to_go_on_and_where_its_records_are() -> None:
    text = closing_lines(
        closing(state="interrupted", reason="signal TERM", succeeded=40, pending=60, file_problem="disk full")
    )
    assert text[0].startswith("stopped (signal TERM) after 12 s: 40 of 100 tasks done, 60 left; run the same")
    assert "disk full" in text[-1]
    assert "nothing is lost" in text[-1]


def test_a_share_is_never_rounded_up_to_all() -> None:
    assert "(99%)" in progress_line(snapshot(1.0, total=1000, succeeded=999))
    assert "left" not in progress_line(snapshot(1.0, eta_s=math.nan))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_a_terminal_gets_a_bar_and_keeps_only_the_summary(terminal: Terminal) -> None:
    observer = make_observer(stream=terminal)
    assert isinstance(observer, LiveProgress)
    observer = LiveProgress(terminal, columns=100)
    observer.run_opened(info())
    observer.progress(snapshot(1.0))
    drawn = len(terminal.getvalue())
    observer.progress(snapshot(1.1, succeeded=11))
    assert len(terminal.getvalue()) == drawn, "drawn more often than twice a second"
    observer.progress(snapshot(2.0, succeeded=50))
    observer.notice("worker 1 on n07 is lost [not markup]")
    observer.run_closed(closing())
    text = terminal.getvalue()
    assert "done 50" in text
    assert "running 2" in text
    assert "about 44 s left" in text
    assert "worker 1 on n07 is lost [not markup]" in text
    assert "complete: 100 of 100 tasks succeeded" in text
    observer.close()


def test_a_stream_that_is_gone_does_not_stop_the_run() -> None:
    stream = io.StringIO()
    observer = PlainProgress(stream)
    stream.close()
    observer.notice("said to nobody")


def test_a_log_is_no_terminal() -> None:
    assert not isinstance(make_observer(stream=io.StringIO()), LiveProgress)
