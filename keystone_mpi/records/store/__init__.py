"""The results file: HDF5 that is valid netCDF4, replaced whole, never modified.

Rule: the visible file is sound at every moment. A fold copies it to a hidden
temp beside it, adds what the journal says, syncs, and renames it over the
output. Truth = file + journal behind the file's `journal_offset`.

    OUT --copy--> .OUT.next-* --apply journal[offset:]--> close, fsync --rename--> OUT (next generation)

Only this package imports h5py, and only when a function is called: importing
`keystone_mpi.records.store` is cheap.

    schema.py      columns, units, meanings          hdf5.py        the typed facade over h5py
    values.py      /params and /results on demand    arrays.py      array results
    output.py      /output                           applying.py    one batch of entries into an open file
    generation.py  copy, sync, rename, clean up      inspecting.py  whose file it is
    shards.py      large values                      folding.py     the fold
    reading.py     read-only snapshots for views
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["int", "float", "str", "bool"]


class ColumnSource(Protocol):
    """Parameters of the tasks that a run adds to the file, made by slices."""

    def kinds(self) -> Mapping[str, Kind]:
        """Return the parameters' names, in order, and their types."""

    def implied(self) -> Mapping[str, Any]:
        """Return the values that parameters new with this start have in the rows before."""

    def columns(self, start_row: int, stop_row: int) -> Mapping[str, NDArray[Any]]:
        """Return the values of added rows `start_row` to `stop_row`; row 0 is the first added task."""


class FoldResult(msgspec.Struct, frozen=True):
    """What a fold did."""

    generation: str
    """Identity of the file's present content; empty: there is no file yet."""
    journal_offset: int
    """How far the journal is in the file."""
    entries: int
    """Journal entries that this fold added."""
    attempts: int
    """Rows that this fold added to /attempts."""
    state: str
    """``running``, ``complete`` or ``interrupted``."""
    file_bytes: int
    elapsed_s: float
    closed: bool
    """Whether the journal's last entry is in the file; False: the master died, or the journal is damaged."""
    changed: bool
    """Whether a new generation was made; False: there was nothing to add."""


def fold(output_path: Path, journal_path: Path, columns: ColumnSource | None, *, final: bool) -> FoldResult:
    """Make the next generation of the results file from the present one and the journal.

    Parameters
    ----------
    output_path, journal_path : Path
        The HDF5 file, which need not exist yet, and the journal beside it.
    columns : ColumnSource or None
        Parameters of the tasks that this start of the run added; used in the
        first generation of the epoch. None: /params gets no values for them.
    final : bool
        The run is over. Attempts in flight become INTERRUPTED when the
        journal was not closed in order, and the state becomes ``complete`` or
        ``interrupted``. `finish` is to be called next.

    Raises
    ------
    OutputError
        The file is not ours, is another run's, or was written by a newer version.
    ClusterError
        The disk is full or broken, or does not give a large value, or that
        value is so young that it may still come. The visible file is
        untouched; try again.
    LeaseHeldError
        A later start of the run owns the file.
    """
    from keystone_mpi.records.store.folding import fold as run

    return run(output_path, journal_path, columns, final=final)


def finish(output_path: Path) -> list[str]:
    """Remove journal, shards and drain request of a run whose final fold succeeded.

    A journal with more in it than a kill leaves behind its last entry is
    damaged: it is renamed to ``OUT.journal.damaged``, and the shards stay.

    Returns
    -------
    list of str
        What is missing in the file, for people.

    Raises
    ------
    InternalError
        The file does not hold the whole journal.
    """
    from keystone_mpi.records.store.folding import finish as run

    return run(output_path)
