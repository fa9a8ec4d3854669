"""From a sweep and what is done of it to the part that one array element runs.

Rule: what NAME.h5 holds already is not dealt again. A deal holds for as long
as its file is there; a sweep that has changed since is refused, not dealt anew
over results that are not merged yet.

    sweep + NAME.h5 --pending points, expected durations--> deal --> NAME.deal-of-N.json --> Part
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keystone_mpi.core.errors import OutputError
from keystone_mpi.engine.session import SessionOptions, plan_only
from keystone_mpi.slurm.arrays import (
    DEAL_FORMAT,
    Deal,
    Ranges,
    Shard,
    deal,
    deal_path,
    points_of,
    read_deal,
    write_deal,
)

if TYPE_CHECKING:
    from keystone_mpi.sweeps.sweep import Sweep

COSTED_POINTS = 200_000
"""Beyond so many points their expected durations are not asked for one by one."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one element runs."""

    points: Ranges
    whole_rows: dict[int, int]
    """Point -> row in the file of the whole sweep, where that is not the point itself."""


def make_deal(sweep: Sweep, options: SessionOptions, count: int) -> Deal:
    """Deal what is still to run of a sweep; writes nothing.

    Parameters
    ----------
    sweep : Sweep
    options : SessionOptions
        Of the whole: `output_path` is NAME.h5, which need not exist.
    count : int
        Elements of the array.
    """
    plan = plan_only(sweep, options)
    rows = np.concatenate([*plan.pending_rows(), np.empty(0, np.int64)])
    points = np.fromiter((plan.point(int(row)) for row in rows), np.int64, len(rows))
    costs = None
    if len(rows) <= COSTED_POINTS and plan.base is not None:
        costs = np.fromiter((plan.request(int(row)).expected_s for row in rows), np.float64, len(rows))
        costs[costs <= 0] = np.nan
    order = np.argsort(points, kind="stable")
    rows, points = rows[order], points[order]
    shards = deal(points, None if costs is None else costs[order], count)
    rows_of: list[list[int]] = []
    if not np.array_equal(rows, points):
        rows_of = [rows[np.searchsorted(points, points_of(ranges))].tolist() for ranges in shards]
    return Deal(
        format=DEAL_FORMAT,
        sweep=sweep.name,
        space=sweep.space_digest,
        points=len(sweep.space),
        shards=shards,
        rows=rows_of,
    )


def hold_deal(sweep: Sweep, options: SessionOptions, count: int, *, write: bool = True) -> Deal:
    """Return the deal that holds for an array of `count` elements, making it if nobody has.

    Raises
    ------
    OutputError
        The sweep has changed since it was dealt.
    """
    path = deal_path(options.output_path, count)
    found = read_deal(path)
    if found is None:
        made = make_deal(sweep, options, count)
        found = write_deal(path, made) if write else made
    if (found.space, found.points, len(found.shards)) != (sweep.space_digest, len(sweep.space), count):
        raise OutputError(
            f"{path}: the sweep has changed since it was dealt to {count} shards; "
            f"`keystone-mpi merge {_name(options.output_path)} --clean` gathers what they have and clears "
            "the way for a new array, which then runs only what is missing"
        )
    return found


def part_of(sweep: Sweep, options: SessionOptions, shard: Shard, *, write: bool = True) -> Part:
    """Return what element `shard` runs; see `hold_deal`."""
    dealt = hold_deal(sweep, options, shard.count, write=write)
    points = dealt.shards[shard.number - 1]
    whole_rows: dict[int, int] = {}
    if dealt.rows:
        pairs = zip(points_of(points).tolist(), dealt.rows[shard.number - 1], strict=True)
        whole_rows = dict(pairs)
    return Part(points, whole_rows)


def _name(path: Path) -> str:
    return path.name if path.parent == Path.cwd() else str(path)
