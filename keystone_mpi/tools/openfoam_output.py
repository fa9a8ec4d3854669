"""What an OpenFOAM case leaves: residuals of its logs, and the tables of postProcessing/.

Rule: only files that the attempt wrote, in its own copy of the case; anything
that is no table of numbers is passed over.

    log.<application>, stdout  --> residual.<field>, continuity, courant_max, time, execution_time_s
    postProcessing/<name>/<time>/<table>  --> <name>.<table>, an array (row, column)

A residual is the initial residual of a field's last solve; with the history
asked for, ``residuals.<field>`` is the array of the first one of every time
step. Tables over time (probes, forces) are joined over their start times,
column 0 is the time; sets (``.xy``, ``.csv``) are those of the last time.
Vectors and tensors become columns of their own.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from keystone_mpi.tools.arrays import ResultFormatError, array_from_numbers

LARGEST_FILE_BYTES = 1 << 28
LARGEST_TABLE = 1 << 23
"""Numbers of one table."""

_RESIDUAL = re.compile(
    rb"Solving for (\S+?), Initial residual = (\S+?), Final residual = (\S+?), No Iterations (\d+)"
)
_CONTINUITY = re.compile(rb"continuity errors : sum local = (\S+?), global = (\S+?), cumulative = (\S+)")
_COURANT = re.compile(rb"Courant Number mean: \S+ max: (\S+)")
_TIME = re.compile(rb"Time = (\S+)\s*\Z")
_EXECUTION = re.compile(rb"ExecutionTime = (\S+) s")
_FATAL = b"--> FOAM FATAL"
_MARKS = (b"Solving for", b"Time = ", b"continuity", b"Courant", _FATAL)
_FATAL_LINES = 6
"""What follows the mark and says why."""


class OpenfoamOutput:
    """Gathers the results of one attempt.

    Parameters
    ----------
    history : bool
        Residuals of every time step, too.
    """

    def __init__(self, history: bool = False) -> None:
        self._log = _SolverLog(history)

    def feed(self, chunk: bytes) -> None:
        """Take a piece of standard output: an application's log that went to no file."""
        self._log.feed(chunk)

    def finish(self, folder: str) -> Mapping[str, Any]:
        """Read the logs and tables of the case."""
        self._log.end()
        for path in sorted(glob.glob(os.path.join(folder, "log.*")), key=_age):
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    self._log.feed(chunk)
            self._log.end()
        if self._log.fatal:
            said = " ".join(self._log.fatal.decode("utf-8", "replace").split())
            raise ResultFormatError(said[:500])
        values = self._log.values()
        values.update(_tables(os.path.join(folder, "postProcessing")))
        return values


def _age(path: str) -> tuple[float, str]:
    return os.stat(path).st_mtime, path


class _SolverLog:
    """Residuals and the like, line by line."""

    def __init__(self, history: bool) -> None:
        self._history = history
        self._carry = b""
        self._numbers: dict[str, int | float] = {}
        self._steps: dict[str, list[float]] = {}
        self._seen_in_step: set[str] = set()
        self._fatal_lines = 0
        self.fatal = b""
        """What an application died of; scripts such as Allrun exit with 0 all the same."""

    def feed(self, chunk: bytes) -> None:
        lines = (self._carry + chunk).split(b"\n")
        self._carry = lines.pop()[-4096:]
        for line in lines:
            if self._fatal_lines:
                self._fatal_lines -= 1
                self.fatal += b" " + line.strip()
            elif any(mark in line for mark in _MARKS):
                self._line(line)

    def end(self) -> None:
        self.feed(b"\n")

    def _line(self, line: bytes) -> None:
        if line.startswith(_FATAL):
            if not self.fatal:
                self.fatal = line[4:].strip()
                self._fatal_lines = _FATAL_LINES
        elif found := _RESIDUAL.search(line):
            field = found.group(1).decode("utf-8", "replace")
            self._set(f"residual.{field}", found.group(2))
            if self._history and field not in self._seen_in_step:
                self._seen_in_step.add(field)
                value = self._numbers.get(f"residual.{field}")
                if value is not None:
                    self._steps.setdefault(field, []).append(value)
        elif found := _CONTINUITY.search(line):
            self._set("continuity", found.group(1))
        elif found := _COURANT.search(line):
            self._set("courant_max", found.group(1))
        elif found := _EXECUTION.search(line):
            self._set("execution_time_s", found.group(1))
        elif (found := _TIME.match(line)) is not None:
            self._seen_in_step.clear()
            self._set("time", found.group(1).rstrip(b"s"))

    def _set(self, name: str, text: bytes) -> None:
        try:
            self._numbers[name] = float(text)
        except ValueError:
            return

    def values(self) -> dict[str, Any]:
        values: dict[str, Any] = dict(self._numbers)
        for field, history in self._steps.items():
            values[f"residuals.{field}"] = history
        return values


def _tables(root: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, times in _function_objects(root):
        whole: dict[str, list[list[float]]] = {}
        for time in times:
            folder = os.path.join(root, name, time)
            for file in sorted(os.listdir(folder)):
                path = os.path.join(folder, file)
                if not os.path.isfile(path):
                    continue
                stem, suffix = os.path.splitext(file)
                rows = _rows(path, suffix)
                if not rows:
                    continue
                if suffix in (".xy", ".csv"):
                    whole[f"{name}.{stem}"] = rows
                else:
                    key = f"{name}.{stem if suffix == '.dat' else file}"
                    whole[key] = _joined(whole.get(key, []), rows)
        for key, rows in whole.items():
            if len(rows) * len(rows[0]) > LARGEST_TABLE:
                raise ResultFormatError(f"{key}: the table has more than {LARGEST_TABLE} numbers")
            array = array_from_numbers(rows)
            if array is not None:
                values[key] = array
    return values


def _function_objects(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each function object's name and its times in order."""
    if not os.path.isdir(root):
        return
    for name in sorted(os.listdir(root)):
        folder = os.path.join(root, name)
        if not os.path.isdir(folder):
            continue
        times: list[tuple[float, str]] = []
        for time in os.listdir(folder):
            try:
                times.append((float(time), time))
            except ValueError:
                continue
        yield name, [time for _, time in sorted(times)]


def _joined(before: list[list[float]], after: list[list[float]]) -> list[list[float]]:
    """Join the table of a restart to that of the run before it; the restart's rows win."""
    if not before or len(before[0]) != len(after[0]):
        return after
    start = after[0][0]
    return [row for row in before if row[0] < start] + after


def _rows(path: str, suffix: str) -> list[list[float]]:
    """Read a table of numbers; empty when it is none."""
    if os.path.getsize(path) > LARGEST_FILE_BYTES:
        raise ResultFormatError(f"{path} is larger than {LARGEST_FILE_BYTES >> 20} MiB")
    with open(path, encoding="utf-8", errors="replace") as file:
        rows: list[list[float]] = []
        for number, line in enumerate(file):
            cells = line.split("#", 1)[0].replace("(", " ").replace(")", " ").replace(",", " ").split()
            if not cells or (suffix == ".csv" and number == 0):
                continue
            try:
                rows.append([float(cell) for cell in cells])
            except ValueError:
                return []
    return rows if len({len(row) for row in rows}) == 1 else []
