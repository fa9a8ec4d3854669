"""Fixtures of the execution tests: a launcher client that must leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from execution_support import Bench

from keystone_mpi.tools.recipe import Recipe


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Make launcher clients; at the end each is closed and nothing of its run may be left."""
    made: list[Bench] = []

    def make(*recipes: Recipe, worker: int = 7) -> Bench:
        bench = Bench(tmp_path, recipes or (Recipe(),), worker)
        made.append(bench)
        return bench

    yield make
    for bench in made:
        assert bench.close() == 0
        assert bench.tagged() == []
        assert not Path(bench.client.scratch_path).exists()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
