"""A typed facade over h5py: tables of columns with netCDF4 dimensions.

Rule: everything that must be right for netCDF4 readers (scales, attached
dimensions, text, fill values) is done here once. Rows are written by position
without reading their neighbours, so no variable-length text is rewritten.
Making a file takes h5py's low-level calls: every run makes one, with fifty
variables and twice as many attributes, before a short run can end.

    open_new / open_copy / open_reader --> File
    File.table(schema.TASKS) --> TableFile --resize, write(rows), read(rows)--> datasets
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5ds, h5p, h5s, h5t

from keystone_mpi.core.errors import InternalError
from keystone_mpi.records.store.schema import Column, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXT = h5py.string_dtype("utf-8")
_TEXT_IN_FILE = h5t.py_create(TEXT, logical=True)
_TEXT_IN_MEMORY = h5t.py_create(TEXT)
Rows: TypeAlias = "NDArray[np.int64]"

_BOUNDS = ("earliest", "v108")
_CACHE_BYTES = 1 << 20
"""Per open column; HDF5 2 would take eight times that."""
_UNTEXT = re.compile("[\0\ud800-\udfff]")
_PURE_DIMENSION = "This is a netCDF dimension but not a netCDF variable.%10d"


def open_new(path: Path) -> h5py.File:
    """Create a file that must not exist."""
    return h5py.File(path, "x", libver=_BOUNDS, locking=False, rdcc_nbytes=_CACHE_BYTES)


def open_copy(path: Path) -> h5py.File:
    """Open a private copy for changes."""
    return h5py.File(path, "r+", libver=_BOUNDS, locking=False, rdcc_nbytes=_CACHE_BYTES)


def open_reader(path: Path) -> h5py.File:
    """Open for reading, taking no lock: the visible file never changes under its readers."""
    return h5py.File(path, "r", locking=False)


def clean_text(text: str) -> str:
    """Replace what HDF5 strings cannot hold (NUL, lone surrogates)."""
    if _UNTEXT.search(text) is None:
        return text
    return _UNTEXT.sub(lambda found: "\u2400" if found.group() == "\0" else "\ufffd", text)


def text_array(texts: Sequence[str]) -> NDArray[np.object_]:
    """Make an array of texts that HDF5 can hold."""
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    if _UNTEXT.search("".join(texts)) is not None:  # one search for all: the common case is clean
        array[:] = [clean_text(text) for text in texts]
    return array


def decode_texts(array: NDArray[Any]) -> list[str]:
    """Turn what h5py reads from a text column into str."""
    return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item or "") for item in array]


# ----------------------------------------------------------------- dimensions


def make_dimension(group: h5py.Group, name: str, size: int, *, coordinate: bool, chunk: int) -> h5py.Dataset:
    """Make a dimension scale; with `coordinate` it is also a variable that counts 0, 1, 2..."""
    dataset = group.create_dataset(
        name, shape=(size,), maxshape=(None,), chunks=(chunk,), dtype="i8" if coordinate else "i1"
    )
    if coordinate:
        dataset.make_scale(name)
        write_rows(dataset, 0, np.arange(size))
    else:
        dataset.make_scale(_PURE_DIMENSION % size)
    return dataset


def resize_dimension(dataset: h5py.Dataset, size: int) -> None:
    """Let a dimension grow."""
    old = int(dataset.shape[0])
    if size == old:
        return
    dataset.resize(size, axis=0)
    if dataset.dtype.kind == "i" and dataset.dtype.itemsize == 8:
        write_rows(dataset, old, np.arange(old, size))
    else:
        dataset.attrs["NAME"] = np.bytes_(_PURE_DIMENSION % size)


def make_variable(
    group: h5py.Group,
    name: str,
    dtype: Any,
    dimensions: Sequence[h5py.Dataset],
    *,
    chunks: tuple[int, ...],
    fill: Any,
    compress: bool = False,
) -> h5py.Dataset:
    """Make a resizable dataset along dimension scales, as large as they are."""
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    properties.set_chunk(chunks)
    if compress:
        properties.set_deflate(1)
    if dtype == TEXT:
        stored = _TEXT_IN_FILE
    else:
        stored = h5t.py_create(np.dtype(dtype), logical=True)
        properties.set_fill_value(np.array(fill, dtype))
    space = h5s.create_simple(
        tuple(int(dimension.shape[0]) for dimension in dimensions), (h5s.UNLIMITED,) * len(dimensions)
    )
    link = h5p.create(h5p.LINK_CREATE)
    link.set_char_encoding(h5t.CSET_ASCII if name.isascii() else h5t.CSET_UTF8)
    made = h5d.create(group.id, name.encode(), stored, space, properties, link)
    for axis, dimension in enumerate(dimensions):
        h5ds.attach_scale(made, dimension.id, axis)
    return h5py.Dataset(made)


def set_text(item: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    """Set a text attribute."""
    label = name.encode()
    if h5a.exists(item.id, label):
        h5a.delete(item.id, label)
    h5a.create(item.id, label, _TEXT_IN_FILE, h5s.create(h5s.SCALAR)).write(
        np.array(text, TEXT), _TEXT_IN_MEMORY
    )


def remove_variable(group: h5py.Group, name: str) -> None:
    """Delete a dataset and what its dimension scales say of it."""
    dataset = group[name]
    for axis in range(len(dataset.shape)):
        for scale in list(dataset.dims[axis].values()):
            dataset.dims[axis].detach_scale(scale)
    del group[name]


# ----------------------------------------------------------------------- rows


def write_rows(dataset: h5py.Dataset, rows: int | Rows, values: NDArray[Any]) -> None:
    """Write one value per row of a one-dimensional dataset.

    Parameters
    ----------
    rows : int or array of int
        First row of a contiguous block, or ascending row numbers.
    """
    count = len(values)
    if count == 0:
        return
    space = dataset.id.get_space()
    if isinstance(rows, int):
        space.select_hyperslab((rows,), (count,))
    else:
        _select(space, rows)
    memory_type = _TEXT_IN_MEMORY if values.dtype == object else h5t.py_create(values.dtype)
    values = np.ascontiguousarray(values)
    dataset.id.write(h5s.create_simple((count,)), space, values, memory_type)


def read_rows(dataset: h5py.Dataset, rows: Rows) -> NDArray[Any]:
    """Read the values of ascending rows of a one-dimensional dataset."""
    count = len(rows)
    is_text = dataset.dtype == object
    values = np.empty(count, dtype=object if is_text else dataset.dtype)
    if count == 0:
        return values
    space = dataset.id.get_space()
    _select(space, rows)
    memory_type = _TEXT_IN_MEMORY if is_text else h5t.py_create(dataset.dtype)
    dataset.id.read(h5s.create_simple((count,)), space, values, memory_type)
    return values


def _select(space: Any, rows: Rows) -> None:
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1:
        space.select_hyperslab((first,), (len(rows),))
    else:
        space.select_elements(rows.astype(np.uint64).reshape(-1, 1))


def is_untouched(dataset: h5py.Dataset) -> bool:
    """Tell whether nothing was ever written: every row still holds the fill value."""
    return int(dataset.id.get_storage_size()) == 0


# --------------------------------------------------------------------- tables


class TableFile:
    """One table of the file, open for writing.

    Parameters
    ----------
    file : h5py.File
    table : Table
        Its columns; made when the group does not exist.
    chunk : int
        Rows per chunk of a new group.
    dimension : h5py.Dataset, optional
        An existing scale; None: the table has one of its own in its group.
    """

    def __init__(
        self, file: h5py.File, table: Table, *, chunk: int, dimension: h5py.Dataset | None = None
    ) -> None:
        self.table = table
        self._own_dimension = dimension is None
        fresh = table.group not in file
        self.group = file.require_group(table.group)
        if dimension is not None:
            self.dimension = dimension
        elif fresh:
            self.dimension = make_dimension(self.group, table.dimension, 0, coordinate=True, chunk=chunk)
        else:
            self.dimension = self.group[table.dimension]
        self._datasets: dict[str, h5py.Dataset] = {}
        for column in table.columns:
            self.ensure(column, new=fresh)

    def ensure(self, column: Column, *, new: bool = False) -> None:
        """Make a column, unless the file has it; `new`: it has not."""
        if not new and column.name in self.group:
            self._datasets[column.name] = self.group[column.name]
            return
        dataset = make_variable(
            self.group,
            column.name,
            TEXT if column.dtype == "str" else column.dtype,
            (self.dimension,),
            chunks=self.dimension.chunks,
            fill=column.fill_value,
        )
        set_text(dataset, "long_name", column.long_name)
        if column.units:
            set_text(dataset, "units", column.units)
        if column.flags is not None:
            set_flags(dataset, ((member.name, member.value) for member in column.flags))
        self._datasets[column.name] = dataset

    def __len__(self) -> int:
        return int(self.dimension.shape[0])

    def resize(self, rows: int) -> None:
        """Change the number of rows of all columns."""
        if self._own_dimension:
            resize_dimension(self.dimension, rows)
        for dataset in self._datasets.values():
            if dataset.shape[0] != rows:
                dataset.id.set_extent((rows,))

    def write(self, name: str, rows: int | Rows, values: NDArray[Any]) -> None:
        """Write a numeric column; see `write_rows`."""
        write_rows(self._datasets[name], rows, values)

    def write_texts(self, name: str, rows: int | Rows, texts: Sequence[str]) -> None:
        """Write a text column; empty texts cost nothing in a column that has none yet."""
        dataset = self._datasets[name]
        if any(texts) or not is_untouched(dataset):
            write_rows(dataset, rows, text_array(texts))

    def read(self, name: str, rows: Rows) -> NDArray[Any]:
        """Read values of ascending rows."""
        return read_rows(self._datasets[name], rows)

    def whole(self, name: str) -> NDArray[Any]:
        """Read a whole column."""
        values: NDArray[Any] = self._datasets[name][:]
        return values


def set_flags(dataset: h5py.Dataset, members: Iterable[tuple[str, int]]) -> None:
    """Explain small integers the CF way."""
    names, numbers = zip(*members, strict=True)
    dataset.attrs["flag_values"] = np.array(numbers, dtype=dataset.dtype)
    set_text(dataset, "flag_meanings", " ".join(names))


# --------------------------------------------------------------------- scalars


def write_text(file: h5py.File, name: str, text: str, long_name: str) -> None:
    """Write a scalar text, unless it is there already."""
    text = clean_text(text)
    if name in file:
        if read_text(file, name) == text:
            return  # rewriting leaves the old text behind as dead space
        file[name][()] = text
    else:
        set_text(file.create_dataset(name, data=text, dtype=TEXT), "long_name", long_name)


def read_text(file: h5py.File, name: str) -> str:
    """Read a scalar text; empty when the file has none."""
    if name not in file:
        return ""
    found = file[name][()]
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> str:
    """Read a text attribute; empty when there is none."""
    found = item.attrs.get(name, "")
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


def require(condition: bool, what: str) -> None:
    """Hold an invariant of the file's layout."""
    if not condition:
        raise InternalError(f"results file: {what}")
