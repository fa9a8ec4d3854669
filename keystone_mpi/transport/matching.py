"""Whether a launcher and an MPI library belong together, and what to do when they do not.

Rule: pure. What the library says of itself and what the launcher has put into
the environment are enough to know some mismatches before MPI_Init, which
would abort the process.

    library version, environ --known_mismatch--> problem or ""     --way_out--> what to type instead
                             --needs_short_requests--> yes or no
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_MPIEXEC = (
    "Use the mpiexec that came with this library (for a pip-installed MPI: the one in the same bin/ as "
    "keystone-mpi), or the matching srun --mpi=pmi2 (MPICH) / --mpi=pmix (Open MPI); "
    "keystone-mpi doctor tells which"
)


def is_open_mpi(library: str) -> bool:
    """Tell Open MPI from MPICH and its relatives."""
    return "Open MPI" in library


def by_srun(environ: Mapping[str, str]) -> bool:
    """Tell whether srun itself started this rank, not an mpiexec inside a job."""
    if "OMPI_COMM_WORLD_SIZE" in environ or "MPI_LOCALNRANKS" in environ:
        return False
    return "SLURM_PROCID" in environ and "SLURM_STEP_NUM_TASKS" in environ


def srun_flag(library: str) -> str:
    """Return the option with which srun starts ranks of this library."""
    return "--mpi=pmix" if is_open_mpi(library) else "--mpi=pmi2"


def known_mismatch(library: str, environ: Mapping[str, str]) -> str:
    """Say what is wrong before MPI_Init is called; empty: nothing that is known.

    Parameters
    ----------
    library : str
        All of what MPI_Get_library_version returns.
    environ : mapping
        The rank's variables.
    """
    if is_open_mpi(library):
        return ""
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return "the launcher is Open MPI's mpiexec"
    if by_srun(environ) and "PMIX_NAMESPACE" in environ and "pmix" not in library.lower():
        return "srun was told to speak PMIx (--mpi=pmix), which this library does not understand"
    return ""


def needs_short_requests(library: str, environ: Mapping[str, str]) -> bool:
    """Tell whether this library may hang in MPI_Init under Slurm's pmi2; see `transport.pmi_relay`.

    Parameters
    ----------
    library : str
        All of what MPI_Get_library_version returns.
    environ : mapping
        The rank's variables.
    """
    if not by_srun(environ) or "PMI_FD" not in environ:
        return False
    chosen = environ.get("MPIR_CVAR_CH4_NETMOD") or environ.get("MPICH_CH4_NETMOD")
    if chosen:
        return chosen.lower() == "ucx"
    return re.search(r"^MPICH Device:\s*ch4:ucx", library, re.MULTILINE) is not None


def way_out(library: str, environ: Mapping[str, str]) -> str:
    """Return what to type instead."""
    if by_srun(environ):
        return (
            f"Start it with srun {srun_flag(library)}; `srun --mpi=list` shows what this cluster has, "
            "mpiexec inside the job works, too"
        )
    return _MPIEXEC
