"""Two runs side by side: which results changed beyond a tolerance.

Rule: tasks are matched by their parameters, the replicate included, never by
their numbers; a task that only one run has is told, not guessed. A value that
went missing is a change, one that both lack is none.

    Run A, Run B --(parameters both have)--> pairs of rows --(rtol, atol)--> Comparison
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystone_mpi.analysis.run import Run
from keystone_mpi.core.errors import UserError
from keystone_mpi.core.model import TaskState

WORST = 5
"""Tasks that are named per result."""


class Change(msgspec.Struct, frozen=True):
    """One result of one pair of tasks."""

    task_a: int
    task_b: int
    params: dict[str, Any]
    a: Any
    b: Any
    difference: float | None
    """Largest absolute difference; None: not numbers, or one is missing."""
    relative: float | None
    """Of that difference to the value of A."""


class ResultChange(msgspec.Struct, frozen=True):
    """One result over all pairs."""

    name: str
    compared: int
    changed: int
    worst: list[Change]
    """Largest relative differences first."""


class Comparison(msgspec.Struct, frozen=True):
    """What changed from A to B."""

    matched: int
    only_a: list[int]
    """Tasks of A that B does not have."""
    only_b: list[int]
    states: list[Change]
    """Pairs whose state differs, such as SUCCESS -> FAILURE."""
    results: list[ResultChange]
    """Every result that both have, the unchanged ones too."""
    results_only_a: list[str]
    results_only_b: list[str]

    @property
    def changed(self) -> bool:
        """Whether anything that both runs have differs."""
        return bool(self.states) or any(result.changed for result in self.results)

    @property
    def differs(self) -> bool:
        """Whether anything differs, tasks and results that only one has included."""
        return self.changed or bool(self.only_a or self.only_b or self.results_only_a or self.results_only_b)


def compare(
    a: Run, b: Run, *, rtol: float = 1e-9, atol: float = 0.0, names: Sequence[str] = ()
) -> Comparison:
    """Compare the results of two runs.

    Parameters
    ----------
    a, b : Run
    rtol, atol : float
        A value changed when ``|b - a| > atol + rtol * |a|``.
    names : sequence of str
        Results to compare; empty: all that are in either.
    """
    shared = [name for name in a.params if name in b.params]
    if not shared:
        raise UserError(f"{a.path} and {b.path} have no parameter in common: their tasks cannot be matched")
    for name in names:
        if name not in a.results and name not in b.results:
            a.contents.result(name)  # raises, with the near match
    rows_a, rows_b, only_a, only_b = _match(a, b, shared)
    columns = {name: a.values(name) for name in shared}

    def params(row: int) -> dict[str, Any]:
        return {name: plain(values[row]) for name, values in columns.items()}

    def change(position: int, left: Any, right: Any, difference: float, scale: float) -> Change:
        known = math.isfinite(difference)
        relative = difference / scale if known and scale > 0 else None
        row_a, row_b = int(rows_a[position]), int(rows_b[position])
        return Change(
            int(a.rows[row_a]), int(b.rows[row_b]), params(row_a), _shown(left), _shown(right),
            difference if known else None, relative,
        )  # fmt: skip

    wanted = list(names) or list(dict.fromkeys([*a.results, *b.results]))
    both = [name for name in wanted if name in a.results and name in b.results]
    found = []
    for name in both:
        left, right = a.values(name)[rows_a], b.values(name)[rows_b]
        changed, difference, scale = _differences(left, right, rtol, atol)
        with np.errstate(divide="ignore", invalid="ignore"):
            severity = np.where(np.isfinite(difference), difference / scale, np.inf)
        where = np.flatnonzero(changed)
        order = where[np.argsort(-severity[where], kind="stable")][:WORST]
        worst = [change(i, left[i], right[i], float(difference[i]), float(scale[i])) for i in order.tolist()]
        found.append(ResultChange(name, len(rows_a), len(where), worst))
    states_a, states_b = a.states[rows_a], b.states[rows_b]
    states = [
        change(i, TaskState(int(states_a[i])).name, TaskState(int(states_b[i])).name, math.nan, 0.0)
        for i in np.flatnonzero(states_a != states_b).tolist()
    ]
    return Comparison(
        matched=len(rows_a),
        only_a=a.rows[only_a].tolist(),
        only_b=b.rows[only_b].tolist(),
        states=states,
        results=found,
        results_only_a=[name for name in wanted if name in a.results and name not in b.results],
        results_only_b=[name for name in wanted if name in b.results and name not in a.results],
    )


def _match(
    a: Run, b: Run, names: list[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return matching positions of both, and those that only one has.

    Points that occur several times are matched in the order in which they occur.
    """
    keys_a, keys_b = _keys(a, names), _keys(b, names)
    places: dict[tuple[Any, ...], list[int]] = {}
    for position, key in enumerate(keys_b):
        places.setdefault(key, []).append(position)
    for positions in places.values():
        positions.reverse()
    rows_a, rows_b, only_a = [], [], []
    for position, key in enumerate(keys_a):
        candidates = places.get(key)
        if candidates:
            rows_a.append(position)
            rows_b.append(candidates.pop())
        else:
            only_a.append(position)
    only_b = sorted(position for positions in places.values() for position in positions)
    return (
        np.array(rows_a, np.int64), np.array(rows_b, np.int64),
        np.array(only_a, np.int64), np.array(only_b, np.int64),
    )  # fmt: skip


