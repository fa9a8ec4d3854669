"""Parameter columns of the rows that a start of a run adds, for the store.

Rule: made from the spec in the journal's header alone, so that the store
process and a later recovery see what the master saw.

    RunOpened.spec, RunOpened.added_points --(columns_from_spec)--> AddedColumns --> /params
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keystone_mpi.deferred_numpy import np
from keystone_mpi.records.programs import is_program
from keystone_mpi.sweeps.stored import space_from_spec
from keystone_mpi.sweeps.values import REPLICATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from keystone_mpi.records.store import ColumnSource
    from keystone_mpi.sweeps.space import Space


class AddedColumns:
    """The store's `ColumnSource`: parameters of the rows that a start adds."""

    def __init__(self, space: Space, added_points: list[tuple[int, int]]) -> None:
        self._space = space
        self._ranges = added_points

    def kinds(self) -> dict[str, Any]:
        """Parameter name -> kind of its column."""
        return dict(self._space.kinds())

    def implied(self) -> dict[str, Any]:
        """A task that was there before the sweep had replicates is replicate 0."""
        return {REPLICATE: 0} if REPLICATE in self._space.names else {}

    def columns(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Parameters of the added rows `start` to `stop` (counted from the first added row)."""
        parts: list[dict[str, NDArray[Any]]] = []
        offset = 0
        for first, last in self._ranges:
            low, high = max(start, offset), min(stop, offset + last - first)
            if low < high:
                parts.append(self._space.columns(first + low - offset, first + high - offset))
            offset += last - first
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}


class NoColumns:
    """The `ColumnSource` of a program, whose tasks bring their parameters along."""

    def kinds(self) -> dict[str, Any]:
        """Return no parameter."""
        return {}

    def implied(self) -> dict[str, Any]:
        """Return nothing that old rows would lack."""
        return {}

    def columns(self, start: int, stop: int) -> dict[str, NDArray[Any]]:  # noqa: ARG002 - of the protocol
        """Return no column."""
        return {}


def columns_from_spec(spec: bytes, added_points: list[tuple[int, int]]) -> ColumnSource:
    """Return the columns of the rows that `added_points` of a stored sweep stand for."""
    if is_program(spec):
        return NoColumns()
    return AddedColumns(space_from_spec(spec), added_points)
