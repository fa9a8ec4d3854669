"""Every solver under every parent MPI: alone, calling MPI_Init, and on two ranks of its own.

Without the scrub most of these pairs hang or abort; with the wrong mpiexec a
parallel solver is silently N solvers of one rank. The whole matrix is behind
``-m soak``; one pair of each parent, the nastiest, always runs.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import h5py
import pytest
from solvers_support import (
    IN_CI,
    PARENTS,
    SYSTEM_MPIEXEC,
    SYSTEM_PYTHON,
    examples,
    has_system_openmpi,
    venv_bin,
)

from keystone_mpi.tools.table import TOOLS

LIMIT_S = 120.0
MPI_SCRIPT = """
from mpi4py import MPI
from keystone_solver import report_result
world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
report_result(ranks=world.size, total=total, library=MPI.Get_library_version())
"""
SOLVERS = {
    "dolfinx": 'tool = "fenicsx"\nscript = "poisson.py"',
    "lmp": 'tool = "lammps"\nscript = "in.nve"',
    "icoFoam": 'tool = "openfoam"\ncase = "cavity"',
    "mpi4py-mpich": f'tool = "python"\nscript = "ranks.py"\npython = "{venv_bin("mpich")}/python"',
    "mpi4py-openmpi": f'tool = "python"\nscript = "ranks.py"\npython = "{venv_bin("openmpi")}/python"',
    "mpi4py-system": f'tool = "python"\nscript = "ranks.py"\npython = "{SYSTEM_PYTHON}"',
}
PARAMS = {
    "dolfinx": "mesh_size = [8, 12]",
    "lmp": "timestep = [0.004]\nduration = [0.4]",
    "icoFoam": "cells = [8]",
}
EXTRA = {
    "icoFoam": '[tools.openfoam.set]\n"system/controlDict:endTime" = 0.05\n'
    '"system/controlDict:writeInterval" = 0.05\n',
}
COLLECT = {
    "lmp": "[collect]\nranks = { regex = 'on (\\d+) procs', type = \"int\" }\n",
}
NASTIEST = {"mpich": ("mpi4py-mpich", 2), "openmpi": ("dolfinx", 2), "system": ("icoFoam", 2)}
ALWAYS = [(parent, *NASTIEST[parent]) for parent in PARENTS]
REST = [
    (parent, solver, ranks)
    for parent in PARENTS
    for solver in SOLVERS
    for ranks in (0, 2)
    if (parent, solver, ranks) not in ALWAYS
]
TOOL_OF = {"dolfinx": "fenicsx", "lmp": "lammps", "icoFoam": "openfoam", "mpi4py-system": "fenicsx"}


def parent_command(parent: str, system_python: Path) -> list[str]:
    """Return what starts three ranks of keystone-mpi under a parent MPI."""
    if parent == "system":
        return [SYSTEM_MPIEXEC, "-n", "3", str(system_python), "-m", "keystone_mpi"]
    return [str(venv_bin(parent) / "mpiexec"), "-n", "3", str(venv_bin(parent) / "keystone-mpi")]


def check(parent: str, solver: str, ranks: int, folder: Path, system_python: Path) -> None:
    """Run a solver under a parent and see that it had as many ranks as it was to have."""
    missing = [] if solver not in TOOL_OF or TOOLS[TOOL_OF[solver]].find().found else [solver]
    if parent == "system" and not has_system_openmpi():
        missing.append("the distribution's Open MPI")
    if parent != "system" and not (venv_bin(parent) / "mpiexec").exists():
        missing.append(f".venv/{parent}")
    if missing and not IN_CI:
        pytest.skip(f"not installed: {', '.join(missing)}")
    examples(folder)
    (folder / "ranks.py").write_text(MPI_SCRIPT)
    launcher = f'launcher = "mpiexec"\nranks = {ranks}\n' if ranks else ""
    (folder / "pair.toml").write_text(
        f'[sweep]\nname = "pair"\n{SOLVERS[solver]}\n[params]\n{PARAMS.get(solver, "x = [1, 2]")}\n'
        f'[task]\ntimeout = "60s"\n{launcher}{EXTRA.get(solver, "")}{COLLECT.get(solver, "")}'
    )
    argv = [*parent_command(parent, system_python), "run", "pair.toml", "--slots", "4"]
    env = {
        **os.environ,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    done = subprocess.run(
        argv, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    with h5py.File(folder / "pair.h5") as file:
        results = file["results"]
        expected = max(1, ranks)
        if "ranks" in results:
            assert set(results["ranks"][:].tolist()) == {expected}
        if solver == "icoFoam":
            assert (results["time"][:] == 0.05).all()
            logs = list((folder / "pair.h5.work").rglob("log.icoFoam"))
            assert logs
            assert all(f"nProcs : {expected}\n" in log.read_text() for log in logs)
        if solver.startswith("mpi4py"):
            family = "MPICH" if solver == "mpi4py-mpich" else "Open MPI"
            assert all(text.startswith(family) for text in results["library"].asstr()[:])


@pytest.mark.parametrize(("parent", "solver", "ranks"), ALWAYS)
def test_a_parallel_solver_under_each_parent(
    parent: str, solver: str, ranks: int, tmp_path: Path, system_python: Path, keystone
) -> None:
    check(parent, solver, ranks, tmp_path, system_python)


@pytest.mark.soak
@pytest.mark.parametrize(("parent", "solver", "ranks"), REST)
def test_every_solver_under_each_parent(
    parent: str, solver: str, ranks: int, tmp_path: Path, system_python: Path, keystone
) -> None:
    check(parent, solver, ranks, tmp_path, system_python)
