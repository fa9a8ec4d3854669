"""Reading: a TOML or JSON file into checked tables, one clear line per mistake.

Rule: a key that is not on the list of its table is an error, with a near match
or the table that it belongs to.  Every message names the key, what was found
and what is allowed.

    bytes --(read_document)--> dict --(Section)--> text | whole | number | flag | ...
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.values import describe, near_match

TABLES: dict[str, tuple[str, ...]] = {
    "sweep": (
        "name",
        "command",
        "tool",
        "script",
        "python",
        "case",
        "applications",
        "shell",
        "setup",
        "prefix",
        "where",
        "derived",
        "repeat",
        "seed",
    ),
    "params": (),
    "zip": (),
    "table": ("file",),
    "sample": ("method", "n", "seed", "ranges"),
    "task": (
        "timeout",
        "retries",
        "retries_timeout",
        "retries_memory",
        "retries_lost",
        "cores",
        "launcher",
        "ranks",
        "threads",
        "launcher_flags",
        "launcher_path",
        "memory",
        "gpus",
        "priority",
        "workdir",
        "keep",
        "keep_failed",
        "keep_output",
        "stdin",
        "env",
        "grace",
    ),
    "tools": (),
    "files": (),
    "collect": (),
    "success": ("finite", "required", "regex"),
    "slurm": (
        "nodes",
        "ranks_per_node",
        "cores_per_node",
        "time",
        "partition",
        "account",
        "qos",
        "constraint",
        "reservation",
        "memory",
        "gpus_per_node",
        "launcher",
        "setup",
        "options",
    ),
}
"""Table -> its keys; an empty tuple: the keys are the user's own names."""

TOOL_COMMON_KEYS = (
    "setup",
    "prefix",
    "env",
    "launcher",
    "ranks",
    "threads",
    "launcher_flags",
    "launcher_path",
)
"""Keys that every ``[tools.NAME]`` may hold beside its tool's own."""


def read_text(path: Path) -> str:
    """Read a file that a user named; every failure is one line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SweepFileError(None, "", f"{path} does not exist", near_match(path.name, names)) from None
    except IsADirectoryError:
        raise SweepFileError(None, "", f"{path} is a folder, not a sweep file") from None
    except OSError as error:
        raise SweepFileError(None, "", f"{path} cannot be read: {error.strerror}") from None
    if data.startswith(b"\x89HDF"):
        raise SweepFileError(
            path,
            "",
            "this is an HDF5 file, not a sweep file",
            f"to look at results: keystone-mpi status {path}",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SweepFileError(path, f"line {line}", "not UTF-8 text") from None
    if "\0" in text:
        raise SweepFileError(
            path, f"line {text.count(chr(10), 0, text.index(chr(0))) + 1}", "a NUL byte; not a text file"
        )
    return text


def read_document(text: str, *, json_file: bool) -> dict[str, Any]:
    """Parse TOML, or JSON of the same shape."""
    return _read_json(text) if json_file else _read_toml(text)


def _read_toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$", message)
        line = text.count("\n") + 1
        column = ""
        if found is not None:
            message = message[: found.start()]
            if found.group(1):
                line, column = int(found.group(1)), f", column {found.group(2)}"
        lines = text.split("\n")
        shown = lines[line - 1].strip() if line <= len(lines) else ""
        hint = f"the line is: {shown[:80]}" if shown else ""
        problem = message[:1].lower() + message[1:]
        raise SweepFileError(None, f"line {line}{column}", f"TOML syntax: {problem}", hint) from None
    except RecursionError:
        raise SweepFileError(None, "", "TOML syntax: nested too deeply") from None


def _read_json(text: str) -> dict[str, Any]:
    def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise SweepFileError(None, twice, "the key is there twice")
        return table

    try:
        document = json.loads(text, object_pairs_hook=no_repeats)
    except json.JSONDecodeError as error:
        problem = error.msg[:1].lower() + error.msg[1:]
        raise SweepFileError(
            None, f"line {error.lineno}, column {error.colno}", f"JSON syntax: {problem}"
        ) from None
    except RecursionError:
        raise SweepFileError(None, "", "JSON syntax: nested too deeply") from None
    if not isinstance(document, dict):
        raise SweepFileError(None, "", f"found {describe(document)}; a sweep file is one object of tables")
    return document


class Section:
    """One table of the file, read key by key.

    Parameters
    ----------
    where : str
        The table's own name in messages; empty for the file itself.
    table : object
        What the file holds there.
    allowed : sequence of str, optional
        Its keys; None when they are names of the user's own.
    """

    def __init__(self, where: str, table: object, allowed: Sequence[str] | None = None) -> None:
        self.where = where
        if not isinstance(table, dict):
            raise SweepFileError(None, where, f"found {describe(table)}; this is a table of keys: [{where}]")
        self.table: dict[str, Any] = table
        if allowed is not None:
            for key in table:
                if key not in allowed:
                    raise self._unknown(key, allowed)

    def _unknown(self, key: str, allowed: Sequence[str]) -> SweepFileError:
        hint = near_match(key, allowed)
        exact = [name for name, keys in TABLES.items() if key in keys and name != self.where]
        nested = {"derived": "sweep", "env": "task", "ranges": "sample"}.get(key)
        if self.where and exact:
            hint = f"{key} belongs in [{exact[0]}]"
        elif not self.where and (exact or nested):
            hint = f"write it inside [{nested or exact[0]}]"
        elif not hint and not self.where:
            hint = "parameters belong in [params]"
        what = "table or key" if not self.where else "key"
        return SweepFileError(None, self.key(key), f"unknown {what}; allowed are {', '.join(allowed)}", hint)

    def key(self, name: str) -> str:
        """Return the full name of a key, for messages."""
        shown = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'
        return f"{self.where}.{shown}" if self.where else shown

    def error(self, name: str, problem: str, hint: str = "") -> SweepFileError:
        return SweepFileError(None, self.key(name), problem, hint)

    def wrong(self, name: str, allowed: str, hint: str = "") -> SweepFileError:
        return self.error(name, f"found {describe(self.table[name])}; allowed is {allowed}", hint)

    def has(self, name: str) -> bool:
        return name in self.table

    def text(self, name: str, default: str = "") -> str:
        value = self.table.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a text", f'{name} = "{value}"' if isinstance(value, int | float) else "")
        if "\0" in value:
            raise self.error(name, "a text holds a NUL byte")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        value = self.table.get(name, default)
        allowed = "one of " + ", ".join(f'"{choice}"' for choice in choices)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(name, allowed, near_match(value, choices) if isinstance(value, str) else "")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.table.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, default: int, least: int, most: int = 2**53) -> int:
        value = self.table.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            ceiling = "" if most == 2**53 else f" and at most {most:,}"
            raise self.wrong(name, f"a whole number, at least {least}{ceiling}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.table.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            hint = f'{name} = ["{value}"]' if isinstance(value, str) else ""
            raise self.wrong(name, "a list of texts", hint)
        return tuple(value)

    def section(self, name: str, allowed: Sequence[str] | None = None) -> Section:
        return Section(self.key(name), self.table.get(name, {}), allowed)

    def items(self) -> Mapping[str, Any]:
        return self.table
