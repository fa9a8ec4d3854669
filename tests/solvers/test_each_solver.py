"""What is particular to one solver: compiled forms, case folders, the one file for Python solvers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from solvers_support import SYSTEM_PYTHON, examples, needs

from keystone_mpi.cli.tools import solver_file_path

FORM = """
import time
start = time.monotonic()
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from keystone_solver import report_result
domain = mesh.create_unit_square(MPI.COMM_WORLD, 2, 2)
space = (fem.functionspace if hasattr(fem, "functionspace") else fem.FunctionSpace)(domain, ("Lagrange", 1))
u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
fem.form(ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx)
report_result(seconds=time.monotonic() - start)
"""
SLOW_CC = """#!/bin/sh
if [ "$KEYSTONE_INDEX" = 0 ] && [ "$KEYSTONE_ATTEMPT" = 1 ]; then touch PLACE/compiling; sleep 600; fi
exec gcc "$@"
"""


def states(path: Path) -> list[int]:
    with h5py.File(path) as file:
        return file["tasks/state"][:].tolist()


def errors(path: Path) -> list[str]:
    with h5py.File(path) as file:
        return file["tasks/error"].asstr()[:].tolist()


@needs("fenicsx")
def test_a_compiler_killed_at_work_poisons_no_later_task(keystone, tmp_path: Path) -> None:
    (tmp_path / "form.py").write_text(FORM)
    (tmp_path / "slow-cc").write_text(SLOW_CC.replace("PLACE", str(tmp_path)))
    (tmp_path / "slow-cc").chmod(0o755)
    (tmp_path / "s.toml").write_text(
        f"""
[sweep]
tool = "fenicsx"
script = "form.py"
[params]
x = [0, 1, 2]
[task]
timeout = "8s"
retries_timeout = 1
env = {{ CC = "{tmp_path}/slow-cc" }}
"""
    )
    keystone(["run", "s.toml", "--slots", "1"], timeout_s=90).check()
    assert (tmp_path / "compiling").exists()
    assert states(tmp_path / "s.h5") == [2, 2, 2]
    with h5py.File(tmp_path / "s.h5") as file:
        attempts = list(zip(file["attempts/task_index"][:], file["attempts/outcome"][:], strict=True))
        seconds = file["results/seconds"][:]
    assert sorted(attempts) == [(0, 0), (0, 2), (1, 0), (2, 0)]
    # None of them waited ten seconds for a form that nobody compiles any more.
    assert seconds.max() < 8


@needs("openfoam")
def test_a_case_with_its_own_script(keystone, tmp_path: Path) -> None:
    examples(tmp_path)
    case = tmp_path / "cavity"
    (case / "Allrun").write_text(
        '#!/bin/sh\ncd "${0%/*}" || exit\n'
        "blockMesh > log.blockMesh 2>&1\nicoFoam -case <<folder>> > log.icoFoam 2>&1\ntrue\n"
    )
    (case / "Allrun").chmod(0o755)
    (tmp_path / "s.toml").write_text(
        """
[sweep]
tool = "openfoam"
case = "cavity"
[tools.openfoam]
residuals = "history"
[tools.openfoam.set]
"system/controlDict:endTime" = 0.05
"system/controlDict:writeInterval" = 0.05
[params]
cells = [6]
folder = [".", "nowhere"]
[task]
keep = []
"""
    )
    keystone(["run", "s.toml"], timeout_s=60).check(1)
    # Allrun exits with 0 although its solver died: the log says so.
    assert states(tmp_path / "s.h5") == [2, 3]
    assert "FOAM FATAL" in errors(tmp_path / "s.h5")[1]
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["results/time"][0] == 0.05
        assert file["results/residuals.p"].shape == (2, 20)


@needs("openfoam")
def test_listed_applications_take_parameters_and_say_which_failed(keystone, tmp_path: Path) -> None:
    examples(tmp_path)
    (tmp_path / "s.toml").write_text(
        """
