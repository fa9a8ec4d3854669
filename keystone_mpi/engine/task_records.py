"""Tasks of a program as its threads see them, and waiting for them.

Rule: a record changes in the engine's thread only, and says an end only once
that is durable. Whoever waits is told of ends through a queue: nobody polls.

    Book --acknowledge--> TaskRecord.state --> Watch queues --> waiting threads
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable
from typing import Any

from keystone_mpi.core.model import (
    FINAL_STATES,
    ArrayValue,
    AttemptReport,
    Outcome,
    ShardValue,
    TaskState,
    Why,
)

KEPT_RESULT_BYTES = 256 << 10
"""Results with more array bytes are read from the file when they are asked for."""


class TaskRecord:
    """One task of a pipeline."""

    __slots__ = (
        "arrays",
        "artifacts",
        "attempts",
        "cores",
        "duration_s",
        "error",
        "exit_code",
        "finished",
        "from_file",
        "host",
        "index",
        "is_ahead",
        "is_earlier",
        "last_attempt",
        "options",
        "params",
        "progress",
        "recipe",
        "row",
        "scalars",
        "script",
        "started",
        "state",
        "stderr_tail",
        "stdout_tail",
        "submitted",
        "tool",
        "why",
        "work_path",
        "worker",
    )

    def __init__(self, row: int, tool: str, script: str, params: dict[str, Any]) -> None:
        self.row = row
        self.index = -1
        """The scheduler's; -1: it does not know the task (it ended in an earlier start)."""
        self.recipe = -1
        """Number of the recipe for the workers."""
        self.tool = tool
        self.script = script
        self.params = params
        self.options: dict[str, Any] = {}
        self.cores = 1
        self.state = TaskState.PENDING
        self.why = Why.NONE
        self.error = ""
        self.submitted = time.time()
        self.started = float("nan")
        self.finished = float("nan")
        self.duration_s = float("nan")
        self.attempts = 0
        """Attempts that ended; one that was cancelled while it lay ahead on a worker is none."""
        self.last_attempt = 0
        self.progress: float | None = None
        """What the solver says of itself while it runs, 0 to 1."""
        self.worker = -1
        self.host = ""
        self.exit_code = -1
        self.stdout_tail = ""
        self.stderr_tail = ""
        self.scalars: dict[str, Any] = {}
        self.arrays: dict[str, ArrayValue] = {}
        self.artifacts: tuple[str, ...] = ()
        self.work_path = ""
        self.from_file = False
        """Its results are in the file (and journal) only."""
        self.is_ahead = False
        """RUNNING, but behind others on its worker; as it was when last looked at."""
        self.is_earlier = False
        """It ended in an earlier start of the run."""

    @property
    def task_id(self) -> str:
        """Its name."""
        return str(self.row)

    @property
    def is_final(self) -> bool:
        """Whether it has its final state."""
        return self.state in FINAL_STATES

    def take_report(self, report: AttemptReport) -> None:
        """Take over what its last attempt says."""
        unbegun = report.outcome in (Outcome.CANCELLED, Outcome.INTERRUPTED) and math.isnan(report.started)
        self.attempts += not unbegun
        self.started = report.started
        self.finished = report.finished
        self.duration_s = report.duration_s
        self.exit_code = report.exit_code
        self.stdout_tail = report.stdout_tail
        self.stderr_tail = report.stderr_tail
        self.artifacts = report.artifacts
        self.work_path = report.work_path
        self.scalars = report.scalars
        size_bytes = sum(len(value.data) for value in report.arrays.values())
        large: dict[str, ShardValue] = {k: v for k, v in report.large.items() if not k.startswith("@")}
        self.from_file = bool(large) or size_bytes > KEPT_RESULT_BYTES
        self.arrays = {} if self.from_file else report.arrays


class Watch:
    """Tells one waiting thread which of its tasks end, in the order of their ends."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[TaskRecord | BaseException] = queue.SimpleQueue()
        self.rows: set[int] = set()
        """Tasks that have not been told."""

    def put(self, item: TaskRecord | BaseException) -> None:
        """Tell of an end, or of the end of everything."""
        self._queue.put(item)

    def next(self, timeout_s: float | None) -> TaskRecord | None:
        """Return the next task that ended; None when none did in time.

        Raises
        ------
        KeystoneError
            The engine ended.
        """
        try:
            if timeout_s is None:
                # In pieces: an interrupt reaches a thread only between two waits.
                while True:
                    try:
                        item = self._queue.get(timeout=3600.0)
                        break
                    except queue.Empty:
                        continue
            else:
                item = self._queue.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item


class Watches:
    """All watches of a book; usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: set[Watch] = set()
        self.problem: BaseException | None = None

    def __bool__(self) -> bool:
        return bool(self._watches)

    def watch(self, records: Iterable[TaskRecord]) -> Watch:
        """Begin to watch tasks; those that have ended are told at once."""
        watch = Watch()
        with self._lock:
            if self.problem is not None:
                watch.put(self.problem)
            for record in records:
                if record.is_final:
                    watch.put(record)
                else:
                    watch.rows.add(record.row)
            self._watches.add(watch)
        return watch

    def forget(self, watch: Watch) -> None:
        """End a watch."""
        with self._lock:
            self._watches.discard(watch)

    def set_final(self, record: TaskRecord, state: TaskState) -> None:
        """Give a task its final state and tell of it."""
        with self._lock:
            record.state = state
            for watch in self._watches:
                if record.row in watch.rows:
                    watch.rows.discard(record.row)
                    watch.put(record)

    def fail(self, problem: BaseException) -> None:
        """Nothing more will be told."""
        with self._lock:
            self.problem = problem
            for watch in self._watches:
                watch.put(problem)
