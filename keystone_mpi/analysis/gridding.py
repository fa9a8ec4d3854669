"""A sweep as an N-dimensional dataset: parameters become coordinates.

Rule: what the file holds decides, the sweep says which columns are axes. Each
parameter of the grid is a dimension; columns that advance together (zip,
table, sample) share one; derived values are coordinates along them. Holes are
NaN; points that were run several times get the dimension `replicate`. Where a
grid would be mostly holes, the tasks stay a list.

    /params columns --(factorise)--> codes --> cell of every task --(scatter)--> N-d arrays
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.analysis.contents import Contents
from keystone_mpi.analysis.libraries import load
from keystone_mpi.core.model import TaskState

Array = NDArray[Any]

REPLICATE = "replicate"
LARGEST_RATIO = 4.0
"""Cells per task above which a grid is mostly holes."""
LABELS = {"state": "state of the task", "duration_s": "wall time of the last attempt"}


@dataclass(frozen=True, slots=True)
class _Axis:
    name: str
    size: int
    codes: NDArray[np.int64]
    """Position of every task along it."""
    coordinates: dict[str, Array]
    """Values along it; of the name of the axis itself, or of the columns that share it."""


def to_xarray(
    contents: Contents,
    names: tuple[str, ...] = (),
    *,
    rows: NDArray[np.int64] | None = None,
    layout: str = "auto",
) -> Any:
    """Make a labelled dataset; see `Run.to_xarray`."""
    xarray = load("xarray", "a labelled dataset")
    count = contents.task_count if rows is None else len(rows)
    axes = [] if layout == "tasks" else _axes(contents, rows)
    cells = int(np.prod([axis.size for axis in axes], dtype=np.float64)) if axes else 0
    if not axes or (layout == "auto" and cells > LARGEST_RATIO * max(count, 16)):
        return _as_list(xarray, contents, names, rows)
    cell, axes = _cells(axes, count)
    shape = tuple(axis.size for axis in axes)
    dims = tuple(axis.name for axis in axes)
    in_order = cell is None
    coords: dict[str, Any] = {}
    for axis in axes:
        for name, values in axis.coordinates.items():
            coords[name] = ((axis.name,), values, _attributes(contents, name))
    for name in _derived(contents):
        if name not in coords:
            values = _scatter(_taken(contents.param(name), rows), cell, shape)
            coords[name] = (dims, values, _attributes(contents, name))
    # Where each point lies in the file: from a cell that stands out back to `keystone-mpi show`.
    task = np.arange(contents.task_count) if rows is None else rows
    coords["task"] = (dims, _scatter(task, cell, shape, fill=-1), {"long_name": "row of the task; -1: none"})
    data: dict[str, Any] = {}
    for name in names or _default_names(contents):
        values = _taken(contents.value(name), rows)
        own = _own_dimensions(contents, name, {*dims, *coords})
        label = name if name not in coords and name not in dims else f"{name}_result"
        scattered = values.reshape(shape + values.shape[1:]) if in_order else _scatter(values, cell, shape)
        data[label] = (dims + own, scattered, _attributes(contents, name))
    return xarray.Dataset(data, coords, _dataset_attributes(contents))


def _as_list(xarray: Any, contents: Contents, names: tuple[str, ...], rows: NDArray[np.int64] | None) -> Any:
    """Return the tasks as one dimension, with their parameters as coordinates along it."""
    task = np.arange(contents.task_count) if rows is None else rows
    coords: dict[str, Any] = {"task": (("task",), task, {"long_name": "row of the task"})}
    for name in contents.params:
        label = name if name != "task" else "task_param"
        coords[label] = (("task",), _taken(contents.param(name), rows), _attributes(contents, name))
    data: dict[str, Any] = {}
    for name in names or _default_names(contents):
        own = _own_dimensions(contents, name, {"task", *coords})
        label = name if name not in coords else f"{name}_result"
        data[label] = (("task", *own), _taken(contents.value(name), rows), _attributes(contents, name))
    return xarray.Dataset(data, coords, _dataset_attributes(contents))


def _default_names(contents: Contents) -> list[str]:
    """Return all results, and where each task stands."""
    return [*contents.results, *(name for name in LABELS if name not in contents.results)]


def _derived(contents: Contents) -> list[str]:
    return [name for name in contents.space.get("derived", {}) if name in contents.params]


def _taken(values: Array, rows: NDArray[np.int64] | None) -> Array:
    return values if rows is None else values[rows]


def _own_dimensions(contents: Contents, name: str, taken: set[str]) -> tuple[str, ...]:
    """Return names for the dimensions of an array result that clash with nothing."""
    if name in contents.params or name not in contents.results or contents.results[name].rank == 0:
        return ()
    return tuple(
        dimension if dimension not in taken else f"{dimension}_" for dimension in contents.dimensions(name)
    )


def _attributes(contents: Contents, name: str) -> dict[str, Any]:
    if name in contents.params or name in contents.results:
        return {"long_name": name}
    attributes: dict[str, Any] = {"long_name": LABELS.get(name, name)}
    if name == "state":
        attributes["flag_values"] = np.array([int(state) for state in TaskState], np.int8)
        attributes["flag_meanings"] = " ".join(state.name for state in TaskState)
    elif name.endswith("_s"):
        attributes["units"] = "s"
    return attributes


def _dataset_attributes(contents: Contents) -> dict[str, str]:
    return {
        "title": contents.name,
        "run_id": contents.run_id,
        "state": contents.phase,
        "source": str(contents.path),
    }


# ------------------------------------------------------------------------ axes


def _axes(contents: Contents, rows: NDArray[np.int64] | None) -> list[_Axis]:
    """Return the dimensions that the sweep's parameters span; the first varies slowest."""
    present = [name for name in contents.params if name not in _derived(contents)]
    shared = _shared_columns(contents, present)
    together = {name for names in shared.values() for name in names}
    axes = []
    for name in present:
        if name in together:
            continue
        values = _taken(contents.param(name), rows)
        codes, uniques = factorise(values)
        axes.append(_Axis(name, len(uniques), codes, {name: uniques}))
    for label, names in shared.items():
        axes.append(_shared_axis(contents, label, names, rows, {*present}))
    # `replicate` varies fastest, as in the sweep.
    return sorted(axes, key=lambda axis: axis.name == REPLICATE)


