"""Tables for other programs: CSV, JSON and Parquet.

Rule: written beside and renamed, in blocks of rows, so that no half-written
file stays and memory does not grow with the run. CSV and JSON need no library.

    Run --table_columns--> columns --write_csv | write_json | write_parquet--> file
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystone_mpi.analysis.libraries import load
from keystone_mpi.analysis.run import Run
from keystone_mpi.core.errors import UserError
from keystone_mpi.records.store.schema import ATTEMPTS, TASKS, WORKERS

TableName = Literal["tasks", "attempts", "workers"]
TABLES: tuple[TableName, ...] = ("tasks", "attempts", "workers")
BLOCK_ROWS = 20_000
TASK_COLUMNS: tuple[str, ...] = ("state", "why", "attempts", "started", "finished", "duration_s", "error")


def table_columns(run: Run, table: TableName) -> dict[str, NDArray[Any]]:
    """Return the columns of a table: flags by name, times in seconds since the epoch.

    Array results are left out of ``tasks``: they have no place in a table.
    """
    contents = run.contents
    if table == "tasks":
        found: dict[str, NDArray[Any]] = {"task": run.rows}
        for name in [*run.params, *contents.scalars]:
            values = contents.param(name) if name in contents.params else contents.result(name)
            found[name] = values if len(run) == contents.task_count else values[run.rows]
        shadowed = [name for name in contents.scalars if name in contents.params]
        for name in shadowed:
            found[f"{name}_result"] = contents.result(name)[run.rows]
        schema, names = TASKS, TASK_COLUMNS
    else:
        found = {}
        schema = ATTEMPTS if table == "attempts" else WORKERS
        names = tuple(column.name for column in schema.columns)
    for name in names:
        if not contents.has(schema.group, name):
            continue  # a file of an older version
        match table:
            case "tasks":
                values = contents.fixed(schema.group, name)[run.rows]
            case "attempts":
                values = run.attempt_column(name)
            case "workers":
                values = contents.fixed(schema.group, name)
            case _:
                raise AssertionError(table)
        flags = schema.column(name).flags
        if flags is not None:
            members = np.array([member.name for member in flags], dtype=object)
            values = members[np.clip(values, 0, len(members) - 1)]
        found[name if name not in found else f"task_{name}"] = values
    if table == "attempts":
        hosts = np.array([*run.hosts, ""], dtype=object)
        worker = found["worker"]
        found["host"] = hosts[np.where((worker >= 0) & (worker < len(run.hosts)), worker, len(run.hosts))]
    return found


def write_csv(columns: dict[str, NDArray[Any]], file: IO[str]) -> None:
    """Write a CSV table with a header; missing values are empty."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for block in _blocks(columns):
        writer.writerows(zip(*block, strict=True))


def write_json(columns: dict[str, NDArray[Any]], file: IO[str]) -> None:
    """Write a JSON array of one object per row; missing values are null."""
    file.write("[")
    separator = "\n"
    names = list(columns)
    for block in _blocks(columns):
        for row in zip(*block, strict=True):
            file.write(separator + msgspec.json.encode(dict(zip(names, row, strict=True))).decode())
            separator = ",\n"
    file.write("\n]\n")


def write_parquet(columns: dict[str, NDArray[Any]], path: Path) -> None:
    """Write a Parquet file."""
    pyarrow = load("pyarrow", "Parquet")
    parquet = load("pyarrow.parquet", "Parquet")
    arrays = {
        name: pyarrow.array(values.tolist(), pyarrow.string())
        if values.dtype == object
        else pyarrow.array(values, from_pandas=True)
        for name, values in columns.items()
    }
    parquet.write_table(pyarrow.table(arrays), path)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which it becomes after the block.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _blocks(columns: dict[str, NDArray[Any]]) -> Iterator[list[list[Any]]]:
    count = max((len(values) for values in columns.values()), default=0)
    for start in range(0, count, BLOCK_ROWS):
        yield [_cells(values[start : start + BLOCK_ROWS]) for values in columns.values()]


def _cells(values: NDArray[Any]) -> list[Any]:
    cells: list[Any] = values.tolist()
    if values.dtype.kind == "f":
        return [None if math.isnan(value) else value for value in cells]
    return cells
