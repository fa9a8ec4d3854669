"""Numbers, times and paths as people read them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from keystone_mpi.cli import wording


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"), (0.0999, "0.1 s"), (1.25, "1.2 s"), (9.96, "10 s"), (59.6, "60 s"),
        (99.6, "2 min"),
        (3600, "60 min"), (9000, "2 h 30 min"), (200_000, "2 d 7 h"), (math.nan, "-"), (math.inf, "-"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1 << 20, "1 MiB"),
        (150 << 30, "150 GiB"),
        (1 << 41, "2 TiB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert wording.size(size_bytes) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(1234.5, "1,234/s"), (45.25, "45.2/s"), (0.5, "30/min"), (0.001, "3.6/h"), (0, ""), (math.nan, "")],
)
def test_rates(per_second: float, text: str) -> None:
    assert wording.rate(per_second) == text


def test_paths_are_said_as_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert wording.path(tmp_path / "a" / "b.h5") == "a/b.h5"
    assert wording.path("/elsewhere/b.h5") == "/elsewhere/b.h5"


def test_commands_can_be_pasted() -> None:
    assert wording.command("keystone-mpi", "show", "my runs/a.h5", 3) == "keystone-mpi show 'my runs/a.h5' 3"
    assert wording.clock(3661) == "1:01:01"
    assert wording.count(1, "task") == "1 task"
    assert wording.local_time(math.nan) == "-"
