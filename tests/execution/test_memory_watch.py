"""Limits on memory: when to look again, and the kernel's own kills."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from keystone_mpi.execution import memory_watch
from keystone_mpi.execution.memory_watch import MemoryWatch, OomKills, text_of_bytes


def test_looks_oftener_near_the_limit() -> None:
    me = os.getpid()
    far, near = MemoryWatch(1 << 44, lambda: [me]), MemoryWatch(1 << 20, lambda: [me])
    over, pause_s = far.look()
    assert not over
    assert pause_s == 0.5
    assert far.used_bytes > 1 << 20
    over, pause_s = near.look()
    assert over
    assert 0.01 <= pause_s < 0.5
    assert MemoryWatch(1 << 30, lambda: [me]).first_look_s() == pytest.approx(0.134, abs=0.01)


def test_processes_that_are_gone_use_nothing() -> None:
    watch = MemoryWatch(1 << 20, lambda: [2**22 + 1, 2**22 + 2])
    assert watch.look()[0] is False
    assert watch.used_bytes == 0


def test_kernel_kills_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\noom 3\noom_kill 2\n")
    monkeypatch.setattr(memory_watch, "_counter_path", lambda: str(counter))
    kills = OomKills()
    assert not kills.happened()
    counter.write_text("low 0\noom 4\noom_kill 3\n")
    assert kills.happened()
    assert not kills.happened()
    counter.write_text("oom_kill 4\n")
    kills.note()
    assert not kills.happened()
    counter.unlink()
    assert not kills.happened()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (2 << 30, "2 GiB"), (2254857830, "2.1 GiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert text_of_bytes(count) == text
