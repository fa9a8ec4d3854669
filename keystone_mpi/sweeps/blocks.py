"""Blocks: the factors of a space, crossed with each other, each with its rows.

Rule: a block knows row i both ways.  A grid parameter is a block of its own,
the columns of a zip or a table are one block, a sample is one block.

    AxisBlock   one axis
    RowsBlock   columns that advance together
    SampleBlock drawn points, computed chunk by chunk and never all held
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.deferred_numpy import np
from keystone_mpi.sweeps.axes import Axis
from keystone_mpi.sweeps.spec import RowsSpec, SampleSpec
from keystone_mpi.sweeps.values import LARGEST_INT, Array, Kind, Value, to_array

SAMPLE_CHUNK = 4096
_CHUNKS_HELD = 8


class Block(Protocol):
    """One factor of the product."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    size: int

    def fill(self, params: dict[str, Value], row: int) -> None:
        """Put the values of one row into `params`."""

    def take(self, rows: Array, wanted: frozenset[str]) -> dict[str, Array]:
        """Return the wanted columns of many rows."""

    def find(self, params: Mapping[str, Value]) -> int | None:
        """Return the row with these values."""

    def find_many(self, columns: Mapping[str, Array], count: int) -> Array:
        """Return the row of each of `count` value sets, -1 where there is none."""


def fits(kind: Kind, value: object) -> bool:
    """Tell whether a value can be in a column of this kind: numbers compare with numbers only."""
    match kind:
        case "bool":
            return isinstance(value, bool)
        case "str":
            return isinstance(value, str)
        case "int" | "float":
            return isinstance(value, float) or (
                isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT
            )


class AxisBlock:
    """A grid parameter."""

    def __init__(self, axis: Axis) -> None:
        self.names: tuple[str, ...] = (axis.name,)
        self.kinds: tuple[Kind, ...] = (axis.kind,)
        self.size = axis.size
        self._axis = axis
        self._name = axis.name
        self._value = axis.value

    def fill(self, params: dict[str, Value], row: int) -> None:
        params[self._name] = self._value(row)

    def take(self, rows: Array, wanted: frozenset[str]) -> dict[str, Array]:
        return {self._name: self._axis.take(rows)} if self._name in wanted else {}

    def find(self, params: Mapping[str, Value]) -> int | None:
        value = params[self._name]
        if not fits(self.kinds[0], value) or (isinstance(value, float) and not math.isfinite(value)):
            return None
        return self._axis.find(value)

    def find_many(self, columns: Mapping[str, Array], count: int) -> Array:
        column = columns[self._name]
        distinct, inverse = np.unique(column, return_inverse=True)
        rows = [self.find({self._name: value}) for value in distinct.tolist()]
        found = np.array([-1 if row is None else row for row in rows], dtype=np.int64)
        result: Array = found[inverse.reshape(-1)] if count else found
        return result


