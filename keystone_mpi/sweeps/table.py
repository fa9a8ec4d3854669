"""Table: a CSV file of points, one task per row.

Rule: header required, one kind per column (whole numbers, then floats, then
true/false, then text), no empty cell, and every complaint has a line number.
"""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.blocks import RowsBlock, refuse_repeats
from keystone_mpi.sweeps.reading import Section, read_text
from keystone_mpi.sweeps.spec import RowsSpec
from keystone_mpi.sweeps.values import LARGEST_INT, Kind, Value, canonical_float, check_name

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]*)\Z")
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)\Z", re.IGNORECASE)
_FLAG = re.compile(r"(true|false)\Z", re.IGNORECASE)


def read_table(folder: Path, section: Section) -> RowsSpec:
    """Read ``[table]``; a relative file lies beside the sweep file."""
    name = section.text("file")
    if not name:
        raise section.error("file", "missing; which CSV file holds the points", 'file = "points.csv"')
    path = folder / name
    try:
        text = read_text(path)
    except SweepFileError as error:
        raise section.error("file", str(error)) from None
    try:
        return parse_table(text)
    except SweepFileError as error:
        raise SweepFileError(path, error.where, error.problem, error.hint) from None


def parse_table(text: str) -> RowsSpec:
    """Turn CSV text into columns; messages hold the line but not the file."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    cells: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if not any(cell.strip() for cell in row) and len(row) <= 1:
                continue
            plain = [cell.strip() for cell in row]
            if header is None:
                header = _checked_header(plain, reader.line_num)
                cells = [[] for _ in header]
                continue
            _check_row(plain, header, reader.line_num)
            lines.append(reader.line_num)
            for column, cell in zip(cells, plain, strict=True):
                column.append(cell)
    except csv.Error as error:
        raise SweepFileError(None, f"line {reader.line_num}", f"malformed CSV: {error}") from None
    if header is None:
        raise SweepFileError(None, "", "the table is empty; it needs a header and rows")
    if not lines:
        raise SweepFileError(None, "", "the table has a header but no rows")
    kinds: list[Kind] = []
    columns: list[list[Value]] = []
    for name, column in zip(header, cells, strict=True):
        kind, values = _typed(name, column, lines)
        kinds.append(kind)
        columns.append(values)
    rows = RowsSpec("table", header, kinds, columns)
    refuse_repeats(RowsBlock(rows), "", lambda row: f"line {lines[row]}")
    return rows


def _checked_header(names: list[str], line: int) -> list[str]:
    for position, name in enumerate(names):
        if not name:
            raise SweepFileError(None, f"line {line}", f"column {position + 1} of the header has no name")
        if _NUMBER.match(name):
            raise SweepFileError(
                None,
                f"line {line}",
                f"the header holds the number {name}",
                "the first line names the columns",
            )
        check_name(name, f"line {line}")
        if name in names[:position]:
            raise SweepFileError(None, f"line {line}", f"the column {name} is there twice")
    return names


def _check_row(row: list[str], header: list[str], line: int) -> None:
    if len(row) != len(header):
        raise SweepFileError(
            None,
            f"line {line}",
            f"{len(row)} cell{'s' * (len(row) != 1)} found, {len(header)} expected ({', '.join(header)})",
        )
    if "" in row:
        raise SweepFileError(None, f"line {line}", f"the cell of column {header[row.index('')]} is empty")


def _typed(name: str, cells: list[str], lines: list[int]) -> tuple[Kind, list[Value]]:
    if all(map(_WHOLE.match, cells)):
        whole = [int(cell) for cell in cells]
        if max(max(whole), -min(whole)) > LARGEST_INT:
            at = next(row for row, value in enumerate(whole) if abs(value) > LARGEST_INT)
            raise SweepFileError(
                None, f"line {lines[at]}", f"{cells[at]} in column {name} does not fit 64 bits"
            )
        return "int", list(whole)
    if all(map(_NUMBER.match, cells)):
        numbers = [canonical_float(float(cell)) for cell in cells]
        if not all(map(math.isfinite, numbers)):
            at = next(row for row, number in enumerate(numbers) if not math.isfinite(number))
            raise SweepFileError(None, f"line {lines[at]}", f"{cells[at]} in column {name} is too large")
        return "float", list(numbers)
    if all(map(_FLAG.match, cells)):
        return "bool", [cell.lower() == "true" for cell in cells]
    if all(_NUMBER.match(cell) or _NOT_FINITE.match(cell) for cell in cells):
        at = next(row for row, cell in enumerate(cells) if _NOT_FINITE.match(cell))
        raise SweepFileError(
            None,
            f"line {lines[at]}",
            f"{cells[at]} in column {name} is not a parameter value; only finite numbers are",
        )
    return "str", list(cells)
