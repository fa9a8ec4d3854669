"""Dealing shards, reading what Slurm prints, the end of an allocation. No cluster needed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone_mpi.core.errors import ClusterError, OutputError, UserError
from keystone_mpi.engine import session
from keystone_mpi.slurm import allocation, arrays, walltime
from keystone_mpi.slurm.arrays import DEAL_FORMAT, Deal, Shard, deal, points_of, ranges_of


@given(
    points=st.lists(st.integers(0, 5000), unique=True, max_size=300),
    count=st.integers(1, 12),
    costed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_point_is_in_exactly_one_shard(points: list[int], count: int, costed: bool, seed: int) -> None:
    ordered = np.array(sorted(points), np.int64)
    rng = np.random.default_rng(seed)
    costs = rng.exponential(size=len(ordered)) if costed else None
    if costs is not None:
        costs[rng.random(len(costs)) < 0.3] = np.nan
    shards = deal(ordered, costs, count)
    assert len(shards) == count
    together = np.concatenate([points_of(ranges) for ranges in shards])
    assert sorted(together.tolist()) == ordered.tolist()
    for ranges in shards:
        assert ranges_of(points_of(ranges)) == ranges


def test_cost_is_even_where_durations_are_known() -> None:
    """One parameter decides the cost, and round robin would give it all to one shard."""
    points = np.arange(200)
    costs = np.where(points % 4 == 0, 100.0, 1.0)
    loads = [float(costs[points_of(ranges)].sum()) for ranges in deal(points, costs, 4)]
    assert max(loads) / min(loads) < 1.05
    unbalanced = [float(costs[points_of(ranges)].sum()) for ranges in deal(points, None, 4)]
    assert max(unbalanced) / min(unbalanced) > 10


def test_a_large_sweep_is_dealt_in_few_blocks() -> None:
    shards = deal(np.arange(10**6), None, 10)
    assert all(len(ranges) <= arrays.BLOCKS_PER_SHARD for ranges in shards)
    assert {sum(stop - start for start, stop in ranges) for ranges in shards} <= set(range(98_000, 102_000))


def a_deal(**fields: object) -> Deal:
    values = {"format": DEAL_FORMAT, "sweep": "s", "space": "d", "points": 4, "shards": [[(0, 2)], [(2, 4)]]}
    return Deal(**{**values, **fields})  # type: ignore[arg-type]


def test_whoever_deals_first_decides(tmp_path: Path) -> None:
    path = tmp_path / "s.deal-of-2.json"
    assert arrays.read_deal(path) is None
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda n: arrays.write_deal(path, a_deal(sweep=str(n))), range(16)))
    assert len({deal.sweep for deal in held}) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    path.write_text("{")
    with pytest.raises(OutputError, match="no deal"):
        arrays.read_deal(path)
    path.unlink()
    arrays.write_deal(path, a_deal())
    path.write_text(path.read_text().replace('"format":1', '"format":99'))
    with pytest.raises(OutputError, match="format 99"):
        arrays.read_deal(path)


def test_names_of_shards(tmp_path: Path) -> None:
    output = tmp_path / "p.h5"
    assert arrays.shard_path(output, Shard(3, 10)).name == "p.shard-3-of-10.h5"
    for name in ("p.shard-2-of-3.h5", "p.shard-1-of-3.h5.journal", "q.shard-1-of-3.h5", "p.shard-x-of-3.h5"):
        (tmp_path / name).touch()
    found = arrays.find_shards(output)
    assert found == {3: {1: tmp_path / "p.shard-1-of-3.h5", 2: tmp_path / "p.shard-2-of-3.h5"}}
    assert arrays.parse_shard(" 3/10") == Shard(3, 10)
    for bad in ("0/3", "4/3", "1", "a/b", "1/2/3", ""):
        with pytest.raises(UserError, match="i/n"):
            arrays.parse_shard(bad)


# --- the end of the allocation ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200.0),
        ("1h30m", 5400.0),
        ("90min", 5400.0),
        ("2d", 172800.0),
        ("02:00:00", 7200.0),
        ("1-12:00:00", 129600.0),
        ("1-12", 129600.0),
        ("2:30", 150.0),
        ("45s", 45.0),
    ],
)
def test_time_limits(text: str, seconds: float) -> None:
    assert walltime.parse_limit(text, "--time") == seconds
    assert walltime.parse_limit(walltime.slurm_time(seconds), "--time") == seconds


def test_a_plain_number_is_ambiguous_for_slurm_only() -> None:
    assert walltime.parse_limit("120", "--walltime", plain_seconds=True) == 120.0
    with pytest.raises(UserError, match="120min or 120s"):
        walltime.parse_limit("120", "--time")
    for bad in ("", "soon", "1h30", "0s", "1:2:3:4", "-1"):
        with pytest.raises(UserError, match="--time"):
            walltime.parse_limit(bad, "--time")


@given(left_s=st.floats(0, 1e7), grace_s=st.floats(0, 60))
def test_stops_are_in_order_and_leave_room(left_s: float, grace_s: float) -> None:
    stops = walltime.plan_stops(left_s, grace_s)
    assert 0.0 <= stops.drain_s <= stops.stop_s <= left_s
    assert stops.stop_s >= 0.66 * left_s
    if left_s > 600 and grace_s < 10:
        assert left_s - stops.stop_s >= grace_s + walltime.SHORTEST_STOP_MARGIN_S


def test_the_warning_comes_within_the_job() -> None:
    assert walltime.warning_s(60.0) in (0, 30)
    assert walltime.warning_s(40.0) == 0
    assert walltime.warning_s(3600.0) == 180
    assert walltime.warning_s(1e6) == 300


JOB_LINE = (
    "JobId=12 JobName=demo UserId=root(0) JobState=RUNNING Reason=None Requeue=1 Restarts=2 BatchFlag=1 "
    "RunTime=00:00:01 TimeLimit=00:10:00 EndTime=2026-11-24T06:10:00 Comment=a b\n"
)


def test_what_slurm_says_of_a_job() -> None:
    facts = allocation.parse_job(JOB_LINE)
    assert facts is not None
    assert (facts.state, facts.restarts) == ("RUNNING", 2)
    assert facts.ends_at == allocation.parse_time("2026-11-24T06:10:00")
    unlimited = allocation.parse_job(JOB_LINE.replace("TimeLimit=00:10:00", "TimeLimit=UNLIMITED"))
    assert unlimited is not None
    assert unlimited.ends_at is None
    assert allocation.parse_job("") is None
    assert allocation.parse_time("Unknown") is None
    assert allocation.parse_max_array_size("MaxArraySize            = 4001\n") == 4001
    assert allocation.parse_max_array_size("") == 1001


def test_without_slurm_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert allocation.end_of_allocation({}) is None
    assert allocation.end_of_allocation({"SLURM_JOB_ID": "1"}) is None
    assert not allocation.job_is_gone("12@alpha")
    assert not allocation.job_is_gone("12.server")
    assert allocation.max_array_size() == 1001


def test_a_job_that_was_restarted_is_gone_in_its_earlier_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(allocation, "ask", slurm_of("alpha", JOB_LINE))
    assert allocation.job_is_gone("12@alpha")
    assert allocation.job_is_gone("12/1@alpha")
    assert not allocation.job_is_gone("12/2@alpha")
    monkeypatch.setattr(allocation, "ask", slurm_of("alpha", JOB_LINE.replace("RUNNING", "NODE_FAIL")))
    assert allocation.job_is_gone("12/2@alpha")


def slurm_of(cluster: str, job_line: str) -> Callable[..., str]:
    """A cluster of that name; no job line: it knows no such job."""

    def ask(*command: str, **options: float) -> str:
        if command[1:3] == ("show", "config"):
            return f"ClusterName             = {cluster}\nMaxArraySize = 1001\n"
        if not job_line:
            raise ClusterError("scontrol: slurm_load_jobs error: Invalid job id specified")
        return job_line

    return ask


def test_a_job_of_another_cluster_is_not_called_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(allocation, "ask", slurm_of("alpha", ""))
    assert allocation.job_is_gone("12@alpha")
    assert allocation.job_is_gone("12/3@Alpha")
    assert not allocation.job_is_gone("12@beta")
    assert not allocation.job_is_gone("12"), "of no known cluster"


def test_a_job_is_named_with_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "alpha")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert session.job_name() == "12@alpha"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert session.job_name() == "12/2@alpha"
    monkeypatch.delenv("SLURM_CLUSTER_NAME")
    assert session.job_name() == "12/2"
