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
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.deferred_numpy import np
from keystone_mpi.sweeps.axes import make_axis
from keystone_mpi.sweeps.blocks import AxisBlock, Block, RowsBlock, SampleBlock
from keystone_mpi.sweeps.expressions import Expression, PointError, compile_expression
from keystone_mpi.sweeps.spec import SpaceSpec
from keystone_mpi.sweeps.values import DTYPES, REPLICATE, Array, Kind, Value, describe

CHUNK = 16384
"""Candidates that are evaluated together; fits the processor's cache."""
BYTES_HELD = 16 * 2**20
"""Evaluated chunks that are kept; 2 bytes a passing candidate, so random access to 10^7 points stays fast."""
MOST_CANDIDATES = 2**40
MOST_FILTERED = 2**32
"""``where`` looks at every candidate once; beyond this it would take minutes."""


class _Chunk(msgspec.Struct, frozen=True):
    """One evaluated chunk of candidates."""

    start: int
    passing: Array | None
    """Offsets (uint16) that `where` lets through, in order; None: all."""
    derived: dict[str, Array]
    """Derived columns of every candidate that passes, in the order of `passing`."""

    @property
    def size_bytes(self) -> int:
        """Return what the chunk holds."""
        passing = 0 if self.passing is None else self.passing.nbytes
        return 200 + passing + sum(column.nbytes for column in self.derived.values())


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
        blocks: list[Block] = []
        blocks += [AxisBlock(make_axis(axis)) for axis in spec.params]
        blocks += [RowsBlock(rows) for rows in spec.rows]
        if spec.sample is not None:
            blocks.append(SampleBlock(spec.sample))
        self.blocks = tuple(blocks)
        self.repeat = spec.repeat
        self._kinds: dict[str, Kind] = {}
        for block in blocks:
            self._kinds.update(zip(block.names, block.kinds, strict=True))
        self._base_names = tuple(self._kinds)
        self.derived: list[tuple[str, Expression]] = []
        for name, text in spec.derived.items():
            expression = compile_expression(text, self._kinds, f"sweep.derived.{name}")
            self.derived.append((name, expression))
            self._kinds[name] = expression.kind
        self.derived_names = tuple(name for name, _ in self.derived)
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
        for name, expression in reversed(self.derived):
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
        self._held_bytes = 0

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

    def scan(self, wanted: frozenset[str]) -> Iterator[dict[str, Array]]:
        """Yield the wanted columns of all points, chunk by chunk, without replicates.

        Evaluates ``where`` and the wanted derived values at every point, so an
        expression that has no result somewhere is found, and counts the points
        on the way.
        """
        if self.candidates > MOST_FILTERED:
            raise SweepFileError(
                self._path,
                "sweep.derived",
                f"{self.candidates:,} combinations to look at; with derived values at most {MOST_FILTERED:,}",
            )
        needed = self._closure(wanted)
        for number in range(self._chunk_count):
            start, stop = self._bounds(number)
            candidates = np.arange(start, stop, dtype=np.int64)
            if self._where is not None:
                columns = self._derive(candidates, self._needed_by_where)
                candidates = candidates[self._mask(columns, candidates)]
                if len(self._passed_before) == number + 1:
                    self._passed_before.append(self._passed_before[-1] + len(candidates))
            if len(candidates):
                yield self._derive(candidates, needed)

    def kinds(self) -> dict[str, Kind]:
        """Return name -> kind of every column, in column order."""
        return dict(self._kinds)

    def params(self, k: int) -> dict[str, Value]:
        """Return the parameters of point `k`, a new dict in column order."""
        if k < 0:
            raise IndexError(f"point {k} of a sweep")
        rank, replicate = divmod(int(k), self.repeat)  # a numpy integer would leak into the values
        chunk: _Chunk | None = None
        row = 0
        if self._where is None:
            candidate = rank
            if candidate >= self.candidates:
                raise IndexError(f"point {k} of a sweep of {len(self)}")
            if self.derived:
                number, row = divmod(candidate, CHUNK)
                chunk = self._chunk(number)
        else:
            holder = self._chunk_of_rank(rank)
            if holder is None:
                raise IndexError(f"point {k} of a sweep of {len(self)}")
            chunk = self._chunk(holder)
            row = rank - self._passed_before[holder]
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
        replicate: Value = 0
        if REPLICATE in self._base_names:
            given.setdefault(REPLICATE, 0)
        else:
            replicate = given.pop(REPLICATE, 0)
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
        elif REPLICATE in self._base_names and REPLICATE not in names:
            columns = {**columns, REPLICATE: replicates}
            names.add(REPLICATE)
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
        if self._where is None and not self.derived:
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
                candidates.append(np.int64(chunk.start) + chunk.passing[rows])
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
            offsets = (candidates[here] - number * CHUNK).astype(np.uint16)
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
                candidates = np.arange(start, stop, dtype=np.int64)
                columns = self._derive(candidates, self._needed_by_where)
                count = int(np.count_nonzero(self._mask(columns, candidates)))
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
        candidates = np.arange(start, stop, dtype=np.int64)
        passing: Array | None = None
        if self._where is not None:
            columns = self._derive(candidates, self._needed_by_where)
            offsets = np.flatnonzero(self._mask(columns, candidates))
            candidates = start + offsets
            passing = offsets.astype(np.uint16)
        derived: dict[str, Array] = {}
        if self.derived:
            # Only points that are in the sweep: `where` may keep a derived value from failing.
            columns = self._derive(candidates, self._needed_by_derived)
            derived = {name: columns[name] for name in self.derived_names}
        chunk = _Chunk(start, passing, derived)
        self._held[number] = chunk
        self._held_bytes += chunk.size_bytes
        while self._held_bytes > BYTES_HELD and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._held_bytes -= oldest.size_bytes
        return chunk

    def _derive(self, candidates: Array, wanted: frozenset[str]) -> dict[str, Array]:
        """Return the wanted columns of candidates, derived ones included."""
        columns = self._take(candidates, wanted)
        for name, expression in self.derived:
            if name in wanted:
                columns[name] = self._evaluate(expression, columns, candidates, f"sweep.derived.{name}")
        return columns

    def _mask(self, columns: dict[str, Array], candidates: Array) -> Array:
        assert self._where is not None
        return self._evaluate(self._where, columns, candidates, "sweep.where")

    def _evaluate(
        self, expression: Expression, columns: dict[str, Array], candidates: Array, where: str
    ) -> Array:
        try:
            return expression.evaluate(columns, len(candidates))
        except PointError as error:
            values = ", ".join(
                f"{name} = {describe(columns[name][error.position : error.position + 1].tolist()[0])}"
                for name in self._kinds
                if name in expression.names
            )
            raise SweepFileError(
                self._path,
                where,
                f"{describe(expression.text)}: {error.problem}, at {values or 'every point'}",
                "" if "too large" in error.problem else "a condition guards it: x != 0 and 1 / x < 5",
            ) from None