class RowIndex:
    """Finds rows by their values: 16 bytes a row, hashes checked against the rows themselves."""

    def __init__(self, names: Sequence[str], size: int, take: Callable[[Array], dict[str, Array]]) -> None:
        self._names = tuple(names)
        self._take = take
        rows = np.arange(size, dtype=np.int64)
        hashes = np.concatenate(
            [self._hash(take(rows[start : start + 65536])) for start in range(0, size, 65536)]
        )
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def _hash(self, columns: Mapping[str, Array]) -> Array:
        total: Array | None = None
        for name in self._names:
            column = columns[name]
            if column.dtype.kind == "O":
                bits = np.fromiter((hash(text) for text in column), dtype=np.int64, count=len(column)).view(
                    np.uint64
                )
            else:
                bits = (column.astype(np.float64) + 0.0).view(np.uint64)
            # A multiply-xorshift mix; order-dependent, so (1, 2) and (2, 1) differ.
            mixed = bits if total is None else bits ^ (total * np.uint64(0x9E3779B97F4A7C15))
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            total = mixed ^ (mixed >> np.uint64(29))
        assert total is not None
        return total

    def _equal(self, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Array:
        same = np.ones(len(next(iter(ours.values()))), dtype=np.bool_)
        for name in self._names:
            same &= np.asarray(ours[name] == theirs[name], dtype=np.bool_)
        return same

    def find_many(self, columns: Mapping[str, Array]) -> Array:
        wanted = self._hash(columns)
        result = np.full(len(wanted), -1, dtype=np.int64)
        place = np.searchsorted(self._hashes, wanted)
        open_ones = np.arange(len(wanted))
        while len(open_ones):  # more than once only where two rows share a hash
            here = place[open_ones]
            alive = here < len(self._hashes)
            alive[alive] = self._hashes[here[alive]] == wanted[open_ones[alive]]
            open_ones, here = open_ones[alive], here[alive]
            if not len(open_ones):
                break
            rows = self._order[here]
            same = self._equal(self._take(rows), {name: columns[name][open_ones] for name in self._names})
            result[open_ones[same]] = rows[same]
            open_ones = open_ones[~same]
            place[open_ones] += 1
        return result

    def first_repeat(self) -> tuple[int, int] | None:
        """Return the first two rows with equal values."""
        twins = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        pairs = [
            (int(a), int(b))
            for a, b in zip(self._order[twins], self._order[twins + 1], strict=True)
            if self._equal(self._take(np.array([a])), self._take(np.array([b])))[0]
        ]
        return min(pairs, key=lambda pair: pair[1]) if pairs else None


def _find_one(block: RowsBlock | SampleBlock, params: Mapping[str, Value]) -> int | None:
    values = [params[name] for name in block.names]
    if not all(fits(kind, value) for kind, value in zip(block.kinds, values, strict=True)):
        return None
    columns = {
        name: to_array("float" if isinstance(value, float) else kind, [value])
        for name, kind, value in zip(block.names, block.kinds, values, strict=True)
    }
    row = int(block.find_many(columns, 1)[0])
    return row if row >= 0 else None


def _comparable(block: RowsBlock | SampleBlock, columns: Mapping[str, Array]) -> bool:
    """Tell whether whole columns have kinds that can match the block's."""
    for name, kind in zip(block.names, block.kinds, strict=True):
        found = columns[name].dtype.kind
        match kind:
            case "bool":
                good = found == "b"
            case "str":
                good = found in "OUT"
            case "int" | "float":
                good = found in "iuf"
        if not good:
            return False
    return True


class RowsBlock:
    """Columns that advance together: a zip, a table, the lines of a task file."""

    def __init__(self, spec: RowsSpec) -> None:
        self.names = tuple(spec.names)
        self.kinds = tuple(spec.kinds)
        self.size = len(spec.columns[0])
        self._columns = {
            name: to_array(kind, column)
            for name, kind, column in zip(spec.names, spec.kinds, spec.columns, strict=True)
        }
        self._pairs = tuple((name, column.item) for name, column in self._columns.items())
        self._index: RowIndex | None = None

    def fill(self, params: dict[str, Value], row: int) -> None:
        for name, item in self._pairs:
            params[name] = item(row)

    def take(self, rows: Array, wanted: frozenset[str]) -> dict[str, Array]:
        return {name: column[rows] for name, column in self._columns.items() if name in wanted}

    def index(self) -> RowIndex:
        if self._index is None:
            everything = frozenset(self.names)
            self._index = RowIndex(self.names, self.size, lambda rows: self.take(rows, everything))
        return self._index

    def find(self, params: Mapping[str, Value]) -> int | None:
        return _find_one(self, params)

    def find_many(self, columns: Mapping[str, Array], count: int) -> Array:
        if not _comparable(self, columns):
            return np.full(count, -1, dtype=np.int64)
        return self.index().find_many(columns)


def _raw(seed: int, name: str, part: str, count: int) -> Array:
    """Return `count` random 64-bit words that depend on nothing but the arguments.

    Only the bit stream of Philox is used: numpy promises it for ever, unlike
    the distributions built on it.
    """
    import hashlib  # OpenSSL comes with it, and most sweeps sample nothing

    key = hashlib.blake2b(f"{seed}/{name}/{part}".encode(), digest_size=16).digest()
    words: Array = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return words


def _uniform(words: Array) -> Array:
    numbers: Array = (words >> np.uint64(11)) * 2.0**-53
    return numbers


_LN2 = math.log(2.0)
_TAYLOR = [1.0 / math.factorial(n) for n in range(14)]


def exp2(exponents: Array) -> Array:
    """Return 2**x with plain multiplications and additions: the same bits on every machine.

    Library exponentials differ in the last bit between processors, and a
    sampled value is part of a task's identity.
    """
    whole = np.rint(exponents)
    t = (exponents - whole) * _LN2
    total = np.full_like(t, _TAYLOR[-1])
    for coefficient in reversed(_TAYLOR[:-1]):
        total = total * t + coefficient
    result: Array = np.ldexp(total, whole.astype(np.int32))
    return result


class SampleBlock:
    """``[sample]``: point i of each column is computed from its chunk's number.

    ``random`` columns depend on (seed, name, i) only: raising n or adding a
    range keeps the points that are there.  ``lhs`` holds one permutation of n
    per column, made at first use.  ``sobol`` points come from the spec.
    """

    def __init__(self, spec: SampleSpec) -> None:
        self.names = tuple(one.name for one in spec.ranges)
        self.kinds: tuple[Kind, ...] = tuple(one.type for one in spec.ranges)
        self.size = spec.n
        self._spec = spec
        self._ranges = {one.name: one for one in spec.ranges}
        self._points = {
            one.name: np.array(column, np.float64)
            for one, column in zip(spec.ranges, spec.points, strict=False)
        }
        self._strata: dict[str, Array] = {}
        self._held: dict[tuple[str, int], Array] = {}
        self._index: RowIndex | None = None

    def _unit(self, name: str, chunk: int) -> Array:
        start, stop = chunk * SAMPLE_CHUNK, min((chunk + 1) * SAMPLE_CHUNK, self.size)
        seed = self._spec.seed
        match self._spec.method:
            case "random":
                return _uniform(_raw(seed, name, str(chunk), SAMPLE_CHUNK)[: stop - start])
            case "lhs":
                if name not in self._strata:
                    order = np.argsort(_raw(seed, name, "strata", self.size), kind="stable")
                    self._strata[name] = order.astype(np.uint32 if self.size < 2**32 else np.int64)
                jitter = _uniform(_raw(seed, name, str(chunk), SAMPLE_CHUNK)[: stop - start])
                unit: Array = (self._strata[name][start:stop] + jitter) / self.size
                return unit
            case "sobol":
                points: Array = self._points[name][start:stop]
                return points

    def _chunk(self, name: str, chunk: int) -> Array:
        held = self._held.get((name, chunk))
        if held is not None:
            return held
        one = self._ranges[name]
        unit = self._unit(name, chunk)
        if one.type == "int":
            # Each whole number low..high has the same share of the unit interval (of its logarithm).
            low, high = one.low, one.high + 1.0
        else:
            low, high = one.low, one.high
        if one.scale == "log":
            # 14 digits: a machine whose log2 differs in the last bit must not make other points.
            octaves = float(f"{math.log2(high / low):.14g}")
            values = low * exp2(unit * octaves)
        else:
            values = low + unit * (high - low)
        if one.type == "int":
            values = np.floor(values)
        values = np.clip(values, one.low, one.high)
        if one.type == "int":
            values = values.astype(np.int64)
        if len(self._held) >= _CHUNKS_HELD * len(self.names):
            self._held.pop(next(iter(self._held)))
        self._held[name, chunk] = values
        return values

    def fill(self, params: dict[str, Value], row: int) -> None:
        chunk, offset = divmod(row, SAMPLE_CHUNK)
        for name in self.names:
            params[name] = self._chunk(name, chunk).item(offset)

    def take(self, rows: Array, wanted: frozenset[str]) -> dict[str, Array]:
        columns: dict[str, Array] = {}
        chunks = rows // SAMPLE_CHUNK
        offsets = rows - chunks * SAMPLE_CHUNK
        needed = np.unique(chunks).tolist()
        for name, kind in zip(self.names, self.kinds, strict=True):
            if name not in wanted:
                continue
            column = np.empty(len(rows), dtype=np.int64 if kind == "int" else np.float64)
            for chunk in needed:
                here = chunks == chunk if len(needed) > 1 else slice(None)
                column[here] = self._chunk(name, chunk)[offsets[here]]
            columns[name] = column
        return columns

    def index(self) -> RowIndex:
        if self._index is None:
            everything = frozenset(self.names)
            self._index = RowIndex(self.names, self.size, lambda rows: self.take(rows, everything))
        return self._index

    def find(self, params: Mapping[str, Value]) -> int | None:
        return _find_one(self, params)

    def find_many(self, columns: Mapping[str, Array], count: int) -> Array:
        if not _comparable(self, columns):
            return np.full(count, -1, dtype=np.int64)
        return self.index().find_many(columns)


def refuse_repeats(block: RowsBlock | SampleBlock, where: str, row_name: Callable[[int], str]) -> None:
    """Refuse rows with equal values: a task is its parameters, so they would be one task."""
    repeat = block.index().first_repeat()
    if repeat is not None:
        first, second = repeat
        raise SweepFileError(
            None,
            where,
            f"{row_name(second)} repeats {row_name(first)}",
            "a task is its parameters; to run one several times use sweep.repeat",
        )
