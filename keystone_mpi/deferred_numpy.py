"""numpy, imported where it is first used and not before.

Rule: a master that runs a small new sweep computes nothing on arrays, and
importing numpy would cost it as much as starting MPI does.

    from keystone_mpi.deferred_numpy import np      np.arange(...) --first use--> import numpy
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__all__ = ["load_numpy", "np", "want_one_blas_thread"]

if TYPE_CHECKING:
    import numpy as np
else:

    class _Deferred:
        """Stands for the module; after the first use its names are here."""

        one_blas_thread = False

        def __getattr__(self, name: str) -> Any:
            if self.one_blas_thread and _BLAS_THREADS not in os.environ:
                # Only the first import starts threads; the solvers' environment stays as it was.
                os.environ[_BLAS_THREADS] = "1"
                try:
                    import numpy
                finally:
                    del os.environ[_BLAS_THREADS]
            else:
                import numpy
            self.__dict__.update(vars(numpy))
            return getattr(numpy, name)

    np = _Deferred()

_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def load_numpy() -> None:
    """Import numpy now, before modules that import it by themselves."""
    _ = np.ndarray


def want_one_blas_thread() -> None:
    """Have numpy's BLAS start no thread per core when numpy is imported here: this process is ours alone."""
    np.__dict__["one_blas_thread"] = True
