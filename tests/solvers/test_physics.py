"""The shipped examples with real solvers, `mpiexec -n 3 keystone-mpi run`: physics that is known."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
from solvers_support import examples, needs

pytestmark = pytest.mark.multirank

GHIA_Y = np.array([0.0547, 0.1719, 0.2813, 0.4531, 0.5, 0.6172, 0.7344, 0.8516, 0.9531])
GHIA_U = np.array([-0.03717, -0.10150, -0.15662, -0.21090, -0.20581, -0.13641, 0.00332, 0.23151, 0.68717])
"""Ghia, Ghia & Shin 1982, Reynolds number 100: u on the vertical centreline."""


@needs("fenicsx")
def test_poisson_converges_with_fenicsx(mpiexec, tmp_path: Path) -> None:
    examples(tmp_path)
    mpiexec(["keystone-mpi", "run", "fenicsx.toml"], n=3, timeout_s=240).check()
    with h5py.File(tmp_path / "poisson_fenicsx.h5") as file:
        assert file.attrs["state"] == "complete"
        degree, error = file["params/degree"][:], file["results/error_l2"][:]
        unknowns = file["results/unknowns"][:]
        assert file["results/profile"].shape == (8, 10)
        assert np.isfinite(file["results/profile"][:]).all()
        assert (file["results/ranks"][:] == 1).all()
    for order, limit in ((1, 2.0), (2, 3.0)):
        rates = np.log2(error[degree == order][:-1] / error[degree == order][1:])
        assert np.abs(rates - limit).max() < 0.1, rates
    assert unknowns[-1] == (2 * 64 + 1) ** 2


@needs("lammps")
def test_energy_is_conserved_by_lammps(mpiexec, tmp_path: Path) -> None:
    examples(tmp_path)
    mpiexec(["keystone-mpi", "run", "lammps.toml"], n=3, timeout_s=120).check()
    with h5py.File(tmp_path / "nve.h5") as file:
        timestep, error = file["params/timestep"][:], file["results/energy_error"][:]
        columns = file["results/thermo_columns"].asstr()[0].split()
        thermo = file["results/thermo"][:]
        last = {name: file[f"results/{name}"][:] for name in columns}
    order = np.polyfit(np.log(timestep), np.log(error), 1)[0]
    assert (np.diff(error) > 0).all()
    assert 1.8 < order < 2.2, (order, error)
    # The same numbers as a direct run, digit for digit.
    for task in (0, 3):
        direct = subprocess.run(
            ["lmp", "-in", "in.nve", "-log", "none", "-var", "timestep", repr(float(timestep[task]))],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        line = next(text for text in direct.splitlines() if text.startswith("KEYSTONE_RESULT"))
        assert json.loads(line.removeprefix("KEYSTONE_RESULT"))["energy_error"] == error[task]
        rows = [text.split() for text in direct.splitlines()]
        rows = [row for row in rows if len(row) == len(columns) and row[0].isdigit()]
        expected = np.array(rows, dtype=float)
        found = thermo[task][~np.isnan(thermo[task]).any(axis=1)]
        assert np.array_equal(found, expected)
        assert {name: values[task] for name, values in last.items()} == dict(
            zip(columns, expected[-1], strict=True)
        )


@needs("openfoam")
def test_the_cavity_agrees_with_ghia(mpiexec, tmp_path: Path) -> None:
    examples(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "cavity").rglob("*") if path.is_file()}
    mpiexec(["keystone-mpi", "run", "openfoam.toml"], n=3, timeout_s=240).check()
    with h5py.File(tmp_path / "cavity.h5") as file:
        cells, nu = file["params/cells"][:], file["params/nu"][:]
        profile = file["results/centreline.u_U"][:]
        probe, pressure = file["results/middle.U"][:], file["results/middle.p"][:]
        residual = file["results/residual.p"][:]
        assert (file["results/time"][:] == 3.0).all()
    assert profile.shape == (6, 201, 4)
    assert ((residual > 0) & (residual < 1e-4)).all()
    for size, limit in ((20, 0.02), (40, 0.01)):
        y, u = profile[(cells == size) & (nu == 0.001)][0][:, :2].T
        assert np.abs(np.interp(GHIA_Y, y / 0.1, u) - GHIA_U).max() < limit
    # nu is really swept: a thicker liquid is dragged along less far below the lid.
    upper = [
        np.interp(0.07344, *profile[(cells == 40) & (nu == value)][0][:, :2].T)
        for value in (0.001, 0.002, 0.005)
    ]
    assert upper[0] > upper[1] + 0.01 > upper[2] + 0.02
    # The probe is written every ten steps up to the end time, and so is its pressure.
    assert np.nanmax(probe[:, :, 0], axis=1) == pytest.approx(3.0)
    assert probe.shape[2] == 4
    assert pressure.shape[2] == 2
    # The case was copied, never written.
    after = {path: path.read_bytes() for path in (tmp_path / "cavity").rglob("*") if path.is_file()}
    assert after == before
    kept = sorted(path.name for path in (tmp_path / "cavity.h5.work").rglob("*") if path.is_file())
    assert kept == ["log.icoFoam"] * 6
