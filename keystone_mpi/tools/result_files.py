"""The files of `[collect]` rules, read by their suffix, and text turned into values.

Rule: only the standard library and msgspec; a file that cannot be read raises
`ResultFormatError` with one line for people.

    .npy .npz .json .csv .tsv, other text --read_file--> scalar | ArrayValue | dict of them
    "1.0D-3", "42", "converged"           --convert----> number | text
"""

from __future__ import annotations

import math
import os
from typing import Any

import msgspec

from keystone_mpi.tools.arrays import ResultFormatError, array_from_numbers, read_npy, read_npz
from keystone_mpi.tools.recipe import CollectRule

_FILE_LIMIT_BYTES = 1 << 30


def convert(text: str, kind: str, where: str) -> bool | int | float | str:
    """Turn matched text into a value; without a `kind`, a number if it looks like one."""
    text = text.strip()
    try:
        match kind:
            case "str":
                return text
            case "int":
                return int(text)
            case "float":
                return _to_float(text)
            case "bool":
                return _to_bool(text)
            case "":
                return _guess(text)
            case _:
                raise ResultFormatError(f"{where}: unknown type {kind!r}")
    except ValueError:
        raise ResultFormatError(f"{where}: {text[:80]!r} is not of type {kind}") from None


def _to_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Fortran writes 1.0D-3.
        return float(text.replace("D", "E").replace("d", "e"))


def _to_bool(text: str) -> bool:
    lowered = text.lower().strip(".")
    if lowered in ("true", "t", "yes", "on", "1"):
        return True
    if lowered in ("false", "f", "no", "off", "0"):
        return False
    raise ValueError(text)


def _guess(text: str) -> int | float | str:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return _to_float(text)
    except ValueError:
        return text


def parse_json(data: bytes) -> Any:
    """Decode JSON; NaN and Infinity, which Python and others print, are taken too."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        import json

        try:
            return json.loads(data.decode("utf-8", "replace"))
        except RecursionError:
            raise ValueError("nested too deeply") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_bytes(path: str, where: str) -> bytes:
    """Read a whole file; `where` is how error texts name its purpose."""
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_LIMIT_BYTES + 1)
    except OSError as problem:
        raise ResultFormatError(f"{where}: cannot read {path}: {problem.strerror}") from None
    if len(data) > _FILE_LIMIT_BYTES:
        raise ResultFormatError(f"{where}: {path} is larger than 1 GiB")
    return data


def read_file(rule: CollectRule, path: str) -> Any:
    """Read the file of a `[collect]` rule according to its suffix.

    Raises
    ------
    ResultFormatError
        It cannot be read; the text names rule, file and place.
    """
    where = f"collect.{rule.name}"
    suffix = os.path.splitext(path)[1].lower()
    data = read_bytes(path, where)
    match suffix:
        case ".npy":
            return read_npy(data, f"{where}: {path}")
        case ".npz":
            members = read_npz(data, f"{where}: {path}")
            if rule.column:
                return _pick(members, rule.column, where, path)
            if len(members) == 1:
                return next(iter(members.values()))
            return members
        case ".csv" | ".tsv":
            return _csv_column(data.decode("utf-8-sig", "replace"), rule, where, path)
        case ".json":
            try:
                value = parse_json(data)
            except ValueError as problem:
                raise ResultFormatError(f"{where}: {path}: malformed JSON: {problem}") from None
            if rule.column:
                return _pick(value, rule.column, where, path)
            return value
        case _:
            return _text_value(data.decode("utf-8", "replace"), rule, where)


def _pick(value: Any, key: str, where: str, path: str) -> Any:
    """Find a member by its name, or by a path of names joined with dots."""
    if isinstance(value, dict) and key in value:
        return value[key]
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            known = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise ResultFormatError(f"{where}: {path} has no {key!r} (it has: {known[:200]})")
        value = value[part]
    return value


def _csv_column(text: str, rule: CollectRule, where: str, path: str) -> Any:
    import csv

    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    if not rows:
        raise ResultFormatError(f"{where}: {path} is empty")
    header = [name.strip() for name in rows[0]]
    name = rule.column or (header[0] if len(header) == 1 else "")
    if name not in header:
        raise ResultFormatError(f"{where}: {path} has no column {name!r} (it has: {', '.join(header)[:200]})")
    at = header.index(name)
    cells: list[str] = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) <= at:
            raise ResultFormatError(f"{where}: {path}: row {number} has {len(row)} of {len(header)} columns")
        cells.append(row[at].strip())
    if rule.type:
        if not cells:
            raise ResultFormatError(f"{where}: {path} has a header and no rows")
        return convert(cells[-1], rule.type, where)
    numbers: list[int | float] = []
    for number, cell in enumerate(cells, start=2):
        value = _guess(cell) if cell else math.nan
        if isinstance(value, str):
            raise ResultFormatError(f"{where}: {path}: row {number}: {cell[:80]!r} is not a number")
        numbers.append(value)
    return array_from_numbers(numbers)


def _text_value(text: str, rule: CollectRule, where: str) -> Any:
    """Take a text file: one value, or a table of numbers (``#`` begins a comment)."""
    if rule.type:
        return convert(text, rule.type, where)
    lines = [line.split("#", 1)[0].replace(",", " ").split() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if len(lines) == 1 and len(lines[0]) == 1:
        return _guess(lines[0][0])
    try:
        rows = [[_to_float(cell) for cell in line] for line in lines]
    except ValueError:
        return text.strip()
    if not rows:
        return None
    if all(len(row) == 1 for row in rows):
        return array_from_numbers([row[0] for row in rows])
    return array_from_numbers(rows) or text.strip()
