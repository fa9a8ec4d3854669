"""How the commands that read a run get at it.

Rule: reading takes no lock and disturbs nothing. A file that is not there is
told with what there is instead. A run that is known to have died is brought to
its end first, as its next start would do; one that is only silent is let alone.

    path --find_output--> results file --open_run--> RunView
                                       --open_recovered--> RunView, what was done
"""

from __future__ import annotations

import difflib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from keystone_mpi.cli import wording
from keystone_mpi.core.errors import ClusterError, OutputError

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
    sibling = path.with_suffix(".h5")
    if path.suffix != ".h5" and sibling.exists() and path.is_file() and not _is_hdf5(path):
        raise OutputError(f"{path}: is no results file; its results are in {wording.path(sibling)}")
    if path.exists() or path.with_name(f"{path.name}.journal").exists():
        return path
    raise OutputError(f"{path}: no such results file{_near(path)}")


def open_run(path: Path) -> RunView:
    """Open a results file together with its journal, if it has one."""
    from keystone_mpi.engine.columns import columns_from_spec
    from keystone_mpi.records.view import open_view

    return open_view(find_output(path), columns_from_spec)


def open_recovered(path: Path) -> tuple[RunView, str, str]:
    """Open a run, after putting the journal of one that is gone into its file.

    Returns
    -------
    view : RunView
        The run as it is now.
    phase : str
        What it was before: ``running``, ``complete``, ``interrupted``, ``died``
        or ``silent`` (whether it died cannot be known from here).
    recovery : str
        What was done about its journal; empty when there was nothing to do.
    """
    from keystone_mpi.engine.columns import columns_from_spec
    from keystone_mpi.records.view import recover
    from keystone_mpi.slurm.allocation import job_is_gone

    view = open_run(path)
    phase = view.phase
    if not view.needs_recovery:
        return view, phase, ""
    missing: list[str] = []
    try:
        if not recover(find_output(path), columns_from_spec, is_gone=job_is_gone, notice=missing.append):
            # Another process is at it, the run was continued this very moment, or its master may live.
            view.close()
            view = open_run(path)
            return view, *_silence(view)
    except (OSError, ClusterError) as error:
        # Reading works all the same: file and journal together hold everything.
        return view, phase, f"its journal is not in the file yet ({error}); the next start does it"
    view.close()
    done = "; ".join(missing) or "nothing that was recorded is lost"
    return open_run(path), phase, f"its journal is in the file now: {done}"


def _silence(view: RunView) -> tuple[str, str]:
    """Return the phase of a run that was not recovered, and what to say of it."""
    if not view.is_silent or view.lease is None:
        return view.phase, ""
    silent_s = max(0.0, time.time() - view.lease.stamp)
    return "silent", (
        f"{view.lease.holder()} was last heard of {wording.duration(silent_s)} ago: it is dead, suspended, "
        "or cut off from the disk. Its journal is left alone; all that was recorded is shown here"
    )


def _is_hdf5(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return True  # opening it will tell why it cannot be read


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
