"""/params and /results: one column per name, made and typed when first met.

Rule: a column holds every value it was given. bool and int become float beside
a float, and everything becomes text beside a text, by rewriting the column.
A row without a value holds NaN, the smallest int64, -1 (bool) or "".

    values by name --kind--> column of that kind? --no--> promote (rewrite) --> write rows

`value_type` of a dataset names its kind, `key` its name where HDF5 or netCDF
cannot spell it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import h5py
import msgspec
import numpy as np

from keystone_mpi.records.store import Kind, hdf5

if TYPE_CHECKING:
    from numpy.typing import NDArray

INT_MISSING = -(2**63)
BOOL_MISSING = -1
_INT_RANGE = range(-(2**63) + 1, 2**63)
_RESERVED = frozenset({"task", "task_id", "attempt", "worker", "flight"})
_UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f/\ud800-\udfff]")
_DTYPES: dict[Kind, Any] = {"bool": "i1", "int": "i8", "float": "f8", "str": hdf5.TEXT}
_FILLS: dict[Kind, Any] = {"bool": BOOL_MISSING, "int": INT_MISSING, "float": math.nan, "str": ""}
_KINDS: tuple[Kind, ...] = get_args(Kind)


def safe_name(key: str, taken: Callable[[str], bool]) -> str:
    """Make a name that HDF5 and netCDF4 can spell and that is not taken."""
    name = unicodedata.normalize("NFC", _UNNAMEABLE.sub("_", key)).strip()
    while len(name.encode()) > 200:
        name = name[:-1]
    if not name or not (name[0].isalnum() or name[0] == "_" or ord(name[0]) > 127) or name in _RESERVED:
        name = f"_{name}" if name not in _RESERVED else f"{name}_"
    found, number = name, 1
    while taken(found):
        number += 1
        found = f"{name}_{number}"
    return found


def join_kinds(left: Kind, right: Kind) -> Kind:
    """Return the kind that holds values of both."""
    if left == right:
        return left
    if "str" in (left, right):
        return "str"
    return "float" if "float" in (left, right) else "int"


def kind_of(values: Sequence[Any]) -> Kind | None:
    """Return the kind that holds all of these values; None when there is none but None."""
    types = set(map(type, values)) - {type(None)}
    if not types:
        return None
    if types <= {bool}:
        return "bool"
    if types <= {bool, int}:
        return "int" if all(value is None or value in _INT_RANGE for value in values) else "float"
    if types <= {bool, int, float}:
        return "float"
    return "str"


def as_text(value: Any) -> str:
    """Spell a value in a text column."""
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case _:
            return msgspec.json.encode(value, enc_hook=repr).decode()


def to_array(values: Sequence[Any], kind: Kind) -> NDArray[Any]:
    """Convert values to what a column of `kind` stores."""
    match kind:
        case "str":
            return hdf5.text_array([as_text(value) for value in values])
        case "float":
            return np.array([math.nan if value is None else float(value) for value in values], "f8")
        case "int" | "bool":
            fill = _FILLS[kind]
            return np.array([fill if value is None else value for value in values], _DTYPES[kind])
        case _:
            raise AssertionError(kind)


def from_array(array: NDArray[Any], kind: Kind) -> list[Any]:
    """Convert what a column of `kind` stores to values; missing ones are None (a float's stay NaN)."""
    match kind:
        case "str":
            return hdf5.decode_texts(array)
        case "float":
            return list(array.tolist())
        case "int":
            return [None if value == INT_MISSING else value for value in array.tolist()]
        case "bool":
            return [None if value == BOOL_MISSING else bool(value) for value in array.tolist()]
        case _:
            raise AssertionError(kind)


class _Scalar(msgspec.Struct):
    name: str
    kind: Kind


class ValueGroup:
    """The scalar columns of /params or /results.

    Parameters
    ----------
    file : h5py.File
    group : str
    dimension : h5py.Dataset
        The task dimension.
    """

    def __init__(self, file: h5py.File, group: str, dimension: h5py.Dataset) -> None:
        self.group = file.require_group(group)
        self.dimension = dimension
        self._columns: dict[str, _Scalar] = {}
        for name, dataset in self.group.items():
            kind = stored_kind(dataset)
            if kind is not None and dataset.ndim == 1:
                self._columns[hdf5.attribute(dataset, "key") or name] = _Scalar(name, kind)

    @property
    def names(self) -> list[str]:
        """The names of the columns as they were given."""
        return list(self._columns)

    def resize(self, rows: int) -> None:
        """Follow the task dimension."""
        for column in self._columns.values():
            self.group[column.name].resize(rows, axis=0)

    def ensure(self, key: str, kind: Kind) -> Kind:
        """Make the column `key` able to hold `kind`; return the kind it now has."""
        column = self._columns.get(key)
        if column is None:
            name = safe_name(key, self.group.__contains__)
            self._make(key, name, kind)
            self._columns[key] = _Scalar(name, kind)
            return kind
        joined = join_kinds(column.kind, kind)
        if joined != column.kind:
            self._promote(key, column, joined)
        return joined

    def ensure_for(self, key: str, values: Sequence[Any]) -> Kind | None:
        """Make the column able to hold `values`; None: there is none, and nothing to hold."""
        found = kind_of(values)
        if found is not None:
            return self.ensure(key, found)
        return self._columns[key].kind if key in self._columns else None

    def write(self, key: str, rows: int | hdf5.Rows, values: Sequence[Any]) -> None:
        """Write a value per row; None is a missing one and makes no column by itself."""
        kind = self.ensure_for(key, values)
        if kind is None:
            return
        hdf5.write_rows(self.group[self._columns[key].name], rows, to_array(values, kind))

    def write_array(self, key: str, kind: Kind, start_row: int, values: NDArray[Any]) -> None:
        """Write a block of rows, given as an array of the kind without missing values."""
        present = self.ensure(key, kind)
        if present != kind or kind == "str":
            self.write(key, start_row, values.tolist())
        else:
            hdf5.write_rows(self.group[self._columns[key].name], start_row, values.astype(_DTYPES[kind]))

    def settle(self) -> None:
        """Declare missing values only where there are some.

        xarray turns integers with a `_FillValue` into floats, so a column
        that is complete should not have one.
        """
        for column in self._columns.values():
            if column.kind in ("int", "bool"):
                dataset = self.group[column.name]
                declare_missing(dataset, column.kind, bool((dataset[:] == _FILLS[column.kind]).any()))

    def _make(self, key: str, name: str, kind: Kind) -> None:
        dataset = hdf5.make_variable(
            self.group,
            name,
            _DTYPES[kind],
            (self.dimension,),
            chunks=self.dimension.chunks,
            fill=_FILLS[kind],
        )
        describe(dataset, key, kind)

    def _promote(self, key: str, column: _Scalar, kind: Kind) -> None:
        old = self.group[column.name][:]
        untouched = hdf5.is_untouched(self.group[column.name])
        values = None if untouched else to_array(from_array(old, column.kind), kind)
        hdf5.remove_variable(self.group, column.name)
        self._make(key, column.name, kind)
        column.kind = kind
        if values is not None:
            hdf5.write_rows(self.group[column.name], 0, values)


def describe(dataset: h5py.Dataset, key: str, kind: Kind) -> None:
    """Give a new value dataset its attributes."""
    hdf5.set_text(dataset, "long_name", hdf5.clean_text(key))
    hdf5.set_text(dataset, "value_type", kind)
    if dataset.name.rpartition("/")[2] != key:
        hdf5.set_text(dataset, "key", hdf5.clean_text(key))
    if kind in ("int", "bool"):
        declare_missing(dataset, kind, True)


def declare_missing(dataset: h5py.Dataset, kind: Kind, missing: bool) -> None:
    """Set the attributes by which readers tell missing integers and booleans.

    Without missing ones a bool is int8 with the attribute dtype = "bool",
    which xarray decodes; it would decode a missing one to True, so with
    missing ones it is a flag variable with a `_FillValue`.
    """
    if missing == ("_FillValue" in dataset.attrs) and (missing or kind == "int" or "dtype" in dataset.attrs):
        return
    for name in ("_FillValue", "dtype", "flag_values", "flag_meanings"):
        dataset.attrs.pop(name, None)
    if missing:
        dataset.attrs["_FillValue"] = np.array(_FILLS[kind], dataset.dtype)
        if kind == "bool":
            hdf5.set_flags(dataset, (("false", 0), ("true", 1)))
    elif kind == "bool":
        hdf5.set_text(dataset, "dtype", "bool")


def stored_kind(dataset: Any) -> Kind | None:
    """Return the kind of a value dataset; None for dimension scales and groups."""
    if not isinstance(dataset, h5py.Dataset):
        return None
    text = hdf5.attribute(dataset, "value_type")
    return next((kind for kind in _KINDS if kind == text), None)
