"""Array results: (task, d1, d2, ...), padded to the largest shape seen.

Rule: arrays of one name and one rank share a dataset; another rank has its own,
``<name>_<rank>d``. Padding and missing tasks hold NaN (float), the smallest
int64 or -1 (bool). Integers become floats beside floats; complex numbers are
two datasets, ``<name>_real`` and ``<name>_imag``. Values are loaded one window
at a time, however many there are.

    ArrayItem (row, dtype, shape, load) --group by name and rank--> grow, promote --> write windows
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import h5py
import msgspec
import numpy as np

from keystone_mpi.records.store import Kind, hdf5
from keystone_mpi.records.store.values import BOOL_MISSING, INT_MISSING, describe, safe_name, stored_kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WINDOW_BYTES = 8 << 20
_CHUNK_BYTES = 256 << 10
_MAX_RANK = 30


class ArrayItem(msgspec.Struct, frozen=True):
    """An array for one row, loaded when it is written."""

    row: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any] | None]
    """None: it cannot be read (told elsewhere); the row stays without a value."""


def storable(dtype: str, shape: tuple[int, ...]) -> np.dtype[Any] | None:
    """Return the dtype of an array value, None when the file cannot hold it."""
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):
        return None
    if (
        found.kind not in "biufcUSMm"
        or found.hasobject
        or len(shape) > _MAX_RANK
        or any(d < 0 for d in shape)
    ):
        return None
    return found


def split_complex(key: str, items: Sequence[ArrayItem]) -> Iterator[tuple[str, list[ArrayItem]]]:
    """Yield the items under `key`, complex ones as their real and imaginary parts."""
    plain = [item for item in items if item.dtype.kind != "c"]
    if plain:
        yield key, plain
    complexes = [item for item in items if item.dtype.kind == "c"]
    for suffix, part in (("real", np.real), ("imag", np.imag)):
        if complexes:
            yield (
                f"{key}_{suffix}",
                [
                    ArrayItem(item.row, np.dtype("f8"), item.shape, functools.partial(_part, item, part))
                    for item in complexes
                ],
            )


def _part(item: ArrayItem, part: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any] | None:
    whole = item.load()
    return None if whole is None else part(whole)


class _Column(msgspec.Struct):
    name: str
    kind: Kind


class ArrayGroup:
    """The array columns of /results.

    Parameters
    ----------
    group : h5py.Group
    dimension : h5py.Dataset
        The task dimension.
    """

    def __init__(self, group: h5py.Group, dimension: h5py.Dataset) -> None:
        self.group = group
        self.dimension = dimension
        self._columns: dict[tuple[str, int], _Column] = {}
        for name, dataset in group.items():
            kind = stored_kind(dataset)
            if kind is not None and dataset.ndim > 1:
                key = hdf5.attribute(dataset, "array_of") or hdf5.attribute(dataset, "key") or name
                self._columns[key, dataset.ndim - 1] = _Column(name, kind)

    def resize(self, rows: int) -> None:
        """Follow the task dimension."""
        for column in self._columns.values():
            self.group[column.name].resize(rows, axis=0)

    def clear(self, rows: hdf5.Rows) -> None:
        """Make rows hold no value in any array column."""
        for column in self._columns.values():
            dataset = self.group[column.name]
            if not hdf5.is_untouched(dataset):
                for row in rows.tolist():
                    dataset[row] = _fill(column.kind)

    def write(self, key: str, items: Sequence[ArrayItem], *, values: bool = True) -> None:
        """Write the arrays of one name; rows ascend and hold no value yet.

        Without `values` only the columns are made or widened.
        """
        for name, part in split_complex(key, items):
            for rank in sorted({len(item.shape) for item in part}):
                of_rank = [item for item in part if len(item.shape) == rank]
                dataset, kind = self._column_for(name, rank, of_rank)
                item_bytes = max(1, math.prod(dataset.shape[1:]) * 8)
                for window in _windows(of_rank, item_bytes) if values else ():
                    self._write_window(dataset, kind, window, item_bytes)

    def _column_for(self, key: str, rank: int, items: list[ArrayItem]) -> tuple[h5py.Dataset, Kind]:
        """Return the dataset that can hold these arrays, made, grown or promoted for them."""
        dtype = np.result_type(*{_stored(item.dtype) for item in items}) if _numeric(items) else None
        kind = _kind(dtype)
        shape = tuple(max(item.shape[axis] for item in items) for axis in range(rank))
        column = self._columns.get((key, rank))
        if column is None:
            column = self._columns[key, rank] = _Column(self._make(key, rank, kind, dtype, shape), kind)
        else:
            self._grow(column, shape)
            self._promote(key, column, dtype)
        return self.group[column.name], column.kind

    def _write_window(
        self, dataset: h5py.Dataset, kind: Kind, window: list[ArrayItem], item_bytes: int
    ) -> None:
        first, last = window[0].row, window[-1].row
        if len(window) == 1 and item_bytes > _WINDOW_BYTES:
            array = window[0].load()
            if array is not None:  # only its own corner: padding of a huge array takes no space
                dataset[(first, *(slice(0, size) for size in array.shape))] = _converted(array, kind)
            return
        block: NDArray[Any]
        if last - first + 1 == len(window):
            block = np.full(
                (len(window), *dataset.shape[1:]), _fill(kind), object if kind == "str" else dataset.dtype
            )
        else:
            block = dataset[first : last + 1]
        for item in window:
            array = item.load()
            if array is not None:
                corner: tuple[slice, ...] = tuple(slice(0, size) for size in array.shape)
                block[item.row - first][corner] = _converted(array, kind)
        dataset[first : last + 1] = block

    def _make(
        self, key: str, rank: int, kind: Kind, dtype: np.dtype[Any] | None, shape: tuple[int, ...]
    ) -> str:
        known = any(found == key for found, _rank in self._columns) or key in self.group
        wanted = f"{key}_{rank}d" if known else key
        axes = range(1, rank + 1)
        name = safe_name(
            wanted, lambda name: name in self.group or any(f"{name}_d{axis}" in self.group for axis in axes)
        )
        self._make_dataset(key, wanted, name, kind, dtype, shape)
        return name

    def _make_dataset(
        self,
        key: str,
        label: str,
        name: str,
        kind: Kind,
        dtype: np.dtype[Any] | None,
        shape: tuple[int, ...],
    ) -> None:
        dimensions = [self.dimension]
        for axis, size in enumerate(shape, 1):
            dimension = f"{name}_d{axis}"
            if dimension not in self.group:
                hdf5.make_dimension(self.group, dimension, size, coordinate=False, chunk=1024)
            dimensions.append(self.group[dimension])
        item_size = 16 if dtype is None else dtype.itemsize
        dataset = hdf5.make_variable(
            self.group,
            name,
            hdf5.TEXT if dtype is None else dtype,
            dimensions,
            chunks=_chunks(shape, item_size, self.dimension.chunks[0]),
            fill=_fill(kind),
        )
        describe(dataset, label, kind)
        if name != key:
            hdf5.set_text(dataset, "array_of", hdf5.clean_text(key))

    def _grow(self, column: _Column, shape: tuple[int, ...]) -> None:
        dataset = self.group[column.name]
        for axis, size in enumerate(shape, 1):
            if size > dataset.shape[axis]:
                hdf5.resize_dimension(self.group[f"{column.name}_d{axis}"], size)
                dataset.resize(size, axis=axis)

    def _promote(self, key: str, column: _Column, dtype: np.dtype[Any] | None) -> None:
        """Rewrite a column in a wider type, window by window."""
        old = self.group[column.name]
        if column.kind == "str" or (dtype is not None and np.result_type(old.dtype, dtype) == old.dtype):
            return
        wider = None if dtype is None else _stored(np.result_type(old.dtype, dtype))
        kind = _kind(wider)
        shape = old.shape[1:]
        temp = f"{column.name} (being rewritten)"
        self.group.move(column.name, temp)
        label = hdf5.attribute(old, "key") or column.name
        self._make_dataset(key, label, column.name, kind, wider, shape)
        new = self.group[column.name]
        step = max(1, _WINDOW_BYTES // max(1, math.prod(shape) * 8))
        missing = _fill(column.kind)
        for start in range(0, old.shape[0], step):
            block = old[start : start + step]
            absent = np.isnan(block) if column.kind == "float" else block == missing
            if not absent.all():
                converted = _converted(block, kind)
                converted[absent] = _fill(kind)
                new[start : start + step] = converted
        hdf5.remove_variable(self.group, temp)
        column.kind = kind


def _numeric(items: Sequence[ArrayItem]) -> bool:
    return all(item.dtype.kind in "biuf" for item in items)


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which a numeric array is stored."""
    match dtype.kind:
        case "f":
            return np.dtype("f4") if dtype.itemsize <= 4 else np.dtype("f8")
        case "b":
            return np.dtype("i1")
        case "i":
            return np.dtype("i8")
        case "u":
            return np.dtype("f8") if dtype.itemsize == 8 else np.dtype("i8")
        case _:
            raise AssertionError(dtype)


