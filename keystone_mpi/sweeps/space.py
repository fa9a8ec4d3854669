"""Space: the points of a sweep, numbered, computed and never expanded.

Rule: point k is a function of k.  The grid's parameters come first in file
order (the first varies slowest), then the zip, then the table, then the
sample; the replicate varies fastest.  This order does not depend on where the
tables stand in the file.

    k --(drop the replicate)--> rank --(where: counts per chunk)--> candidate
    candidate --(mixed radix)--> one row per block --> values --(derived)--> params

A candidate is a combination before ``where``.  ``where`` and ``derived`` are
evaluated by numpy over chunks of candidates, always the same chunks, so one
point and a whole column of points have the same bits.  How many candidates of
a chunk pass is counted once and kept (8 bytes a chunk); a few evaluated
chunks are held.  Not thread-safe: one thread asks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.axes import make_axis
from keystone_mpi.sweeps.blocks import AxisBlock, Block, RowsBlock, SampleBlock
from keystone_mpi.sweeps.expressions import Expression, PointError, compile_expression
from keystone_mpi.sweeps.spec import SpaceSpec
from keystone_mpi.sweeps.values import DTYPES, REPLICATE, Array, Kind, Value, describe

CHUNK = 16384
"""Candidates that are evaluated together; fits the processor's cache."""
CHUNKS_HELD = 8
MOST_CANDIDATES = 2**40
MOST_FILTERED = 2**32
"""``where`` looks at every candidate once; beyond this it would take minutes."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One evaluated chunk of candidates."""

    start: int
    passing: Array | None
    """Offsets that `where` lets through, in order; None: all."""
    derived: dict[str, Array]
    """Derived columns of every candidate that passes, in the order of `passing`."""