[sweep]
tool = "openfoam"
case = "cavity"
applications = ["blockMesh", "checkMesh -time {time}", "icoFoam"]
[tools.openfoam.set]
"system/controlDict:endTime" = 0.05
"constant/transportProperties:nu" = "{nu}"
[params]
cells = ["6", "six"]
time = ["0", "0; touch injected"]
nu = [0.01]
[task]
workdir = "local"
"""
    )
    keystone(["run", "s.toml"], timeout_s=60).check(1)
    assert states(tmp_path / "s.h5") == [2, 2, 3, 3]
    assert not list(tmp_path.rglob("injected"))
    said = errors(tmp_path / "s.h5")[2:]
    assert all("blockMesh failed (exit code 1): FOAM FATAL" in text for text in said), said


@needs("openfoam")
def test_a_script_drives_openfoam_and_starts_its_ranks(mpiexec, tmp_path: Path) -> None:
    examples(tmp_path)
    deck = (tmp_path / "cavity" / "system" / "blockMeshDict").read_text().replace("<<cells>>", "8")
    (tmp_path / "cavity" / "system" / "blockMeshDict").write_text(deck)
    (tmp_path / "drive.py").write_text(
        """
import os, pathlib, shlex, shutil, subprocess, sys
from keystone_solver import report_result
case = pathlib.Path(sys.argv[0]).parent / "cavity"
shutil.copytree(case, ".", dirs_exist_ok=True)
control = pathlib.Path("system/controlDict")
control.write_text(control.read_text().replace("endTime         3", "endTime         " + sys.argv[2]))
pathlib.Path("system/decomposeParDict").write_text(
    "FoamFile { version 2.0; format ascii; class dictionary; object decomposeParDict; }\\n"
    "numberOfSubdomains 2; method simple; simpleCoeffs { n (2 1 1); delta 0.001; }")
def run(*words):
    with open("log." + words[-1 - ("-parallel" in words)], "w") as log:
        subprocess.run(words, stdout=log, check=True)
run("blockMesh")
run("decomposePar")
run(*shlex.split(os.environ["KEYSTONE_MPIEXEC"]), "icoFoam", "-parallel")
report_result(folders=len(list(pathlib.Path(".").glob("processor*"))))
"""
    )
    (tmp_path / "s.toml").write_text(
        """
[sweep]
tool = "openfoam"
script = "drive.py"
[params]
end = [0.05]
[task]
workdir = "task"
launcher = "mpiexec"
ranks = 2
"""
    )
    mpiexec(["keystone-mpi", "run", "s.toml", "--slots", "2"], n=2, timeout_s=60).check()
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["results/folders"][:].tolist() == [2]
        assert file["results/time"][:].tolist() == [0.05]
    log = next((tmp_path / "s.h5.work").rglob("log.icoFoam"))
    assert "nProcs : 2\n" in log.read_text()


@pytest.mark.parametrize("python", [sys.executable, SYSTEM_PYTHON])
def test_the_solver_file_does_nothing_outside_and_is_one_file(tmp_path: Path, python: str) -> None:
    if not os.access(python, os.X_OK):
        pytest.skip(f"{python} is not there")
    shutil.copy(solver_file_path(), tmp_path / "keystone_solver.py")
    (tmp_path / "solve.py").write_text(
        "import sys, keystone_solver as k\n"
        "k.report_progress(0.5); k.report_result(a=1, b=[1.0, 2.0])\n"
        "assert not {'numpy', 'mpi4py', 'zipfile', 'keystone_mpi'} & set(sys.modules)\n"
    )
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [python, "-B", "solve.py"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keystone_solver.py", "solve.py"]
    # Of the ranks of a parallel solver the first one is heard.
    for rank, expected in (("1", False), ("0", True)):
        inside = {**env, "KEYSTONE_RESULT": str(tmp_path / "r.json"), "OMPI_COMM_WORLD_RANK": rank}
        subprocess.run([python, "-B", "solve.py"], cwd=tmp_path, env=inside, check=True, timeout=30)
        assert (tmp_path / "r.json").exists() is expected
