"""What a program is told of its tasks: plain dicts of names that stay.

Rule: made from records when asked for; nothing here waits or changes anything.

    TaskRecord --status_of--> {'task_id', 'state', 'ready', ..., 'result'}
    [TaskRecord] --workflow_of--> {'total', 'completed', ..., 'tasks': {id: status}}
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keystone_mpi.core.model import TaskState
from keystone_mpi.engine.task_records import TaskRecord


class TaskStatus(enum.StrEnum):
    """State of a task; equal to its name as text."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"


_SPOKEN = {
    TaskState.SUCCESS: "success",
    TaskState.FAILURE: "failed",
    TaskState.TIMEOUT: "timeout",
    TaskState.CANCELLED: "cancelled",
}


def status_of(record: TaskRecord, path: Path, *, with_result: bool = True) -> dict[str, Any]:
    """Return what `get_task_status` tells.

    Parameters
    ----------
    record : TaskRecord
    path : Path
        The results file, for results that are only there.
    with_result : bool
        Leave the result out where only the state counts.
    """
    state = TaskState.PENDING if record.is_ahead else record.state
    final = record.is_final
    return {
        "task_id": record.task_id,
        "state": TaskStatus[state.name],
        "ready": final,
        "successful": state == TaskState.SUCCESS,
        "failed": final and state != TaskState.SUCCESS,
        "result": result_of(record, path) if final and with_result else None,
        "error": record.error or None,
        "why": record.why.name.lower(),
        "tool": record.tool,
        "script": record.script,
        "params": dict(record.params),
        "attempts": record.attempts,
        "submitted": record.submitted,
        "started": _known(record.started),
        "finished": _known(record.finished) if final else None,
        "duration_seconds": _known(record.duration_s),
        "progress": 1.0 if state == TaskState.SUCCESS else record.progress,
        "host": record.host or None,
    }


def result_of(record: TaskRecord, path: Path) -> dict[str, Any]:
    """Return the result of a task that has ended."""
    return {
        "status": _SPOKEN[record.state],
        "task_id": record.task_id,
        "params": dict(record.params),
        "duration_seconds": _known(record.duration_s),
        "outputs": outputs_of(record, path),
        "artifacts": [str(Path(record.work_path) / name) for name in record.artifacts],
        "error": record.error or None,
        "exit_code": record.exit_code if record.exit_code >= 0 else None,
        "attempts": record.attempts,
        "host": record.host or None,
        "work_path": record.work_path or None,
        "stdout_tail": record.stdout_tail,
        "stderr_tail": record.stderr_tail,
    }


def outputs_of(record: TaskRecord, path: Path) -> dict[str, Any]:
    """Return the result values of a task: scalars, and numpy arrays."""
    if record.from_file:
        from keystone_mpi.engine.columns import columns_from_spec
        from keystone_mpi.records.view import open_view

        with open_view(path, columns_from_spec) as view:
            return dict(view.task(record.row).results)
    found: dict[str, Any] = {name: value for name, value in record.scalars.items() if value is not None}
    if record.arrays:
        import numpy as np

        for name, value in record.arrays.items():
            array = np.frombuffer(value.data, np.dtype(value.dtype)).reshape(value.shape).copy()
            found[name] = array if array.shape else array.item()
    return found


def workflow_of(records: Sequence[TaskRecord], path: Path, *, with_results: bool = True) -> dict[str, Any]:
    """Return what `get_workflow_status` tells."""
    tasks = {record.task_id: status_of(record, path, with_result=with_results) for record in records}
    states = [task["state"] for task in tasks.values()]
    completed = states.count(TaskStatus.SUCCESS)
    running = states.count(TaskStatus.RUNNING)
    pending = states.count(TaskStatus.PENDING)
    failed = len(states) - completed - running - pending
    return {
        "total": len(states),
        "completed": completed,
        "failed": failed,
        "running": running,
        "pending": pending,
        "all_complete": completed + failed == len(states),
        "tasks": tasks,
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