class Space:
    """The points of a sweep.

    Parameters
    ----------
    spec : SpaceSpec
        What the sweep file says.
    source_path : Path, optional
        The sweep file, for messages.

    Attributes
    ----------
    names : tuple of str
        Columns in order: grid, zip, table, sample, derived, replicate.
    derived_names : tuple of str
        Those that are computed from others; they are no part of a task's identity.
    repeat : int
        Replicates per point.
    """

    def __init__(self, spec: SpaceSpec, source_path: Path | None = None) -> None:
        self._path = source_path
        blocks: list[Block] = [AxisBlock(make_axis(axis)) for axis in spec.params]
        blocks += [RowsBlock(rows) for rows in spec.rows]
        if spec.sample is not None:
            blocks.append(SampleBlock(spec.sample))
        self.blocks = tuple(blocks)
        self.repeat = spec.repeat
        self._kinds: dict[str, Kind] = {}
        for block in blocks:
            self._kinds.update(zip(block.names, block.kinds, strict=True))
        self._base_names = tuple(self._kinds)
        self._derived: list[tuple[str, Expression]] = []
        for name, text in spec.derived.items():
            expression = compile_expression(text, self._kinds, f"sweep.derived.{name}")
            self._derived.append((name, expression))
            self._kinds[name] = expression.kind
        self.derived_names = tuple(name for name, _ in self._derived)
        self._where: Expression | None = None
        if spec.where:
            self._where = compile_expression(spec.where, self._kinds, "sweep.where")
            if self._where.kind != "bool":
                raise SweepFileError(
                    None,
                    "sweep.where",
                    f"{describe(spec.where)} is no condition",
                    "compare something: kappa < 2",
                )
        if spec.repeat > 1:
            self._kinds[REPLICATE] = "int"
        self.names = tuple(self._kinds)
        self._needed_by_where = self._closure(self._where.names) if self._where else frozenset[str]()
        self._needed_by_derived = self._closure(frozenset(self.derived_names))
        self._lay_out()

    def _closure(self, names: frozenset[str]) -> frozenset[str]:
        """Add what the derived ones among `names` are computed from."""
        wanted = set(names)
        for name, expression in reversed(self._derived):
            if name in wanted:
                wanted |= expression.names
        return frozenset(wanted)

    def _lay_out(self) -> None:
        stride = 1
        radix: list[tuple[Block, int, int]] = []
        for block in reversed(self.blocks):
            radix.append((block, stride, block.size))
            stride *= block.size
        self.candidates = stride
        """Combinations before `where` and without replicates."""
        self._radix = tuple(reversed(radix))
        if stride * self.repeat > MOST_CANDIDATES:
            raise SweepFileError(
                None,
                "params",
                f"{stride * self.repeat:,} combinations; at most {MOST_CANDIDATES:,} are allowed",
            )
        if self._where is not None and stride > MOST_FILTERED:
            raise SweepFileError(
                None,
                "sweep.where",
                f"{stride:,} combinations to look at; with where at most {MOST_FILTERED:,} are allowed",
            )
        self._chunk_count = -(-stride // CHUNK)
        self._passed_before: list[int] = [0]
        """Entry c: candidates that pass in the chunks before c; grows as chunks are counted."""
        self._held: OrderedDict[int, _Chunk] = OrderedDict()

    # -- asking ---------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of points, after ``where`` and with replicates."""
        if self._where is None:
            return self.candidates * self.repeat
        self._count_chunks(self._chunk_count)
        return self._passed_before[-1] * self.repeat

    def is_empty(self) -> bool:
        """Tell whether ``where`` drops every point; looks no further than the first that passes."""
        if self._where is None:
            return self.candidates == 0
        while self._passed_before[-1] == 0 and len(self._passed_before) <= self._chunk_count:
            self._count_chunks(len(self._passed_before))
        return self._passed_before[-1] == 0

    def kinds(self) -> dict[str, Kind]:
        """Return name -> kind of every column, in column order."""
        return dict(self._kinds)

    def params(self, k: int) -> dict[str, Value]:
        """Return the parameters of point `k`, a new dict in column order."""
        if k < 0:
            raise IndexError(f"point {k} of a sweep")
        rank, replicate = divmod(k, self.repeat)
        chunk: _Chunk | None = None
        row = 0
        if self._where is None:
            candidate = rank
            if candidate >= self.candidates:
                raise IndexError(f"point {k} of a sweep of {len(self)}")
            if self._derived:
                number, row = divmod(candidate, CHUNK)
                chunk = self._chunk(number)
        else:
            number = self._chunk_of_rank(rank)
            if number is None:
                raise IndexError(f"point {k} of a sweep of {len(self)}")
            chunk = self._chunk(number)
            row = rank - self._passed_before[number]
            assert chunk.passing is not None
            candidate = chunk.start + chunk.passing.item(row)
        params: dict[str, Value] = {}
        for block, stride, size in self._radix:
            block.fill(params, candidate // stride % size)
        if chunk is not None:
            for name, column in chunk.derived.items():
                params[name] = column.item(row)
        if self.repeat > 1:
            params[REPLICATE] = replicate
        return params

    def columns(self, start: int, stop: int) -> dict[str, Array]:
        """Return the parameters of points ``start <= k < stop`` as numpy columns.

        Text columns are object arrays of str, booleans are bool arrays.
        """
        if not 0 <= start <= stop:
            raise IndexError(f"points {start}..{stop} of a sweep")
        if stop > start and stop > len(self):
            raise IndexError(f"points {start}..{stop} of a sweep of {len(self)}")
        points = np.arange(start, stop, dtype=np.int64)
        ranks = points // self.repeat
        candidates, derived = self._select(ranks)
        columns = self._take(candidates, frozenset(self._base_names))
        columns = {name: columns[name] for name in self._base_names}
        columns.update(derived)
        if self.repeat > 1:
            columns[REPLICATE] = points - ranks * self.repeat
        return columns

    def index_of(self, params: Mapping[str, Value]) -> int | None:
        """Return the point with these parameters, None when the sweep has none.

        Derived values are ignored; a missing replicate is replicate 0; any
        other missing or additional name means another task.
        """
        given = {name: value for name, value in params.items() if name not in self.derived_names}
        replicate = given.pop(REPLICATE, 0) if REPLICATE not in self._base_names else 0
        if (
            not isinstance(replicate, int)
            or not 0 <= replicate < self.repeat
            or set(given) != set(self._base_names)
        ):
            return None
        candidate = 0
        for block, stride, _ in self._radix:
            row = block.find(given)
            if row is None:
                return None
            candidate += row * stride
        rank = self._ranks(np.array([candidate], dtype=np.int64)).item(0)
        return None if rank < 0 else rank * self.repeat + replicate

    def indices_of(self, columns: Mapping[str, Array], *, ignore: frozenset[str] = frozenset()) -> Array:
        """Return the point of each row of many parameter sets, -1 where there is none.

        Parameters
        ----------
        columns : mapping
            Name -> column; all of one length.
        ignore : frozenset of str
            Columns that are no part of the identity, such as the derived ones of an earlier sweep.

        Returns
        -------
        numpy array of int64
        """
        names = {name for name in columns if name not in ignore and name not in self.derived_names}
        count = len(next(iter(columns.values()))) if columns else 1
        replicates = np.zeros(count, dtype=np.int64)
        if REPLICATE in names and REPLICATE not in self._base_names:
            names.discard(REPLICATE)
            replicates = columns[REPLICATE].astype(np.int64)
        if names != set(self._base_names):
            return np.full(count, -1, dtype=np.int64)
        candidates = np.zeros(count, dtype=np.int64)
        good = (replicates >= 0) & (replicates < self.repeat)
        for block, stride, _ in self._radix:
            rows = block.find_many(columns, count)
            good &= rows >= 0
            candidates += rows * stride
        result = np.full(count, -1, dtype=np.int64)
        ranks = self._ranks(candidates[good])
        result[good] = np.where(ranks < 0, -1, ranks * self.repeat + replicates[good])
        return result

    # -- candidates -------------------------------------------------------------

    def _take(self, candidates: Array, wanted: frozenset[str]) -> dict[str, Array]:
        """Return base columns of candidates."""
        columns: dict[str, Array] = {}
        for block, stride, size in self._radix:
            if wanted.isdisjoint(block.names):
                continue
            rows = candidates if stride == 1 else candidates // stride
            if stride * size < self.candidates:
                rows = rows % size
            columns.update(block.take(rows, wanted))
        return columns

    def _select(self, ranks: Array) -> tuple[Array, dict[str, Array]]:
        """Return the candidates of ascending ranks, and their derived columns."""
        if self._where is None and not self._derived:
            return ranks, {}
        if not len(ranks):
            return ranks, {name: np.empty(0, dtype=DTYPES[self._kinds[name]]) for name in self.derived_names}
        candidates: list[Array] = []
        derived: dict[str, list[Array]] = {name: [] for name in self.derived_names}
        if self._where is None:
            numbers = ranks // CHUNK
        else:
            self._chunk_of_rank(int(ranks[-1]))
            numbers = np.searchsorted(np.array(self._passed_before), ranks, side="right") - 1
        for number in np.unique(numbers).tolist():
            chunk = self._chunk(number)
            here = ranks[numbers == number]
            if chunk.passing is None:
                rows = here - chunk.start
                candidates.append(here)
            else:
                rows = here - self._passed_before[number]
                candidates.append(chunk.start + chunk.passing[rows])
            for name, parts in derived.items():
                parts.append(chunk.derived[name][rows])
        return np.concatenate(candidates), {name: np.concatenate(parts) for name, parts in derived.items()}

    def _ranks(self, candidates: Array) -> Array:
        """Return the rank of each candidate, -1 where `where` drops it."""
        if self._where is None or not len(candidates):
            return candidates
        result = np.full(len(candidates), -1, dtype=np.int64)
        numbers = candidates // CHUNK
        # Sorted by chunk, so that each chunk is evaluated once.
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            passing = self._chunk(number).passing
            assert passing is not None
            self._count_chunks(number + 1)
            offsets = candidates[here] - number * CHUNK
            places = np.searchsorted(passing, offsets)
            found = places < len(passing)
            found[found] = passing[places[found]] == offsets[found]
            result[here[found]] = self._passed_before[number] + places[found]
        return result

    # -- chunks ------------------------------------------------------------------

    def _bounds(self, number: int) -> tuple[int, int]:
        return number * CHUNK, min((number + 1) * CHUNK, self.candidates)

    def _count_chunks(self, upto: int) -> None:
        """Count what passes in the chunks before `upto`."""
        before = self._passed_before
        while len(before) <= upto:
            number = len(before) - 1
            held = self._held.get(number)
            if held is not None and held.passing is not None:
                count = len(held.passing)
            else:
                start, stop = self._bounds(number)
                columns = self._evaluated(start, stop, self._needed_by_where)
                count = int(np.count_nonzero(self._mask(columns, start, stop)))
            before.append(before[-1] + count)

    def _chunk_of_rank(self, rank: int) -> int | None:
        """Return the chunk that holds the candidate of this rank."""
        before = self._passed_before
        while before[-1] <= rank:
            if len(before) > self._chunk_count:
                return None
            self._count_chunks(len(before))
        return bisect_right(before, rank) - 1

    def _chunk(self, number: int) -> _Chunk:
        held = self._held.get(number)
        if held is not None:
            return held
        start, stop = self._bounds(number)
        passing: Array | None = None
        if self._where is not None:
            columns = self._evaluated(start, stop, self._needed_by_where)
            passing = np.flatnonzero(self._mask(columns, start, stop))
        derived: dict[str, Array] = {}
        if self._derived:
            # Only points that are in the sweep: `where` may keep a derived value from failing.
            candidates = np.arange(start, stop, dtype=np.int64) if passing is None else start + passing
            columns = self._derive(candidates, self._needed_by_derived)
            derived = {name: columns[name] for name in self.derived_names}
        chunk = _Chunk(start, passing, derived)
        if len(self._held) >= CHUNKS_HELD:
            self._held.popitem(last=False)
        self._held[number] = chunk
        return chunk

    def _evaluated(self, start: int, stop: int, wanted: frozenset[str]) -> dict[str, Array]:
        return self._derive(np.arange(start, stop, dtype=np.int64), wanted)

    def _derive(self, candidates: Array, wanted: frozenset[str]) -> dict[str, Array]:
        """Return the wanted columns of candidates, derived ones included."""
        columns = self._take(candidates, wanted)
        for name, expression in self._derived:
            if name in wanted:
                columns[name] = self._evaluate(expression, columns, candidates, f"sweep.derived.{name}")
        return columns

    def _mask(self, columns: dict[str, Array], start: int, stop: int) -> Array:
        assert self._where is not None
        candidates = np.arange(start, stop, dtype=np.int64)
        return self._evaluate(self._where, columns, candidates, "sweep.where")

    def _evaluate(
        self, expression: Expression, columns: dict[str, Array], candidates: Array, where: str
    ) -> Array:
        try:
            return expression.evaluate(columns, len(candidates))
        except PointError as error:
            values = ", ".join(
                f"{name} = {describe(columns[name][error.position].item() if columns[name].dtype.kind != 'O' else columns[name][error.position])}"
                for name in self._kinds
                if name in expression.names
            )
            raise SweepFileError(
                self._path,
                where,
                f"{describe(expression.text)} is {error.problem} at {values or 'every point'}",
                "guard it: x != 0 and 1 / x < 5" if where == "sweep.where" else "drop such points with where",
            ) from None
