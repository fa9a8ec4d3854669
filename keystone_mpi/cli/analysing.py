"""What the commands that explain a run share: opening it, choosing tasks, where to write.

Rule: reading only: a run that is going on or died is looked at, never touched.

    FILE --open_for_analysis--> Run --chosen("mesh_size=64")--> Run of fewer tasks
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from keystone_mpi.cli.opening import find_output
from keystone_mpi.core.errors import UserError

if TYPE_CHECKING:
    from keystone_mpi.analysis.run import Run

SELECT_HELP = "Only tasks with this value, such as mesh_size=64, kappa=0.5,1.0, x=0:10 or state=FAILURE."


def open_for_analysis(path: Path, conditions: tuple[str, ...] = ()) -> Run:
    """Open a run and choose the tasks that meet all conditions.

    Raises
    ------
    UserError
        There is no such run, a condition cannot be read, or no task meets them.
    """
    from keystone_mpi.analysis.run import open_run

    run = open_run(find_output(path))
    if not conditions:
        return run
    chosen = run.select(**dict(_condition(text) for text in conditions))
    if not len(chosen):
        raise UserError(f"{path}: no task has {' and '.join(conditions)}")
    return chosen


def _condition(text: str) -> tuple[str, Any]:
    """Read ``name=value``, ``name=a,b,c`` or ``name=low:high``."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UserError(f"--select {text!r}: allowed are NAME=VALUE, NAME=A,B,... and NAME=LOW:HIGH")
    if value.count(":") == 1:
        low, _, high = value.partition(":")
        ends = [_value(end) if end else None for end in (low, high)]
        if all(end is None or isinstance(end, int | float) for end in ends):
            return name, slice(*ends)
    if "," in value:
        return name, [_value(part) for part in value.split(",")]
    return name, _value(value)


def _value(text: str) -> Any:
    """Read a number, true or false; anything else is text."""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return found if isinstance(found, int | float | bool) else text


def output_beside(path: Path, suffix: str) -> Path:
    """Return where a picture or page of a run goes by default: the present folder, named after the run."""
    return Path.cwd() / f"{path.stem}{suffix}"
