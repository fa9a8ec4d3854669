"""Stored: what a results file says of its sweep, decoded and checked.

Rule: whoever needs the points alone (the writer of the file) imports neither
the tools nor the readers of sweep files.

    spec bytes --stored_spec--> SweepSpec --space_from_spec--> Space     (load.sweep_from_spec: all of it)
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.space import Space
from keystone_mpi.sweeps.spec import SPEC_FORMAT, SweepSpec

PROGRAM_MARK = b'{"program":'
"""How the spec of a Python program's results begins; see records/programs.py."""


def stored_spec(spec: bytes) -> SweepSpec:
    """Decode what `Sweep.spec` gave.

    Raises
    ------
    SweepFileError
        When the spec is of a newer format or damaged.
    """
    if spec.startswith(PROGRAM_MARK):
        raise SweepFileError(None, "", "these are the results of a Python program, there is no sweep")
    try:
        decoded = msgspec.json.decode(spec, type=SweepSpec)
    except msgspec.DecodeError as error:
        raise SweepFileError(None, "", f"the stored sweep cannot be read: {error}") from None
    if decoded.format > SPEC_FORMAT:
        raise SweepFileError(
            None, "", f"the stored sweep has format {decoded.format}; this version reads up to {SPEC_FORMAT}"
        )
    return decoded


def space_from_spec(spec: bytes) -> Space:
    """Return the points of a stored sweep; raises as `stored_spec` does."""
    decoded = stored_spec(spec)
    return Space(decoded.space, Path(decoded.source))