def _keys(run: Run, names: list[str]) -> list[tuple[Any, ...]]:
    """Return the parameters of every task as a key: 1 and 1.0 are the same, as in the sweep."""
    return list(zip(*(run.values(name).tolist() for name in names), strict=True))


def _differences(
    left: NDArray[Any], right: NDArray[Any], rtol: float, atol: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Return, per pair: changed?, largest absolute difference (NaN: no number), magnitude of A there."""
    count = len(left)
    nan = np.full(count, np.nan)
    numeric = left.dtype.kind in "biuf" and right.dtype.kind in "biuf"
    if not numeric:
        same = [plain(x) == plain(y) for x, y in zip(left.tolist(), right.tolist(), strict=True)]
        return ~np.array(same, bool), nan, nan
    if left.shape[1:] != right.shape[1:]:
        return np.ones(count, bool), nan, nan
    exact = left.dtype.kind in "biu" and right.dtype.kind in "biu" and not rtol and not atol
    x = left.reshape(count, -1)
    y = right.reshape(count, -1)
    unequal = (x != y) if exact else None
    x, y = x.astype(np.float64), y.astype(np.float64)
    missing_x, missing_y = np.isnan(x), np.isnan(y)
    with np.errstate(invalid="ignore"):
        gap = np.abs(y - x)
        beyond = gap > atol + rtol * np.abs(x)
    beyond &= ~((x == y) | (missing_x & missing_y))
    beyond |= missing_x ^ missing_y
    # An infinity that became another value: the gap is infinite or NaN, the tolerance too.
    beyond |= ~missing_x & ~missing_y & (np.isinf(x) | np.isinf(y)) & (x != y)
    if unequal is not None:
        beyond = unequal
    if x.shape[1] == 0:
        return np.zeros(count, bool), np.zeros(count), np.zeros(count)
    ranked = np.where(beyond, np.nan_to_num(gap, nan=np.inf), -1.0)
    worst = ranked.argmax(axis=1)
    rows = np.arange(count)
    return beyond.any(axis=1), gap[rows, worst], np.abs(x)[rows, worst]


def plain(value: Any) -> Any:
    """Return a Python number for a numpy scalar, anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def _shown(value: Any) -> Any:
    """Return a value for the reader: arrays by their shape only, missing ones as None."""
    if getattr(value, "shape", ()):
        return f"array {' x '.join(map(str, value.shape))}"
    shown = plain(value)
    return None if isinstance(shown, float) and math.isnan(shown) else shown
