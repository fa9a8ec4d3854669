"""Axes: one parameter's values, computed from their number.

Rule: a range is never expanded.  Value i is a function of i, the same bits
one at a time and by the column, and each axis can be asked the other way:
which i has this value.

    AxisSpec --(make_axis)--> Axis --(value(i) | take(indices))--> values
                                   --(find(value))--> i

Decimal ranges are exact: ``{ range = [0, 1, 0.1] }`` holds 0.3, not
0.30000000000000004, because values are whole numbers over one denominator.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.deferred_numpy import np
from keystone_mpi.sweeps.spec import AxisSpec
from keystone_mpi.sweeps.values import Array, Kind, Value, to_array, typed_column

if TYPE_CHECKING:
    from fractions import Fraction

LONGEST_AXIS = 2**40
LONGEST_LOGSPACE = 2**20
_EXACT = 2**53
"""Whole numbers up to here are exact in a float."""


class Axis(Protocol):
    """One parameter's values."""

    name: str
    kind: Kind
    size: int

    def value(self, index: int) -> Value:
        """Return value `index`."""

    def take(self, indices: Array) -> Array:
        """Return the values of many indices as a column."""

    def find(self, value: Value) -> int | None:
        """Return the index that has this value, None when none has."""


class ListAxis:
    """Values written out."""

    def __init__(self, name: str, kind: Kind, values: list[Value]) -> None:
        self.name = name
        self.kind = kind
        self.size = len(values)
        self._values = values
        self._positions: dict[Value, int] = {}

    @cached_property
    def _column(self) -> Array:
        return to_array(self.kind, self._values)

    def value(self, index: int) -> Value:
        return self._values[index]

    def take(self, indices: Array) -> Array:
        column: Array = self._column[indices]
        return column

    def find(self, value: Value) -> int | None:
        if not self._positions:
            self._positions = {known: index for index, known in enumerate(self._values)}
        return self._positions.get(value)


class ExactAxis:
    """``(first + i * step) / denominator`` in whole numbers: one rounding, at the division."""

    def __init__(self, name: str, kind: Kind, first: int, step: int, denominator: int, size: int) -> None:
        self.name = name
        self.kind = kind
        self.size = size
        self._first = first
        self._step = step
        self._denominator = denominator

    def value(self, index: int) -> Value:
        numerator = self._first + index * self._step
        return numerator if self.kind == "int" else numerator / self._denominator

    def take(self, indices: Array) -> Array:
        numerators: Array = indices * np.int64(self._step) + np.int64(self._first)
        return numerators if self.kind == "int" else numerators / np.float64(self._denominator)

    def find(self, value: Value) -> int | None:
        assert not isinstance(value, str)
        from fractions import Fraction

        guess = round((Fraction(value) * self._denominator - self._first) / self._step)
        for index in (guess, guess - 1, guess + 1):  # the rounding of the value may move the guess by one
            if 0 <= index < self.size and self.value(index) == value:
                return index
        return None


class FloatAxis:
    """``first + i * span / divisor`` in floats, for numbers with too many digits to be exact."""

    kind: Kind = "float"

    def __init__(
        self, name: str, first: float, span: float, divisor: int, last: float | None, size: int
    ) -> None:
        self.name = name
        self.size = size
        self._first = first
        self._span = span
        self._divisor = float(divisor)
        self._last = last
        """The exact end of a linspace."""

    def value(self, index: int) -> Value:
        if self._last is not None and index == self.size - 1:
            return self._last
        return self._first + index * self._span / self._divisor

    def take(self, indices: Array) -> Array:
        column: Array = np.float64(self._first) + indices * np.float64(self._span) / np.float64(self._divisor)
        if self._last is not None:
            column[indices == self.size - 1] = self._last
        return column

    def find(self, value: Value) -> int | None:
        assert not isinstance(value, str)
        guess = round((value - self._first) / self._span * self._divisor) if self._span else 0
        for index in range(guess - 2, guess + 3):
            if 0 <= index < self.size and self.value(index) == value:
                return index
        return None


