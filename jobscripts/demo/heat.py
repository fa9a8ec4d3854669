"""Heat on a square plate: the demo's solver, a program of its own.

Two problems on the unit square with cold edges (u = 0), each with an exact
solution, so that the error of every run is known:

    poisson   -kappa * (u_xx + u_yy) = f            steady; f is the same for every kappa
    heat      u_t = kappa * (u_xx + u_yy)           two sine modes that decay

Both use the five-point Laplacian on a uniform mesh of ``mesh_size`` intervals
per side, solved directly in its sine basis; time steps are Crank-Nicolson.
Halving h divides the errors by four: order 2.

It knows nothing of keystone_mpi. The last line that it prints is one JSON
object, and that is all that the runner needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np


def sine_basis(mesh_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the orthonormal sine basis of the inner nodes and the eigenvalues of -d2/dx2."""
    inner = np.arange(1, mesh_size)
    basis = np.sqrt(2.0 / mesh_size) * np.sin(np.pi * np.outer(inner, inner) / mesh_size)
    eigenvalues = (2.0 * mesh_size * np.sin(0.5 * np.pi * inner / mesh_size)) ** 2
    return basis, eigenvalues


def solve_poisson(mesh_size: int, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the discrete and the exact temperature at the inner nodes."""
    x = np.arange(1, mesh_size)[:, None] / mesh_size
    y = np.arange(1, mesh_size)[None, :] / mesh_size
    profile = (np.exp(y) - 1.0) * (1.0 - y)
    source = np.sin(np.pi * x) * (np.pi**2 * profile + (1.0 + y) * np.exp(y))
    basis, eigenvalues = sine_basis(mesh_size)
    modes = basis @ source @ basis / (kappa * (eigenvalues[:, None] + eigenvalues[None, :]))
    return basis @ modes @ basis, np.sin(np.pi * x) * profile / kappa


def solve_heat(mesh_size: int, kappa: float, end_time: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the discrete and the exact temperature at `end_time`; the time step shrinks with h."""
    x = np.arange(1, mesh_size)[:, None] / mesh_size
    y = np.arange(1, mesh_size)[None, :] / mesh_size
    slow = np.sin(np.pi * x) * np.sin(np.pi * y)
    fast = 0.5 * np.sin(2 * np.pi * x) * np.sin(np.pi * y)
    basis, eigenvalues = sine_basis(mesh_size)
    steps = 2 * mesh_size
    half_step = 0.5 * end_time / steps * kappa * (eigenvalues[:, None] + eigenvalues[None, :])
    growth = (1.0 - half_step) / (1.0 + half_step)
    modes = basis @ (slow + fast) @ basis
    for _ in range(steps):
        modes *= growth
    exact = slow * np.exp(-2 * np.pi**2 * kappa * end_time) + fast * np.exp(-5 * np.pi**2 * kappa * end_time)
    return basis @ modes @ basis, exact


def main() -> int:
    """Solve one problem and print its errors as JSON."""
    parser = argparse.ArgumentParser(description="Heat on a square plate, with its exact error.")
    parser.add_argument("--problem", choices=("poisson", "heat"), default="poisson")
    parser.add_argument(
        "--mesh-size", "--mesh_size", type=int, default=32, help="intervals per side (4 to 1024)"
    )
    parser.add_argument("--kappa", type=float, default=1.0, help="conductivity, above 0")
    parser.add_argument("--end-time", "--end_time", type=float, default=0.05, help="of the heat problem")
    parser.add_argument("--save", metavar="FILE", help="write the temperature field to this .npy file")
    options = parser.parse_args()
    if not 4 <= options.mesh_size <= 1024:
        parser.error(f"--mesh-size {options.mesh_size}: must be 4 to 1024")
    if not options.kappa > 0:
        parser.error(f"--kappa {options.kappa}: must be above 0")

    began = time.perf_counter()
    if options.problem == "poisson":
        computed, exact = solve_poisson(options.mesh_size, options.kappa)
    else:
        computed, exact = solve_heat(options.mesh_size, options.kappa, options.end_time)
    error = np.abs(computed - exact)
    h = 1.0 / options.mesh_size
    if options.save:
        np.save(options.save, np.pad(computed, 1))
    result = {
        "h": h,
        "unknowns": int(computed.size),
        "error_l2": float(h * np.sqrt(np.sum(error**2))),
        "error_max": float(error.max()),
        "u_max": float(computed.max()),
        "solve_s": time.perf_counter() - began,
    }
    print(f"{options.problem}: {options.mesh_size} x {options.mesh_size}, kappa = {options.kappa:g}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
