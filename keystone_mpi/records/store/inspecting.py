"""Inspecting: who a results file is, before anything else is read or done.

Rule: a file that is not ours is refused with one clear line and never touched.

    OUT --signature--> HDF5? --format attribute--> ours? --format_version--> known? --> Present
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import h5py
import msgspec
import numpy as np

from keystone_mpi.core.errors import ClusterError, OutputError
from keystone_mpi.records.store import hdf5, schema
from keystone_mpi.records.tail import Flight

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Present(msgspec.Struct, frozen=True):
    """What the visible file says of itself."""

    run_id: str
    generation: str
    state: str
    journal_epoch: int
    journal_offset: int
    task_count: int
    closed_state: str
    """State that the journal's last entry gave, when it is in the file; empty: not closed yet."""
    closed_reason: str


def inspect(output_path: Path) -> Present | None:
    """Read who the visible file is; None when there is none.

    Raises
    ------
    OutputError
        It is not ours, or a newer version wrote it.
    ClusterError
        It is an HDF5 file that cannot be read.
    """
    opened = open_ours(output_path)
    if opened is None:
        return None
    opened[0].close()
    return opened[1]


def open_ours(output_path: Path) -> tuple[h5py.File, Present] | None:
    """Open the visible file for reading and read who it is; raises as `inspect` does."""
    try:
        with open(output_path, "rb") as raw:
            signature = raw.read(len(_SIGNATURE))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClusterError(f"{output_path} cannot be read: {error.strerror}") from error
    if signature != _SIGNATURE:
        raise OutputError(
            f"{output_path} is not a results file of keystone_mpi (not HDF5); choose another output"
        )
    file: h5py.File | None = None
    try:
        file = hdf5.open_reader(output_path)
        return file, read_present(file, output_path)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, KeyError) as error:
        if file is not None:
            file.close()
        raise ClusterError(f"{output_path} is damaged and cannot be read: {reason_of(error)}") from error
    except OutputError:
        if file is not None:
            file.close()
        raise


def read_present(file: h5py.File, output_path: Path) -> Present:
    """Read the identity of an open file."""
    if hdf5.attribute(file, "format") != schema.FORMAT:
        raise OutputError(
            f"{output_path} is an HDF5 file that keystone_mpi did not make; choose another output"
        )
    version = int(file.attrs["format_version"])
    if version > schema.FORMAT_VERSION:
        raise OutputError(
            f"{output_path} has format version {version}, this keystone_mpi knows up to "
            f"{schema.FORMAT_VERSION}: written by a newer keystone_mpi; upgrade"
        )
    return Present(
        run_id=hdf5.attribute(file, "run_id"),
        generation=hdf5.attribute(file, "generation"),
        state=hdf5.attribute(file, "state"),
        journal_epoch=int(file.attrs["journal_epoch"]),
        journal_offset=int(file.attrs["journal_offset"]),
        task_count=int(file["task"].shape[0]),
        closed_state=hdf5.attribute(file, "closed_state"),
        closed_reason=hdf5.attribute(file, "state_reason"),
    )


def read_in_flight(file: h5py.File) -> dict[tuple[int, int], Flight]:
    """Read the attempts that had not ended when the file was made."""
    if "in_flight" not in file:
        return {}
    group = file["in_flight"]
    names = ("task_index", "number", "worker", "assigned", "started")
    rows = zip(*(np.asarray(group[name][:]).tolist() for name in names), strict=True)
    return {
        (index, number): Flight(worker, assigned, started)
        for index, number, worker, assigned, started in rows
    }


def reason_of(error: Exception) -> str:
    """Find the operating system's words in what h5py says."""
    text = str(error)
    number = re.search(r"errno = (\d+)", text)
    if number:
        return os.strerror(int(number.group(1)))
    if isinstance(error, OSError) and error.strerror and error.errno:
        return error.strerror
    return text.splitlines()[0] if text else type(error).__name__
