"""LAMMPS's thermo output, read from its screen while it prints.

Rule: line by line, bounded memory: the last row is kept, and the whole table
only when it is asked for, up to a limit.

    "Per MPI rank memory allocation ..."  -->  header line  -->  rows  -->  "Loop time of ..."
    one line (Step Temp ...), multi (TotEng = ...) and yaml (keywords:, data:) styles

Results: a scalar per thermo keyword, as LAMMPS spells it (``Temp``, ``TotEng``,
``c_msd[4]``), from the last row; with the whole table also ``thermo``, an
array (row, column), and ``thermo_columns``, its column names in one text. Rows
of several ``run`` commands are joined while their columns are the same;
otherwise the last command's stay.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from typing import Any

from keystone_mpi.core.model import ArrayValue
from keystone_mpi.tools.arrays import ResultFormatError, array_from_numbers

LONGEST_LINE_BYTES = 1 << 16
LARGEST_TABLE = 1 << 24
"""Numbers in the whole table; beyond, it is an error of the script that prints so often."""

_BEFORE_HEADER = (b"Per MPI rank memory allocation", b"Memory usage per processor")
_WHOLE = frozenset({"Step", "Atoms", "Elapsed"})
_PAIR = re.compile(r"(\S+)\s+=\s+(\S+)")


class LammpsLog:
    """Reads one attempt's screen output.

    Parameters
    ----------
    whole_table : bool
        Keep every row, not only the last.
    """

    def __init__(self, whole_table: bool = False) -> None:
        self._whole_table = whole_table
        self._carry = b""
        self._columns: list[str] = []
        self._last: list[float] = []
        self._rows = array("d")
        self._style = ""
        """"": outside of a table; header, line, multi, yaml: what comes next."""
        self._too_large = False
        self._block: dict[str, float] = {}
        """The pairs of the multi style's present block."""

    def feed(self, chunk: bytes) -> None:
        """Take a piece of the screen."""
        lines = (self._carry + chunk).split(b"\n")
        self._carry = lines.pop()[-LONGEST_LINE_BYTES:]
        for line in lines:
            if self._style or line.startswith(_BEFORE_HEADER):
                self._line(line)

    def finish(self, folder: str) -> Mapping[str, Any]:  # noqa: ARG002 - of the protocol
        """Return the results."""
        if self._carry:
            self.feed(b"\n")
        self._end_block()
        if self._too_large:
            raise ResultFormatError(
                f"the thermo table has more than {LARGEST_TABLE} numbers; print less often (thermo N)"
            )
        values: dict[str, Any] = {
            name: _typed(name, value) for name, value in zip(self._columns, self._last, strict=False)
        }
        if self._whole_table and self._columns and self._rows:
            width = len(self._columns)
            rows = self._rows.tolist()
            table = array_from_numbers([rows[at : at + width] for at in range(0, len(rows), width)])
            if isinstance(table, ArrayValue):
                values["thermo"] = table
                values["thermo_columns"] = " ".join(self._columns)
        return values

    def _line(self, line: bytes) -> None:
        words = line.split()
        if line.startswith(_BEFORE_HEADER):
            self._style = "header"
        elif line.startswith((b"Loop time of", b"ERROR")):
            self._end_block()
            self._style = ""
        elif not words:
            return
        elif self._style == "header":
            self._begin_table(line, words)
        elif self._style == "multi":
            self._multi(line)
        elif self._style == "yaml":
            self._yaml(line)
        else:
            self._row([word.decode("utf-8", "replace") for word in words])

    def _begin_table(self, line: bytes, words: list[bytes]) -> None:
        if words[0].startswith(b"------"):
            self._style = "multi"
            self._multi(line)
        elif words[0] == b"---":
            self._style = "yaml"
        else:
            self._style = "line"
            self._begin_columns([word.decode("utf-8", "replace") for word in words])

    def _begin_columns(self, columns: list[str]) -> None:
        if columns != self._columns:
            self._columns = columns
            self._last = []
            self._rows = array("d")

    def _row(self, cells: list[str]) -> None:
        """Take a row; whatever else is printed in between (a warning, a fix) is passed over."""
        if len(cells) != len(self._columns):
            return
        try:
            numbers = [float(cell) for cell in cells]
        except ValueError:
            return
        self._keep(numbers)

    def _keep(self, numbers: list[float]) -> None:
        self._last = numbers
        if self._whole_table and not self._too_large:
            self._rows.extend(numbers)
            self._too_large = len(self._rows) > LARGEST_TABLE

    def _multi(self, line: bytes) -> None:
        """``---- Step 0 ---- CPU = 0 (sec)`` begins a block of ``TotEng = -4.6 KinEng = ...`` lines."""
        text = line.decode("utf-8", "replace")
        if text.startswith("------"):
            self._end_block()
            words = text.split()
            if "Step" in words[:-1]:
                self._pairs([("Step", words[words.index("Step") + 1])])
        else:
            self._pairs(_PAIR.findall(text))

    def _pairs(self, pairs: list[tuple[str, str]]) -> None:
        for name, value in pairs:
            try:
                self._block[name] = float(value)
            except ValueError:
                continue

    def _end_block(self) -> None:
        if self._block:
            self._begin_columns(list(self._block))
            self._keep(list(self._block.values()))
            self._block = {}

    def _yaml(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()
        inside = text[text.find("[") + 1 : text.rfind("]")] if "[" in text else ""
        cells = [cell.strip().strip("'\"") for cell in inside.split(",") if cell.strip()]
        if text.startswith("keywords:"):
            self._begin_columns(cells)
        elif text.startswith("- ["):
            self._row(cells)


def _typed(name: str, value: float) -> int | float:
    return int(value) if name in _WHOLE and value.is_integer() else value
