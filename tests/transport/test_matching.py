"""Which launcher goes with which MPI library, told before MPI_Init."""

from __future__ import annotations

import pytest

from keystone_mpi.transport.matching import known_mismatch, needs_short_requests, way_out

MPICH = "MPICH Version:      5.0.2\nMPICH configure:    --with-device=ch4:ucx,ofi"
MPICH_PMIX = MPICH + " --with-pmix=/usr"
OPEN_MPI = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution"
SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "3"}
PMIX = {**SRUN, "PMIX_NAMESPACE": "slurm.pmix.1.0"}
PRTE = {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prterun-1"}


@pytest.mark.parametrize(
    ("library", "environ", "words"),
    [
        (MPICH, PMIX, "PMIx"),
        (MPICH, PRTE, "Open MPI's mpiexec"),
        (MPICH_PMIX, PMIX, ""),
        (MPICH, SRUN, ""),
        (OPEN_MPI, PMIX, ""),
        (OPEN_MPI, PRTE, ""),
        (MPICH, {}, ""),
    ],
)
def test_known_mismatches(library: str, environ: dict[str, str], words: str) -> None:
    problem = known_mismatch(library, environ)
    assert bool(problem) == bool(words)
    assert words in problem


def test_the_way_out_names_the_flag_of_the_library_that_was_found() -> None:
    assert "srun --mpi=pmi2" in way_out(MPICH, SRUN)
    assert "srun --mpi=pmix" in way_out(OPEN_MPI, SRUN)
    assert "mpiexec that came with" in way_out(OPEN_MPI, {})
    assert "mpiexec that came with" in way_out(MPICH, {**SRUN, "MPI_LOCALNRANKS": "1"})


UCX_OFI = "MPICH Version:      5.0.2\nMPICH Device:       ch4:ucx ofi\nMPICH configure:    --with-pm=hydra"
PMI2 = {**SRUN, "PMI_FD": "11"}


@pytest.mark.parametrize(
    ("library", "environ", "expected"),
    [
        (UCX_OFI, PMI2, True),
        (UCX_OFI.replace("ucx ofi", "ucx"), PMI2, True),
        (UCX_OFI, {**PMI2, "MPIR_CVAR_CH4_NETMOD": "UCX"}, True),
        (UCX_OFI, SRUN, False),
        (UCX_OFI, {**PMI2, "MPI_LOCALNRANKS": "1"}, False),
        (UCX_OFI, {**PMI2, "MPIR_CVAR_CH4_NETMOD": "ofi"}, False),
        (UCX_OFI.replace("ucx ofi", "ofi ucx"), PMI2, False),
        (OPEN_MPI, PMI2, False),
    ],
)
def test_who_needs_a_relay_to_slurm(library: str, environ: dict[str, str], expected: bool) -> None:
    assert needs_short_requests(library, environ) is expected
