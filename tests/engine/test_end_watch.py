"""A changed time limit is noticed, a Slurm that does not answer changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keystone_mpi.core.errors import ClusterError
from keystone_mpi.engine import end_watch
from keystone_mpi.engine.end_watch import PAUSE_VARIABLE, EndWatch, MovedEnd
from keystone_mpi.engine.stopping import Deadline
from keystone_mpi.slurm import allocation


def understand(ends_at: float | None) -> MovedEnd:
    """Keep the end itself."""
    deadline = None if ends_at is None else Deadline(drain_at=ends_at - 20.0, stop_at=ends_at - 10.0)
    return MovedEnd(deadline, f"ends at {ends_at}")


def test_only_what_moved_is_news() -> None:
    answers: list[float | ClusterError | None] = [
        1000.0, 1001.0, 5000.0, ClusterError("no answer"), 5000.0, None, None, 300.0,
    ]  # fmt: skip
    told = []

    def ask() -> float | None:
        answer = answers.pop(0)
        if isinstance(answer, ClusterError):
            raise answer
        return answer

    watch = EndWatch(1000.0, ask, understand)
    while answers:
        watch.look()
        news = watch.news()
        told.append("" if news is None else news.text.removeprefix("ends at "))
        assert watch.news() is None, "news is told once"
    assert told == ["", "", "5000.0", "", "", "None", "", "300.0"]


def test_it_asks_rarely_and_more_often_near_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PAUSE_VARIABLE, raising=False)
    watch = EndWatch(10_000.0, lambda: None, understand)
    assert [watch.pause_s(now) for now in (0.0, 9_700.0, 9_990.0, 11_000.0)] == [300.0, 150.0, 15.0, 15.0]
    assert EndWatch(None, lambda: None, understand).pause_s(0.0) == 300.0
    monkeypatch.setenv(PAUSE_VARIABLE, "2")
    assert watch.pause_s(0.0) == 2.0


def test_nobody_waits_for_a_slurm_that_hangs(
    monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    import threading

    asked, answer = threading.Event(), threading.Event()

    def ask() -> float | None:
        asked.set()
        answer.wait(30.0)
        return 50.0

    monkeypatch.setattr(end_watch, "longest_pause_s", lambda: 0.01)
    with EndWatch(None, ask, understand) as watch:
        assert asked.wait(10.0)
        assert watch.news() is None
    answer.set()
    news: list[MovedEnd | None] = []
    wait_until(lambda: bool(news.append(watch.news()) or news[-1]))
    assert news[-1] == MovedEnd(Deadline(drain_at=30.0, stop_at=40.0), "ends at 50.0")


def test_what_slurm_says_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what it said when the job began ($SLURM_JOB_END_TIME)."""
    line = "JobId=12 JobState=RUNNING TimeLimit=00:10:00 EndTime=2026-11-24T06:10:00"
    monkeypatch.setattr(allocation, "ask", lambda *command, **options: line)
    there = {"SLURM_JOB_ID": "12", "SLURM_JOB_END_TIME": "4000000000"}
    assert allocation.end_of_allocation(there) == 4e9
    assert allocation.present_end(there) == allocation.parse_time("2026-11-24T06:10:00")
    monkeypatch.setattr(allocation, "ask", lambda *command, **options: "")
    with pytest.raises(ClusterError, match="no job"):
        allocation.present_end(there)
    with pytest.raises(ClusterError):
        allocation.present_end({})
