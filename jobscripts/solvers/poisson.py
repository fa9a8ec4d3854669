"""Poisson's equation on the unit square with FEniCSx: -div grad u = f, u given on the boundary.

    python3 poisson.py --mesh_size 32 --degree 1

The exact solution is known, so every run knows its error: its L2 norm falls at
order degree + 1. The script takes every parameter of the sweep as an option
and gives its results back in one line; without keystone-mpi it just prints.
"""

import argparse

import numpy as np
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from petsc4py.PETSc import ScalarType

try:
    from keystone_solver import report_progress, report_result
except ImportError:  # run by hand

    def report_progress(fraction):
        """Nobody listens."""

    def report_result(**values):
        """Nobody listens."""


def function_space(domain, degree):
    """Return Lagrange elements, whichever way this dolfinx spells them."""
    if hasattr(fem, "functionspace"):
        return fem.functionspace(domain, ("Lagrange", degree))
    return fem.FunctionSpace(domain, ("Lagrange", degree))


def exact(x, lib):
    """Return the solution at x, with numpy's or ufl's functions."""
    return lib.sin(np.pi * x[0]) * lib.cos(np.pi * x[1]) + x[0] * x[1]


def solve(mesh_size, degree):
    """Return the discrete solution, its L2 error and the number of unknowns."""
    from dolfinx.fem.petsc import LinearProblem

    domain = mesh.create_unit_square(MPI.COMM_WORLD, mesh_size, mesh_size)
    space = function_space(domain, degree)
    x = ufl.SpatialCoordinate(domain)
    solution = exact(x, ufl)
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    a = ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    right = ufl.inner(-ufl.div(ufl.grad(solution)), v) * ufl.dx
    boundary = fem.Function(space)
    boundary.interpolate(lambda points: exact(points, np))
    domain.topology.create_connectivity(domain.topology.dim - 1, domain.topology.dim)
    facets = mesh.exterior_facet_indices(domain.topology)
    dofs = fem.locate_dofs_topological(space, domain.topology.dim - 1, facets)
    report_progress(0.2)
    options = {"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-12}
    uh = LinearProblem(a, right, bcs=[fem.dirichletbc(boundary, dofs)], petsc_options=options).solve()
    report_progress(0.8)
    error = fem.assemble_scalar(fem.form(ufl.inner(uh - solution, uh - solution) * ufl.dx))
    error_l2 = float(np.sqrt(domain.comm.allreduce(ScalarType(error).real, op=MPI.SUM)))
    return uh, error_l2, space.dofmap.index_map.size_global


def main():
    """Solve once and say how good it was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mesh_size", type=int, default=32)
    parser.add_argument("--degree", type=int, default=1)
    options = parser.parse_args()
    uh, error_l2, unknowns = solve(options.mesh_size, options.degree)
    profile = uh.x.array[:10].copy()
    report_result(error_l2=error_l2, unknowns=unknowns, ranks=MPI.COMM_WORLD.size, profile=profile)
    if MPI.COMM_WORLD.rank == 0:
        print(f"{unknowns} unknowns, L2 error {error_l2:.3e}")


if __name__ == "__main__":
    main()
