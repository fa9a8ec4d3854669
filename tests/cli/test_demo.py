"""The demo converges at order 2, under mpiexec, read by plain h5py and xarray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
DEMO = REPO / "jobscripts" / "demo"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    for path in DEMO.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.multirank
@pytest.mark.parametrize(("name", "tasks"), [("poisson", 16), ("heat", 9)])
def test_a_sweep_of_the_demo_shows_its_order(name: str, tasks: int, mpiexec, demo: Path) -> None:
    done = mpiexec(["keystone-mpi", "run", f"{name}.toml"], n=3, timeout_s=120).check(0)
    assert f"{tasks} of {tasks} tasks succeeded" in done.stdout
    table = subprocess.run(
        [sys.executable, "convergence.py", f"{name}.h5"], cwd=demo, capture_output=True, text=True, check=True
    )
    assert "as expected" in table.stdout
    again = mpiexec(["keystone-mpi", "run", f"{name}.toml"], n=3, timeout_s=120).check(0)
    assert f"nothing to do: all {tasks} tasks" in again.stdout
    assert not list(demo.glob(f"{name}.h5.*")), "a finished run is one file"


def test_a_task_file_without_a_launcher(keystone, demo: Path) -> None:
    done = keystone(["run", "tasks.txt"], timeout_s=120).check(0)
    assert "3 of 3 tasks succeeded" in done.stdout


def test_the_fields_of_all_tasks_open_in_xarray(keystone, demo: Path) -> None:
    import numpy as np
    import xarray

    keystone(["run", "heat.toml"], timeout_s=120).check(0)
    with xarray.open_datatree(demo / "heat.h5", engine="h5netcdf") as tree:
        field = tree["results/field"]
        assert field.dims[0] == "task"
        assert field.shape == (9, 65, 65)
        coarse = field.values[0]
        assert np.isfinite(coarse[:17, :17]).all()
        assert np.isnan(coarse[17:]).all()


@pytest.mark.parametrize("arguments", [["--mesh-size", "2"], ["--kappa", "-1"], ["--problem", "x"]])
def test_the_solver_refuses_nonsense(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO / "heat.py"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2


def test_the_quickstart_works_twice_and_leaves_the_clone_alone(keystone, tmp_path: Path) -> None:
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    clone.mkdir()
    elsewhere.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, clone)
    for name in ("keystone_mpi", "jobscripts"):
        shutil.copytree(REPO / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = {path.relative_to(clone) for path in clone.rglob("*")}
    quickstart = ["bash", str(clone / "jobscripts" / "quickstart.sh")]
    environment = {name: text for name, text in os.environ.items() if name != "VIRTUAL_ENV"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            quickstart,
            cwd=elsewhere,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    first = run()
    if "pip could not install" in first.stderr:
        pytest.skip("no package index can be reached: the quickstart cannot install")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "16 of 16 tasks succeeded" in first.stdout
    assert "as expected" in first.stdout
    results = clone / ".venv" / "quickstart" / "results" / "poisson.h5"
    assert f"Results:   {results}" in first.stdout
    second = run()
    assert second.returncode == 0, second.stdout + second.stderr
    assert "nothing to do" in second.stdout
    assert "installing" not in second.stdout
    after = {path.relative_to(clone) for path in clone.rglob("*") if ".venv" not in path.parts}
    assert after - before == set()
    assert list(elsewhere.iterdir()) == []
