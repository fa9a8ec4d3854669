"""For solvers whose Python has keystone_mpi installed: ``from keystone_mpi.solver import report_result``.

Rule: the same two functions as `keystone_mpi.for_solvers.keystone_solver`, the
file that every Python solver can import as ``keystone_solver`` or copy.
"""

from __future__ import annotations

from keystone_mpi.for_solvers.keystone_solver import report_progress, report_result

__all__ = ["report_progress", "report_result"]
