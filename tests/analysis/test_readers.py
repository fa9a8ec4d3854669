"""The file of a real run, read by everything but keystone: xarray, pandas, h5py, ncdump, h5dump."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pandas
import pytest
import xarray

import keystone_mpi
from keystone_mpi.analysis.report import render_report
from keystone_mpi.records.journal import journal_path

SOLVER = """
import json, os, sys
n, kappa, name = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
if n == 3 and name == "b":
    sys.exit("diverged at step %d" % n)
print(json.dumps({"energy": n * kappa, "steps": n, "label": name + "\\u00e9", "ok": n > 1,
                  "field": [[n, kappa], [0.5, 1.0]], "solver_version": "solve 2.1"}))
"""
SWEEP = """
[sweep]
name = "readers"
command = ["python", "solver.py", "{n}", "{kappa}", "{name}"]
[params]
n = [1, 2, 3]
kappa = [0.5, 1.5]
name = ["a", "b"]
"""


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers")
    (folder / "solver.py").write_text(SOLVER)
    (folder / "readers.toml").write_text(SWEEP)
    program = Path(sys.executable).parent / "keystone-mpi"
    done = subprocess.run(
        [program, "run", "readers.toml", "--slots", "2"], cwd=folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return folder / "readers.h5"


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray(real_run: Path, engine: str) -> None:
    with xarray.open_datatree(real_run, engine=engine) as tree:
        assert {"params", "tasks", "results", "attempts", "workers"} <= set(tree.children)
        results, params = tree["results"], tree["params"]
        assert results["energy"].dims == ("task",)
        assert (
            np.allclose(results["energy"].values, params["n"].values * params["kappa"].values, equal_nan=True)
            or np.isnan(results["energy"].values).sum() == 2
        )
        assert results["field"].shape == (12, 2, 2)
        assert tree["tasks"]["duration_s"].attrs["units"] == "s"
        assert tree["tasks"]["started"].dtype.kind == "M"
        assert "SUCCESS" in tree["tasks"]["state"].attrs["flag_meanings"]
        assert all("long_name" in variable.attrs for variable in tree["attempts"].dataset.data_vars.values())
        for group in ("params", "tasks", "results", "attempts", "workers"):
            tree[group].load()
    with xarray.open_dataset(real_run, group="results", engine=engine) as results:
        assert int(results["energy"].notnull().sum()) == 10


def test_pandas_h5py_and_netcdf4(real_run: Path) -> None:
    with h5py.File(real_run) as file:
        assert file.attrs["format"] == "keystone_mpi"
        assert int(file.attrs["format_version"]) == 1
        assert file["sweep_text"].asstr()[()].strip().startswith("[sweep]")
        provenance = json.loads(file["provenance"].asstr()[()])
        frame = pandas.DataFrame({name: file["params"][name][:] for name in ("n", "kappa")})
        assert len(frame) == 12
        for name in ("spec", "provenance", "fingerprint"):
            json.loads(file[name].asstr()[()])
    for name in ("keystone_mpi", "python", "platform", "host", "folder", "command_line", "packages"):
        assert provenance[name], name
    with netCDF4.Dataset(real_run) as dataset:
        assert set(dataset.dimensions) >= {"task"}
        assert dataset["results/label"][0] == "a\u00e9"


def test_xarray_from_open_run_agrees_with_the_file(real_run: Path) -> None:
    with keystone_mpi.open_run(real_run) as run:
        grid = run.to_xarray()
        assert grid.sizes == {"n": 3, "kappa": 2, "name": 2, "field_d1": 2, "field_d2": 2}
        assert float(grid.energy.sel(n=2, kappa=1.5, name="b")) == 3.0
        assert bool(np.isnan(grid.energy.sel(n=3, name="b")).all())
        stats = run.stats()
        assert (stats["completed"], stats["failed"]) == (10, 2)
        assert [group.error for group in run.failures()] == ["exit code 1: diverged at step 3"]
        assert 0 < stats["efficiency"] <= 1.0001
        assert len(grid.energy.to_series()) == 12


@pytest.mark.parametrize("program", ["ncdump", "h5dump"])
def test_dumpers(real_run: Path, program: str) -> None:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program}: apt-get install netcdf-bin hdf5-tools")
    argument = "-h" if program == "ncdump" else "-H"
    done = subprocess.run([path, argument, real_run], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("energy", "duration_s", "max_rss_bytes", "kappa"):
        assert name in done.stdout
    if program == "ncdump":
        assert 'duration_s:units = "s"' in done.stdout
        whole = subprocess.run([path, real_run], capture_output=True, text=True, timeout=60, check=False)
        assert whole.returncode == 0
        assert "diverged at step 3" in whole.stdout


def test_a_real_run_seen_while_it_goes_on(keystone, tmp_path: Path, wait_until) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "slow.toml").write_text(
        '[sweep]\nname = "slow"\ncommand = ["sleep", "{s}"]\n[params]\ns = [0.1, 0.2, 3.0, 3.1]\n'
    )
    output = tmp_path / "slow.h5"
    job = keystone.start(["run", "slow.toml", "--slots", "2"])

    def two_are_done() -> bool:
        if not journal_path(output).exists():
            return False
        with keystone_mpi.open_run(output) as run:
            stats = run.stats()
        return stats["completed"] == 2 and stats["running"] == 2

    wait_until(two_are_done)
    with keystone_mpi.open_run(output) as run:
        assert run.phase == "running"
        assert sorted(task for task, _, _ in run.contents.in_flight()) == [2, 3]
        page = render_report(run)
    assert '<span class="badge running" id="state">running</span>' in page
    watched = keystone(["status", "--watch", "--interval", "0.2", "slow.h5"]).check(0).stdout
    assert "slow is running: 2/4, done 2" in watched
    assert "slow is complete: 4/4, done 4" in watched
    job.wait(20).check(0)
