"""Task file: plain text, each line a shell line, one task each.

Rule: a line is run as it stands; its braces, quotes and ampersands are the
shell's business.  Empty lines and lines that begin with ``#`` are skipped.
There is no continuation with a backslash.  The line's text is the task's one
parameter `command` and its identity; a line that occurs several times gets
replicate numbers, so that every occurrence runs.
"""

from __future__ import annotations

from collections import Counter

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.spec import RowsSpec, SpaceSpec
from keystone_mpi.sweeps.values import REPLICATE, Value
from keystone_mpi.tools.recipe import Recipe
from keystone_mpi.tools.render import LINE_TOOL


def read_task_file(text: str, start_dir: str) -> tuple[Recipe, SpaceSpec]:
    """Return how the lines are run and the space of the lines."""
    lines: list[Value] = []
    for line in text.split("\n"):  # not splitlines: a form feed or U+2028 ends no shell line
        plain = line.strip()
        if plain and not plain.startswith("#"):
            lines.append(plain)
    if not lines:
        raise SweepFileError(None, "", "no task in this file; a task file has one shell line per task")
    if lines[0] in ("[sweep]", "[params]"):
        raise SweepFileError(None, "", "this looks like a sweep file", "name it with the suffix .toml")
    names, columns = ["command"], [lines]
    seen: Counter[Value] = Counter()
    numbers: list[Value] = []
    for plain_line in lines:
        numbers.append(seen[plain_line])
        seen[plain_line] += 1
    rows = RowsSpec("lines", names, ["str"], columns)
    if len(seen) < len(lines):
        rows = RowsSpec("lines", [*names, REPLICATE], ["str", "int"], [*columns, numbers])
    recipe = Recipe(tool=LINE_TOOL, solver_module=True, argv=("{command}",), shell=True, start_dir=start_dir)
    return recipe, SpaceSpec(rows=[rows])
