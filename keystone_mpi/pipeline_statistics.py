"""How well a pipeline's tasks used the slots.

Rule: the same statistics as of a results file (analysis/statistics.py), from the records of this program.

    [TaskRecord], slots of each worker --statistics_of--> {'speedup', 'efficiency', ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keystone_mpi.analysis.statistics import Attempts, Workers, compute_statistics
from keystone_mpi.engine.task_records import TaskRecord


def statistics_of(records: Sequence[TaskRecord], slots: Sequence[int]) -> dict[str, Any]:
    """Return what `TaskPipeline.get_parallel_execution_stats` tells.

    Parameters
    ----------
    records : sequence of TaskRecord
    slots : sequence of int
        Of each worker.
    """
    ran = [record for record in records if record.attempts and record.is_final]
    count = len(ran)
    attempts = Attempts(
        task=np.arange(count),
        worker=np.full(count, -1),
        started=np.array([record.started for record in ran], float),
        finished=np.array([record.finished for record in ran], float),
        duration_s=np.array([record.duration_s for record in ran], float),
        cores=np.array([record.cores for record in ran], int),
        epoch=np.array([0 if record.is_earlier else 1 for record in ran], int),
    )
    workers = Workers(
        slots=np.array(slots, int),
        epoch=np.ones(len(slots), int),
        joined=np.zeros(len(slots)),
        left=np.full(len(slots), np.nan),
        rank=np.arange(len(slots)),
    )
    found = compute_statistics(np.array([int(record.state) for record in records], int), attempts, workers)
    for name in ("workers", "dispatch_overhead_s", "utilisation"):
        found.pop(name, None)
    return found