def make_axis(spec: AxisSpec) -> Axis:
    """Make the axis of one grid parameter.

    Raises
    ------
    SweepFileError
        For an empty, over-long or repeating axis; its key is ``params.<name>``.
    """
    where = f"params.{spec.name}"
    if spec.linspace is not None:
        return _linspace(spec.name, *spec.linspace, where)
    if spec.range is not None:
        return _range(spec.name, *spec.range, where)
    if spec.logspace is not None:
        return _logspace(spec.name, *spec.logspace, where)
    kind, values = typed_column(spec.values, where)
    _refuse_repeats(values, where)
    return ListAxis(spec.name, kind, values)


def _refuse_repeats(values: list[Value], where: str) -> None:
    seen: set[Value] = set()
    for value in values:
        if value in seen:
            raise SweepFileError(
                None,
                where,
                f"the value {value!r} is there twice",
                "to run a task several times use sweep.repeat",
            )
        seen.add(value)


def _check_count(count: int, where: str, longest: int = LONGEST_AXIS) -> None:
    if count < 1:
        raise SweepFileError(None, where, f"{count} values asked for; at least 1 is needed")
    if count > longest:
        raise SweepFileError(None, where, f"{count:,} values; at most {longest:,} are allowed")


def _exact_or_none(first: Fraction, step: Fraction, size: int) -> tuple[int, int, int] | None:
    """Return (first, step, denominator) in whole numbers when every numerator is exact in a float."""
    denominator = math.lcm(first.denominator, step.denominator)
    start, advance = int(first * denominator), int(step * denominator)
    largest = max(abs(start), abs(start + advance * size), abs(advance) * size)
    return (start, advance, denominator) if largest <= _EXACT and denominator <= _EXACT else None


def _as_written(value: int | float) -> Fraction:
    """Return the decimal number that the user wrote, not its nearest binary one."""
    from fractions import Fraction  # most sweeps list their values

    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def _linspace(name: str, first: int | float, last: int | float, count: int, where: str) -> Axis:
    _check_count(count, where)
    if count == 1:
        return ListAxis(name, "float", [float(first)])
    if first == last:
        raise SweepFileError(None, where, f"linspace from {first} to {last} is one value {count} times")
    step = (_as_written(last) - _as_written(first)) / (count - 1)
    exact = _exact_or_none(_as_written(first), step, count)
    if exact is not None:
        return ExactAxis(name, "float", *exact, count)
    return FloatAxis(name, float(first), float(last) - float(first), count - 1, float(last), count)


def _range(name: str, start: int | float, stop: int | float, step: int | float, where: str) -> Axis:
    if step == 0:
        raise SweepFileError(None, where, "the step of a range is 0")
    length = (_as_written(stop) - _as_written(start)) / _as_written(step)
    count = math.ceil(length)
    if count < 1:
        raise SweepFileError(
            None,
            where,
            f"range = [{start}, {stop}, {step}] has no value",
            "range is [start, stop (exclusive), step]",
        )
    _check_count(count, where)
    kind: Kind = "int" if all(isinstance(part, int) for part in (start, stop, step)) else "float"
    exact = _exact_or_none(_as_written(start), _as_written(step), count)
    if exact is not None:
        return ExactAxis(name, kind, *exact, count)
    if kind == "int":
        raise SweepFileError(None, where, f"range = [{start}, {stop}, {step}] goes beyond 2**53")
    return FloatAxis(name, float(start), float(step), 1, None, count)


def _logspace(name: str, first: float, last: float, count: int, where: str) -> Axis:
    _check_count(count, where, LONGEST_LOGSPACE)
    if first <= 0 or last <= 0:
        raise SweepFileError(
            None,
            where,
            f"logspace = [{first}, {last}, {count}] needs positive ends",
            "logspace takes the values themselves, not exponents: [1e-3, 1, 4]",
        )
    if count == 1:
        return ListAxis(name, "float", [float(first)])
    if first == last:
        raise SweepFileError(None, where, f"logspace from {first} to {last} is one value {count} times")
    low, high = math.log10(first), math.log10(last)
    # 14 digits: 0.01 is 0.01, and a machine whose log differs in the last bit makes the same values.
    values: list[Value] = [
        float(f"{10.0 ** (low + index * (high - low) / (count - 1)):.14g}") for index in range(count)
    ]
    values[0], values[-1] = float(first), float(last)
    _refuse_repeats(values, where)
    return ListAxis(name, "float", values)
