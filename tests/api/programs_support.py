"""How the programs of the tests are started."""

WAYS = ("plain", "mpiexec", "module")
"""Alone, on 3 ranks, and on 3 ranks by python -m keystone_mpi."""
