"""Ten million points: numbered at once, and never in memory."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from keystone_mpi.sweeps.load import load_sweep, sweep_from_spec

GENEROUS_S = 10.0
"""Measured: 0.01 to 0.3 s; a loaded machine gets its time."""
SWEEPS = {
    "grid": "[params]\na = { linspace = [0.5, 2, 216] }\nb = { range = [0, 216, 1] }\n"
    "c = { range = [1, 217, 1] }\n",
    "one axis": "[params]\na = { range = [0, 10000000, 1] }\nb = [1]\nc = [1]\n",
    "random": "[sample]\nn = 10000000\n"
    "ranges = { a = [0, 1], b = { low = 1e-3, high = 1, scale = 'log' }, c = [1, 2] }\n",
}


def write(folder: Path, points: str, extra: str) -> Path:
    path = folder / "s.toml"
    path.write_text(f"[sweep]\ncommand = ['true', '{{a}}', '{{b}}', '{{c}}']\n{extra}{points}")
    return path


@pytest.mark.parametrize("points", SWEEPS.values(), ids=SWEEPS)
def test_ten_million_points_are_never_expanded(tmp_path: Path, points: str) -> None:
    path = write(tmp_path, points, "")
    tracemalloc.start()
    try:
        started = time.perf_counter()
        sweep = load_sweep(path, start_dir=tmp_path)
        count = len(sweep)
        assert count >= 10**7
        sweep.request(0)
        middle = sweep.space.params(count // 2)
        assert sweep.space.params(count - 1) != middle
        took_s = time.perf_counter() - started
        for k in range(0, count, count // 300):
            sweep.seed(k)
        assert len(sweep.space.columns(count - 1000, count)["a"]) == 1000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took_s < GENEROUS_S
    assert peak_bytes < 10 * 2**20
    assert len(sweep.spec) < 2000


def test_a_condition_over_ten_million_points_starts_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, SWEEPS["grid"], "where = 'a * b < 100'\nderived = { h = '1 / c' }\n")
    started = time.perf_counter()
    sweep = load_sweep(path, start_dir=tmp_path)
    count = len(sweep)
    assert 10**6 < count < 10**7
    sweep.request(0)
    assert time.perf_counter() - started < GENEROUS_S
    tracemalloc.start()
    try:
        stored = sweep_from_spec(sweep.spec)
        assert len(stored) == count
        for k in range(0, count, count // 200):
            params = stored.space.params(k)
            assert params["h"] == 1 / int(params["c"])
            assert float(params["a"]) * int(params["b"]) < 100
            assert stored.space.index_of(params) == k
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 40 * 2**20


def test_points_in_order_are_cheap(tmp_path: Path) -> None:
    sweep = load_sweep(
        write(tmp_path, SWEEPS["grid"], "where = 'a * b < 100'\nderived = { h = '1 / c' }\n"),
        start_dir=tmp_path,
    )
    started = time.perf_counter()
    for k in range(20_000):
        sweep.space.params(k)
    assert (time.perf_counter() - started) / 20_000 < 100e-6  # measured: 2 us
