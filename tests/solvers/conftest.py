"""Fixtures of the tests with real solvers."""

from __future__ import annotations

from pathlib import Path

import pytest
from solvers_support import make_system_python


@pytest.fixture(scope="session")
def system_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python whose mpi4py loads the distribution's MPI."""
    return make_system_python(tmp_path_factory.mktemp("system-mpi") / "venv")