def _shared_columns(contents: Contents, present: list[str]) -> dict[str, list[str]]:
    """Return the groups of columns that advance together, by the sweep's word for them."""
    groups = [(rows["source"], rows["names"]) for rows in contents.space.get("rows", [])]
    sample = contents.space.get("sample")
    if sample:
        groups.append(("sample", [ranges["name"] for ranges in sample["ranges"]]))
    found: dict[str, list[str]] = {}
    for label, names in groups:
        kept = [name for name in names if name in present]
        if len(kept) > 1:
            found[label if label not in found else f"{label}_{len(found)}"] = kept
    return found


def _shared_axis(
    contents: Contents, label: str, names: list[str], rows: NDArray[np.int64] | None, taken: set[str]
) -> _Axis:
    columns = [_taken(contents.param(name), rows) for name in names]
    combined = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        codes, uniques = factorise(column)
        combined = combined * max(len(uniques), 1) + codes
        # Numbered anew each time, so that the product of all cannot overflow.
        combined = np.unique(combined, return_inverse=True)[1].astype(np.int64)
    # In the order in which they first occur: the order of the table.
    _, first, codes = np.unique(combined, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    rows_of = first[order]
    coordinates = {name: column[rows_of] for name, column in zip(names, columns, strict=True)}
    return _Axis(label if label not in taken else f"{label}_point", len(order), place[codes], coordinates)


def factorise(values: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the code of every value and the distinct values: numbers ascending, texts as they come."""
    pandas = load("pandas", "a labelled dataset")
    codes, uniques = pandas.factorize(values, use_na_sentinel=False)
    uniques = np.asarray(uniques)
    if uniques.dtype == object:
        return codes.astype(np.int64, copy=False), uniques
    order = np.argsort(uniques, kind="stable")
    if (order == np.arange(len(order))).all():
        return codes.astype(np.int64, copy=False), uniques
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[codes], uniques[order]


def _cells(axes: list[_Axis], count: int) -> tuple[NDArray[np.int64] | None, list[_Axis]]:
    """Return the cell of every task, None when they come in order, and the axes with a `replicate`."""
    cell = np.zeros(count, np.int64)
    for axis in axes:
        cell *= axis.size
        cell += axis.codes
    cells = int(np.prod([axis.size for axis in axes], dtype=np.int64))
    if cells == count and (np.diff(cell) == 1).all():
        return None, axes
    occupancy = np.bincount(cell, minlength=cells)
    most = int(occupancy.max(initial=1))
    if most == 1:
        return cell, axes
    # Number of times that the point had come before.
    order = np.argsort(cell, kind="stable")
    starts = np.concatenate([[0], np.cumsum(occupancy)[:-1]])
    occurrence = np.empty(count, np.int64)
    occurrence[order] = np.arange(count) - starts[cell[order]]
    name = REPLICATE if all(axis.name != REPLICATE for axis in axes) else "occurrence"
    axis = _Axis(name, most, occurrence, {name: np.arange(most)})
    return cell * most + occurrence, [*axes, axis]


def _scatter(
    values: Array, cell: NDArray[np.int64] | None, shape: tuple[int, ...], *, fill: Any = None
) -> Array:
    """Put the value of every task into its cell; the others are holes."""
    if cell is None:
        return values.reshape(shape + values.shape[1:])
    cells = int(np.prod(shape, dtype=np.int64))
    if cells == len(values):
        # A full grid in another order: no holes, so integers stay integers.
        scattered = np.empty((cells, *values.shape[1:]), values.dtype)
    elif fill is not None:
        scattered = np.full((cells, *values.shape[1:]), fill, values.dtype)
    elif values.dtype == object:
        scattered = np.full((cells, *values.shape[1:]), "", object)
    else:
        dtype = np.result_type(values.dtype, np.float32) if values.dtype.kind in "biu" else values.dtype
        scattered = np.full((cells, *values.shape[1:]), np.nan, dtype)
    scattered[cell] = values
    return scattered.reshape(shape + values.shape[1:])