def _kind(dtype: np.dtype[Any] | None) -> Kind:
    if dtype is None:
        return "str"
    return "float" if dtype.kind == "f" else "bool" if dtype.itemsize == 1 else "int"


def _fill(kind: Kind) -> Any:
    match kind:
        case "float":
            return math.nan
        case "int":
            return INT_MISSING
        case "bool":
            return BOOL_MISSING
        case "str":
            return ""
        case _:
            raise AssertionError(kind)


def _converted(array: NDArray[Any], kind: Kind) -> NDArray[Any]:
    match kind:
        case "str":
            texts = [
                item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
                for item in array.ravel().tolist()
            ]
            return hdf5.text_array(texts).reshape(array.shape)
        case "float":
            return array if array.dtype.kind == "f" else array.astype("f8")
        case "int":
            return array.astype("i8")
        case "bool":
            return array.astype("i1")
        case _:
            raise AssertionError(kind)


def _chunks(shape: tuple[int, ...], item_size: int, most_rows: int) -> tuple[int, ...]:
    """Choose chunks of about a quarter MiB: whole arrays where they fit, else pieces of one."""
    sizes = [max(1, size) for size in shape]
    axis = 0
    while math.prod(sizes) * item_size > _CHUNK_BYTES and axis < len(sizes):
        rest = math.prod(sizes[axis + 1 :]) * item_size
        sizes[axis] = max(1, _CHUNK_BYTES // rest) if rest <= _CHUNK_BYTES else 1
        axis += 1
    rows = max(1, min(most_rows, 1024, _CHUNK_BYTES // (math.prod(sizes) * item_size)))
    return (rows, *sizes)


def _windows(items: Sequence[ArrayItem], item_bytes: int) -> Iterator[list[ArrayItem]]:
    """Group items whose rows lie close together into blocks of bounded size."""
    window: list[ArrayItem] = []
    for item in items:
        if window:
            span = item.row - window[0].row + 1
            if span * item_bytes > _WINDOW_BYTES or span > 2 * (len(window) + 1):
                yield window
                window = []
        window.append(item)
    if window:
        yield window
