"""keystone_mpi: an MPI-native batch runner for parameter sweeps.

Importing this package loads nothing but itself (PEP 562): a worker rank on a
parallel file system pays only for the modules it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keystone_mpi.analysis.run import Run, open_run
    from keystone_mpi.core.errors import RunInterruptedError
    from keystone_mpi.parallel_executor import BatchProcessor, KeystoneExecutor, ParallelExecutor, TaskResult
    from keystone_mpi.task_pipeline import TaskPipeline, TaskStatus

__version__ = "0.1.0"

_EXPORTS = {
    "BatchProcessor": "keystone_mpi.parallel_executor",
    "KeystoneExecutor": "keystone_mpi.parallel_executor",
    "ParallelExecutor": "keystone_mpi.parallel_executor",
    "Run": "keystone_mpi.analysis.run",
    "RunInterruptedError": "keystone_mpi.core.errors",
    "TaskPipeline": "keystone_mpi.task_pipeline",
    "TaskResult": "keystone_mpi.parallel_executor",
    "TaskStatus": "keystone_mpi.task_pipeline",
    "open_run": "keystone_mpi.analysis.run",
}
"""Public name -> module that it is loaded from when it is first used."""

__all__ = [
    "BatchProcessor", "KeystoneExecutor", "ParallelExecutor", "Run", "RunInterruptedError",
    "TaskPipeline", "TaskResult", "TaskStatus", "__version__", "open_run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names too that are not loaded yet."""
    return sorted({*globals(), *_EXPORTS})
