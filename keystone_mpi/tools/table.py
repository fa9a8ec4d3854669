"""The table of tools: one line each.

Rule: a new solver is one file beside this one, one line here. A tool is
imported when it is asked for: a sweep uses one of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from keystone_mpi.tools.tool import Tool

_PLACES = {
    "command": "command.CommandTool",
    "python": "python.PythonTool",
    "fenicsx": "fenicsx.FenicsxTool",
    "lammps": "lammps.LammpsTool",
    "openfoam": "openfoam.OpenfoamTool",
}
"""Name of a tool -> module beside this one, and class."""


class _Table(Mapping[str, Tool]):
    """The tools by name."""

    def __init__(self) -> None:
        self._made: dict[str, Tool] = {}

    def __getitem__(self, name: str) -> Tool:
        made = self._made.get(name)
        if made is None:
            module, _, kind = _PLACES[name].partition(".")
            made = self._made[name] = getattr(importlib.import_module(f"keystone_mpi.tools.{module}"), kind)()
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)

    def __contains__(self, name: object) -> bool:
        return name in _PLACES


TOOLS: Mapping[str, Tool] = _Table()


def tool_named(name: str) -> Tool:
    """Return a tool of the table, or the one that the sweep file's ``[tools.NAME]`` defines."""
    if name in TOOLS:
        return TOOLS[name]
    from keystone_mpi.tools.custom import CustomTool

    return CustomTool(name)
