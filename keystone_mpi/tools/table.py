"""The table of tools: one line each.

Rule: a new solver is one file beside this one, one line here.
"""

from __future__ import annotations

from keystone_mpi.tools.command import CommandTool
from keystone_mpi.tools.custom import CustomTool
from keystone_mpi.tools.fenicsx import FenicsxTool
from keystone_mpi.tools.lammps import LammpsTool
from keystone_mpi.tools.openfoam import OpenfoamTool
from keystone_mpi.tools.python import PythonTool
from keystone_mpi.tools.tool import Tool

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        CommandTool(),
        PythonTool(),
        FenicsxTool(),
        LammpsTool(),
        OpenfoamTool(),
    )
}


def tool_named(name: str) -> Tool:
    """Return a tool of the table, or the one that the sweep file's ``[tools.NAME]`` defines."""
    return TOOLS.get(name) or CustomTool(name)
