"""Reading: one generation of the results file, held open and unchanging.

Rule: takes no lock and changes nothing. The file under an open snapshot is
never modified (the next generation is another file), so columns read now and
later belong together. Only what is asked for is read.

    open_snapshot(OUT) --> Snapshot --column / rows / values--> numpy
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from keystone_mpi.records.store import Kind, hdf5
from keystone_mpi.records.store.inspecting import Present, open_ours, read_in_flight
from keystone_mpi.records.store.values import from_array, stored_kind
from keystone_mpi.records.tail import Flight


@dataclass(frozen=True, slots=True)
class ValueColumn:
    """A column of /params or /results."""

    key: str
    dataset: str
    kind: Kind
    rank: int
    """0 for scalars, else the number of dimensions beside the task's."""
    origin: str = ""
    """Name of the result that it holds: that of all arrays of the result, whatever their rank."""


class Snapshot:
    """One generation of the file; use as a context manager or `close` it.

    Attributes
    ----------
    present : Present
        What the file says of itself.
    """

    def __init__(self, path: Path, file: h5py.File, present: Present) -> None:
        self.path = path
        self.present = present
        self._file = file

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def created(self) -> float:
        """When the run was first started, seconds since the epoch."""
        return float(self._file.attrs["created"])

    def attribute(self, name: str) -> str:
        """Read a text attribute of the root group; empty when there is none."""
        return hdf5.attribute(self._file, name)

    def text(self, name: str) -> str:
        """Read a scalar text of the root group."""
        return hdf5.read_text(self._file, name)

    def count(self, group: str, dimension: str) -> int:
        """Return the length of a table's own dimension."""
        return int(self._file[f"{group}/{dimension}"].shape[0])

    def has(self, group: str, name: str) -> bool:
        """Tell whether a column exists."""
        return f"{group}/{name}" in self._file

    def column(self, group: str, name: str) -> NDArray[Any]:
        """Read a whole column; texts come as an object array of str."""
        return self._decoded(self._file[group][name][:])

    def rows(self, group: str, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read some rows, ascending, of a column."""
        return self._decoded(hdf5.read_rows(self._file[group][name], rows))

    def task_ids(self) -> NDArray[Any]:
        """Read the names of all tasks."""
        return self._decoded(self._file["task_id"][:])

    def in_flight(self) -> dict[tuple[int, int], Flight]:
        """Read the attempts that had not ended when this generation was made."""
        return read_in_flight(self._file)

    def value_columns(self, group: str) -> list[ValueColumn]:
        """List the columns of /params or /results."""
        found = []
        for name, dataset in self._file[group].items():
            kind = stored_kind(dataset)
            if kind is not None:
                key = hdf5.attribute(dataset, "key") or name
                origin = hdf5.attribute(dataset, "array_of") or key
                found.append(ValueColumn(key, name, kind, dataset.ndim - 1, origin))
        return found

    def dimension_names(self, group: str, column: ValueColumn) -> list[str]:
        """Return the names of the dimensions of a column beside the task's."""
        scales = self._file[group][column.dataset].dims
        return [scales[axis][0].name.rpartition("/")[2] for axis in range(1, column.rank + 1)]

    def value_array(self, group: str, column: ValueColumn) -> NDArray[Any]:
        """Read a whole column of values as stored (bool and missing ones as small integers)."""
        return self._decoded(self._file[group][column.dataset][:])

    def value(self, group: str, column: ValueColumn, row: int) -> Any:
        """Read one row's value; None when it is missing (a float is NaN, a text empty, then)."""
        dataset = self._file[group][column.dataset]
        if column.rank:
            return self._decoded(np.asarray(dataset[row]))
        return from_array(np.atleast_1d(hdf5.read_rows(dataset, np.array([row]))), column.kind)[0]

    def output(self, stream: str, offset: int, size_bytes: int) -> bytes:
        """Read a stretch of kept output."""
        data: bytes = self._file["output"][stream][offset : offset + size_bytes].tobytes()
        return data

    def _decoded(self, array: NDArray[Any]) -> NDArray[Any]:
        if array.dtype != object:
            return array
        decoded = np.empty(array.size, dtype=object)
        decoded[:] = hdf5.decode_texts(array.ravel())
        return decoded.reshape(array.shape)


def open_snapshot(path: Path) -> Snapshot | None:
    """Open the present generation; None when there is no file.

    Raises
    ------
    OutputError
        It is not ours, or a newer version wrote it.
    ClusterError
        It cannot be read.
    """
    opened = open_ours(path)
    return None if opened is None else Snapshot(path, *opened)
