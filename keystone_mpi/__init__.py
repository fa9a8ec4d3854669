"""keystone_mpi: an MPI-native batch runner for parameter sweeps.

Importing this package loads nothing but itself (PEP 562): a worker rank on a
parallel file system pays only for the modules it uses.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
