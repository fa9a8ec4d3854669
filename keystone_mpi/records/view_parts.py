"""What a view is made of: counts, budgets, workers, single tasks.

Rule: plain frozen data; `run_view.py` fills it in.

    RunView.counts() -> Counts   .used_budget -> UsedBudget   .workers -> [WorkerView]   .task(i) -> TaskView
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.core.model import TaskState, Why
from keystone_mpi.records.attempts import AttemptView


@dataclass(frozen=True, slots=True)
class Counts:
    """Tasks by state: ``completed + failed + running + pending == total``."""

    total: int
    completed: int
    failed: int
    """Every task that ended without success: failures, timeouts, cancelled ones."""
    running: int
    pending: int
    timed_out: int
    cancelled: int
    out_of_memory: int
    lost: int
    """Quarantined because they lost their workers."""

    @property
    def all_complete(self) -> bool:
        """Whether every task has its final state."""
        return self.completed + self.failed == self.total


@dataclass(frozen=True, slots=True)
class UsedBudget:
    """Attempts per task that cost retry budget, by cause; saturating at 255."""

    failed: NDArray[np.uint8]
    timed_out: NDArray[np.uint8]
    out_of_memory: NDArray[np.uint8]
    worker_lost: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker of any start of the run."""

    worker: int
    """Identity within its epoch."""
    epoch: int
    rank: int
    host: str
    slots: int
    memory_bytes: int
    pid: int
    joined: float
    left: float
    """NaN while it has not left."""
    why_left: str


@dataclass(frozen=True, slots=True)
class TaskView:
    """Everything known of one task."""

    index: int
    task_id: str
    params: dict[str, Any]
    state: TaskState
    why: Why
    error: str
    results: dict[str, Any]
    """Scalars, and numpy arrays padded to the column's shape."""
    attempts: list[AttemptView]
    """In order of their numbers; those still running last."""
