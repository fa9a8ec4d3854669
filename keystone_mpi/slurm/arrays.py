"""Shards: which part of a sweep each element of a job array runs.

Rule: one deal per array, written once by whoever comes first and read by all,
so that elements that start at different times, or again, agree. Every point is
in exactly one shard. Where durations are known each shard gets the same amount
of work; elsewhere points are dealt round robin, in blocks when there are many.

    pending points, costs --deal--> shards --write_deal--> NAME.deal-of-N.json --read--> element i of N
    NAME.h5 + i/N --shard_path--> NAME.shard-i-of-N.h5
"""

from __future__ import annotations

import heapq
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from keystone_mpi.core.errors import OutputError, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCKS_PER_SHARD = 64
COSTED_BLOCKS = 65536
DEAL_FORMAT = 1

Ranges = list[tuple[int, int]]
"""Half-open ranges of points, ascending."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Element `number` (from 1) of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class Deal(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs what."""

    format: int
    sweep: str
    """Name of the sweep."""
    space: str
    """`Sweep.space_digest` at the time."""
    points: int
    """Points of the sweep at the time."""
    shards: list[Ranges]
    """Points of each."""
    rows: list[list[int]] = []
    """For each shard, the rows of its points in the file of the whole; empty: row k is point k."""


def parse_shard(text: str) -> Shard:
    """Read ``3/10``.

    Raises
    ------
    UserError
        It is no such thing.
    """
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if found is None or not 1 <= int(found.group(1)) <= int(found.group(2)):
        raise UserError(
            f"--shard: found {text!r}; allowed is i/n with i from 1 to n, such as 3/10 "
            '(in a job array: --shard "$SLURM_ARRAY_TASK_ID/10")'
        )
    return Shard(int(found.group(1)), int(found.group(2)))


def shard_path(output_path: Path, shard: Shard) -> Path:
    """Return the results file of one element."""
    return output_path.with_name(
        f"{output_path.stem}.shard-{shard.number}-of-{shard.count}{output_path.suffix}"
    )


def deal_path(output_path: Path, count: int) -> Path:
    """Return the file that says who runs what."""
    return output_path.with_name(f"{output_path.stem}.deal-of-{count}.json")


def row_in_whole(path: Path, point: int) -> int | None:
    """Return what a shard's task is called in the file of the whole sweep; None: `path` is no shard.

    Parameters
    ----------
    path : Path
        A results file.
    point : int
        The task's point of the sweep.
    """
    found = re.fullmatch(r"(.+)\.shard-(\d+)-of-(\d+)", path.stem)
    if found is None:
        return None
    number, count = int(found.group(2)), int(found.group(3))
    dealt = read_deal(deal_path(path.with_name(f"{found.group(1)}{path.suffix}"), count))
    if dealt is None or not dealt.rows or not 1 <= number <= len(dealt.shards):
        return point
    position = np.flatnonzero(points_of(dealt.shards[number - 1]) == point)
    return dealt.rows[number - 1][int(position[0])] if len(position) else point


def find_shards(output_path: Path) -> dict[int, dict[int, Path]]:
    """Find the shards of a results file: count -> number -> path; one without a file may have a journal."""
    pattern = re.compile(
        re.escape(f"{output_path.stem}.shard-")
        + r"(\d+)-of-(\d+)"
        + re.escape(output_path.suffix)
        + r"(?:\.journal)?"
    )
    found: dict[int, dict[int, Path]] = {}
    for name in os.listdir(output_path.parent):
        match = pattern.fullmatch(name)
        if match is not None:
            shard = Shard(int(match.group(1)), int(match.group(2)))
            found.setdefault(shard.count, {})[shard.number] = shard_path(output_path, shard)
    return {count: dict(sorted(paths.items())) for count, paths in found.items()}


def find_deals(output_path: Path) -> list[int]:
    """Return the sizes of the arrays that were dealt for a results file."""
    pattern = re.compile(re.escape(f"{output_path.stem}.deal-of-") + r"(\d+)\.json")
    matches = (pattern.fullmatch(name) for name in os.listdir(output_path.parent))
    return sorted(int(match.group(1)) for match in matches if match is not None)


def deal(points: NDArray[np.int64], costs: NDArray[np.float64] | None, count: int) -> list[Ranges]:
    """Deal points to `count` shards.

    Parameters
    ----------
    points : array of int64
        Ascending.
    costs : array of float64 or None
        Expected duration of each; NaN where it is not known. None: of none.
    count : int
        Shards; some stay empty when there are fewer points.
    """
    shards: list[list[NDArray[np.int64]]] = [[] for _ in range(count)]
    if costs is None or np.isnan(costs).all():
        size = max(1, -(-len(points) // (count * BLOCKS_PER_SHARD)))
        for number, start in enumerate(range(0, len(points), size)):
            shards[number % count].append(points[start : start + size])
    else:
        known = np.where(np.isnan(costs), np.nanmean(costs), costs)
        size = max(1, -(-len(points) // COSTED_BLOCKS))
        starts = np.arange(0, len(points), size)
        sums = np.add.reduceat(known, starts) if len(points) else np.empty(0)
        # The most expensive first, each to whoever has least.
        loads = [(0.0, number) for number in range(count)]
        for block in np.argsort(-sums, kind="stable").tolist():
            load, number = heapq.heappop(loads)
            start = int(starts[block])
            shards[number].append(points[start : start + size])
            heapq.heappush(loads, (load + float(sums[block]), number))
    return [ranges_of(np.sort(np.concatenate(parts))) if parts else [] for parts in shards]


def ranges_of(points: NDArray[np.int64]) -> Ranges:
    """Write ascending points as half-open ranges."""
    if not len(points):
        return []
    breaks = np.flatnonzero(np.diff(points) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(points, breaks)]


def points_of(ranges: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    """Return the points of ranges."""
    parts = [np.arange(start, stop, dtype=np.int64) for start, stop in ranges]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def read_deal(path: Path) -> Deal | None:
    """Read who runs what; None when nobody dealt yet.

    Raises
    ------
    OutputError
        The file is not ours or was written by a newer version.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(data, type=Deal)
    except msgspec.DecodeError as error:
        raise OutputError(f"{path}: is no deal of a job array ({error}); move it away") from None
    if found.format > DEAL_FORMAT:
        raise OutputError(f"{path}: has format {found.format}; this version reads up to {DEAL_FORMAT}")
    return found


def write_deal(path: Path, dealt: Deal) -> Deal:
    """Write a deal unless somebody has; return the one that holds."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temp, "xb") as file:
            file.write(msgspec.json.encode(dealt))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temp, path)
        except FileExistsError:
            pass
        except OSError:  # no hard links on this file system
            if not path.exists():
                os.replace(temp, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temp.unlink(missing_ok=True)
    found = read_deal(path)
    return dealt if found is None else found
