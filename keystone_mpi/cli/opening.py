"""How the commands that read a run get at it and at one of its tasks.

Rule: reading takes no lock and disturbs nothing; a file that is not there or
not ours, or a task that does not exist, is told with what there is instead.

    path --> open_run --> RunView --(task name)--> find_task --> index
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from keystone_mpi.cli import wording
from keystone_mpi.core.errors import OutputError, UserError

if TYPE_CHECKING:
    from keystone_mpi.records.view import RunView

RECORD_SUFFIXES = (".journal", ".lease", ".drain", ".shards", ".work")


def find_output(path: Path) -> Path:
    """Return the output file that `path` means: one of its companions means the file itself.

    Raises
    ------
    OutputError
        There is neither a results file nor a journal; the message names a near match.
    """
    for suffix in RECORD_SUFFIXES:
        if path.name.endswith(suffix):
            path = path.with_name(path.name.removesuffix(suffix))
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name the results file in it{_near(path / 'results.h5')}")
    if path.exists() or path.with_name(f"{path.name}.journal").exists():
        return path
    raise OutputError(f"{path}: no such results file{_near(path)}")


def open_run(path: Path) -> RunView:
    """Open a results file together with its journal, if it has one."""
    from keystone_mpi.engine.columns import columns_from_spec
    from keystone_mpi.records.view import open_view

    return open_view(find_output(path), columns_from_spec)


def find_task(view: RunView, task: str) -> int:
    """Return the row of a task.

    Raises
    ------
    UserError
        The run has no such task; the message says which it has.
    """
    index = view.index_of_id(task)
    if index is not None:
        return index
    if not view.task_count:
        raise UserError(f"{view.path}: holds no tasks")
    raise UserError(
        f"{view.path}: no task {task!r}: it has tasks 0 to {view.task_count - 1:,} "
        f"(`{wording.command('keystone-mpi', 'status', view.path)}` names those that failed)"
    )


def _near(path: Path) -> str:
    """Say which results file was probably meant."""
    sibling = path.with_suffix(".h5")
    if path.suffix != ".h5" and sibling.exists():
        return f"; its results are in {wording.path(sibling)}"
    try:
        names = sorted(other.name for other in path.parent.glob("*.h5"))
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=1) or names[:3]
    if near:
        return f"; {wording.path(path.parent)} has {', '.join(near)}"
    return "; `keystone-mpi run SWEEP` makes one"
