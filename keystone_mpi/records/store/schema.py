"""The columns of the file, as data: names, types, units and meanings.

Rule: what a fixed column is called and means is said here and nowhere else.
Columns of /params and /results are made on demand (values.py).

    /            dimension task; datasets task, task_id, spec, sweep_text, provenance, fingerprint
    /params      (task)            what went in
    /tasks       (task)            where each task stands
    /results     (task, ...)       what came out
    /attempts    (attempt)         every run of every task
    /workers     (worker)          who ran them
    /in_flight   (flight)          attempts handed out and not ended; only while the run is going on
    /output      (stdout_byte), (stderr_byte)   whole output of attempts, where it was kept
"""

from __future__ import annotations

import enum
import math

import msgspec

from keystone_mpi.core.model import Outcome, TaskState, Why

FORMAT = "keystone_mpi"
FORMAT_VERSION = 1
EPOCH_UNITS = "seconds since 1970-01-01 00:00:00"


class Column(msgspec.Struct, frozen=True):
    """One fixed column of a table."""

    name: str
    dtype: str
    """numpy typestr, or ``"str"`` for variable-length UTF-8."""
    long_name: str
    units: str = ""
    fill: float | int | None = None
    """What rows hold that were never written; None: NaN, 0 or the empty string."""
    flags: type[enum.IntEnum] | None = None
    """The column holds values of this enum; its names become CF flag_meanings."""

    @property
    def fill_value(self) -> float | int | str:
        """The value of a row that was never written."""
        if self.fill is not None:
            return self.fill
        if self.dtype == "str":
            return ""
        return math.nan if self.dtype.startswith("f") else 0


class Table(msgspec.Struct, frozen=True):
    """A group whose columns share one dimension."""

    group: str
    dimension: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        """Return the column called `name`."""
        return next(column for column in self.columns if column.name == name)


TASKS = Table(
    "tasks",
    "task",
    (
        Column("state", "i1", "state of the task", flags=TaskState),
        Column("why", "i1", "why the task is in its state", flags=Why),
        Column("attempts", "i4", "highest attempt number that ended"),
        Column("forgiven", "i4", "attempts up to this number no longer count against the retry budgets"),
        Column("submitted", "f8", "when the task became part of the run", EPOCH_UNITS),
        Column("started", "f8", "start of the first attempt", EPOCH_UNITS),
        Column("finished", "f8", "end of the last attempt", EPOCH_UNITS),
        Column("duration_s", "f8", "wall time of the last attempt", "s"),
        Column("last_attempt", "i8", "row of the last attempt in /attempts; -1: none", fill=-1),
        Column("results_from", "i8", "row of the attempt whose values /results holds; -1: none", fill=-1),
        Column("error", "str", "what went wrong, one line"),
    ),
)

ATTEMPTS = Table(
    "attempts",
    "attempt",
    (
        Column("task_index", "i8", "row of the task"),
        Column("number", "i4", "number of the attempt, 1 for the first"),
        Column("worker", "i4", "row of the worker in /workers; -1: unknown", fill=-1),
        Column("epoch", "i4", "start of the run that made the attempt, 1 for the first"),
        Column("outcome", "i1", "how the attempt ended", flags=Outcome),
        Column("why", "i1", "cause of the outcome", flags=Why),
        Column("started", "f8", "start on the worker's clock", EPOCH_UNITS),
        Column("finished", "f8", "end on the worker's clock", EPOCH_UNITS),
        Column("recorded", "f8", "when the master recorded the end", EPOCH_UNITS),
        Column("duration_s", "f8", "wall time, monotonic clock", "s"),
        Column("exit_code", "i4", "exit code; -1: it did not exit by itself", fill=-1),
        Column("signal", "i4", "signal that ended it; 0: none"),
        Column("user_s", "f8", "processor time in user mode", "s"),
        Column("system_s", "f8", "processor time in the kernel", "s"),
        Column("max_rss_bytes", "i8", "largest resident set of one of its processes", "bytes"),
        Column("cores", "i4", "number of cores it was pinned to; 0: not pinned"),
        Column("stdout_bytes", "i8", "true size of the standard output", "bytes"),
        Column("stderr_bytes", "i8", "true size of the standard error", "bytes"),
        Column("cpus", "str", "logical processors it was pinned to, comma separated"),
        Column("stdout_tail", "str", "end of the standard output"),
        Column("stderr_tail", "str", "end of the standard error"),
        Column("error", "str", "what went wrong, one line"),
        Column("command", "str", "command as run, shell-quoted; for attempts that did not succeed"),
        Column("work_path", "str", "kept work folder; empty: none"),
        Column("artifacts", "str", "files kept from the work folder, one a line"),
    ),
)

KEPT_COLUMNS = (
    Column(
        "stdout_kept_offset",
        "i8",
        "where its standard output begins in /output/stdout; -1: not kept",
        fill=-1,
    ),
    Column("stdout_kept_bytes", "i8", "length of its standard output in /output/stdout", "bytes"),
    Column(
        "stderr_kept_offset", "i8", "where its standard error begins in /output/stderr; -1: not kept", fill=-1
    ),
    Column("stderr_kept_bytes", "i8", "length of its standard error in /output/stderr", "bytes"),
)
"""Columns of /attempts that exist once any output was kept."""

REQUEST_COLUMN = Column("request", "str", "the task as the program submitted it (JSON)")
"""Column of /tasks in the file of a Python program."""
PROGRAM_CHUNK_ROWS = 256

WORKERS = Table(
    "workers",
    "worker",
    (
        Column("id", "i4", "identity within its epoch"),
        Column("epoch", "i4", "start of the run that it belonged to"),
        Column("rank", "i4", "MPI rank"),
        Column("slots", "i4", "cores that it offered"),
        Column("memory_bytes", "i8", "memory that it offered", "bytes"),
        Column("pid", "i4", "process id"),
        Column("joined", "f8", "when it joined", EPOCH_UNITS),
        Column("left", "f8", "when it left", EPOCH_UNITS),
        Column("host", "str", "host name"),
        Column("why_left", "str", "why it left"),
    ),
)

IN_FLIGHT = Table(
    "in_flight",
    "flight",
    (
        Column("task_index", "i8", "row of the task"),
        Column("number", "i4", "number of the attempt"),
        Column("worker", "i4", "identity of the worker within this epoch", fill=-1),
        Column("assigned", "f8", "when it was handed out", EPOCH_UNITS),
        Column("started", "f8", "when it started, where known", EPOCH_UNITS),
    ),
)

TEXTS = {
    "spec": "the sweep in its normalised form (JSON), complete in itself",
    "sweep_text": "the sweep file as it was written",
    "provenance": "versions, hosts and settings of the run (JSON)",
    "fingerprint": "digest of each part of what runs the tasks (JSON)",
}
"""Scalar strings of the root group."""


def chunk_rows(expected_rows: int) -> int:
    """Choose a chunk length: small files stay small, large ones need few chunks."""
    return min(16384, max(64, 1 << max(0, expected_rows - 1).bit_length()))
