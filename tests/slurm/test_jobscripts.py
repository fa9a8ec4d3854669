"""The job scripts that people copy run as they are, on a real cluster (all but that for PBS)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import h5py
import pytest
from slurm_support import workers

JOBSCRIPTS = Path(__file__).parents[2] / "jobscripts"
SCRIPTS = sorted(
    path.name for path in JOBSCRIPTS.glob("*.sh") if path.name.startswith(("slurm-", "pbs-", "local"))
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo and the scripts, as a user has them."""
    for name in ("heat.py", "poisson.toml"):
        shutil.copy(JOBSCRIPTS / "demo" / name, tmp_path)
    for name in (*SCRIPTS, "nested.toml"):
        shutil.copy(JOBSCRIPTS / name, tmp_path)
    sweep = tmp_path / "poisson.toml"
    # The same demo with smaller meshes.
    sweep.write_text(sweep.read_text().replace("[16, 32, 64, 128]", "[8, 16]"))
    return tmp_path


def finished(path: Path, tasks: int) -> None:
    with h5py.File(path) as file:
        assert file.attrs["state"] == "complete"
        assert file["tasks/state"][:].tolist() == [2] * tasks


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_and_short(name: str) -> None:
    text = (JOBSCRIPTS / name).read_text()
    checked = subprocess.run(["bash", "-n", JOBSCRIPTS / name], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert text.startswith("#!/bin/bash\n# ")
    assert len(text.splitlines()) <= 40
    assert (JOBSCRIPTS / name).stat().st_mode & 0o100


def test_the_table_of_the_readme_names_every_script() -> None:
    readme = (JOBSCRIPTS.parent / "README.md").read_text()
    if "| script |" not in readme:
        pytest.skip("the README has no table of job scripts yet")
    for name in SCRIPTS:
        assert f"`{name}`" in readme, f"{name} is not in the README's table"


@pytest.mark.multirank
def test_local(mpiexec, folder: Path) -> None:
    mpiexec.prefix = lambda n, mpiexec_args: []
    mpiexec(["./local.sh", "poisson.toml"]).check()
    finished(folder / "poisson.h5", 8)


@pytest.mark.multirank
@pytest.mark.slurm
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slurm-per-node.sh", [("node1", 4), ("node2", 4)]),
        ("slurm-per-core.sh", None),
        ("slurm-requeue.sh", None),
    ],
)
def test_one_allocation(slurm, cluster, folder: Path, name: str, expected: list[tuple[str, int]]) -> None:
    job = slurm.sbatch(folder / name, "--export", f"ALL,SRUN_MPI={slurm.flag}")
    facts = cluster.wait_job(job)
    assert facts["ExitCode"] == "0:0", (folder / f"keystone.{job}.log").read_text()
    finished(folder / "poisson.h5", 8)
    if expected is not None:
        assert workers(folder / "poisson.h5") == expected


@pytest.mark.multirank
@pytest.mark.slurm
def test_array_and_merge(slurm, cluster, folder: Path) -> None:
    array = slurm.sbatch(folder / "slurm-array.sh", "--export", f"ALL,SRUN_MPI={slurm.flag}")
    merging = slurm.sbatch(folder / "slurm-merge.sh", f"--dependency=afterany:{array}")
    cluster.wait_job(array)
    facts = cluster.wait_job(merging)
    assert facts["ExitCode"] == "0:0", (folder / f"keystone-merge.{merging}.log").read_text()
    finished(folder / "poisson.h5", 8)
    assert len(list(folder.glob("poisson.shard-*-of-4.h5"))) == 4


@pytest.mark.multirank
@pytest.mark.slurm
def test_nested_mpi(slurm, cluster, folder: Path) -> None:
    job = slurm.sbatch(folder / "slurm-nested-mpi.sh", "--export", f"ALL,SRUN_MPI={slurm.flag}")
    facts = cluster.wait_job(job, limit_s=150)
    assert facts["ExitCode"] == "0:0", (folder / f"keystone.{job}.log").read_text()
    with h5py.File(folder / "nested.h5") as file:
        assert file["results/size"][:].tolist() == file["params/ranks"][:].tolist()
