"""The MPI transport keeps the promises of every transport, under mpiexec, with matched probes and without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.multirank

PROGRAM = Path(__file__).with_name("mpi_transport_program.py")


@pytest.mark.parametrize("matched_probe", ["1", "0"])
def test_the_suite_under_mpiexec(mpiexec, matched_probe: str) -> None:
    done = mpiexec(
        [sys.executable, PROGRAM], n=3, timeout_s=120, env={"KEYSTONE_MPI_MPROBE": matched_probe}
    ).check(0)
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
