"""What the journal remembers: one entry per fact, in the past tense.

Rule: the journal alone rebuilds the whole file. Entries are append-only and
carry a format version in the header from the first day.

    RunOpened
    (WorkerJoined | TasksAssigned | AttemptStarted | AttemptEnded | TaskEnded | WorkerLeft
     | RecipeAdded | TasksAdded)*
    RunClosed?
"""

from typing import Any

import msgspec

from keystone_mpi.core.model import AttemptKey, AttemptReport, TaskState, Why

JOURNAL_FORMAT = 1


class RunOpened(msgspec.Struct, frozen=True, tag="open"):
    """First entry: everything that is needed to make the file from nothing (or from `base`)."""

    format_version: int
    run_id: str
    epoch: int
    """1 for the first start of a run, one more for each continuation."""
    opened: float
    """Seconds since the epoch."""
    created: float
    """When the run's first start opened it."""
    task_count: int
    base_generation: str
    """`generation` attribute of the HDF5 file that this journal continues; empty: none."""
    base_task_count: int
    """Rows that the base file holds; the tasks above it are new with this start."""
    added_points: list[tuple[int, int]]
    """Half-open ranges of points of the sweep's space that rows `base_task_count`... stand for, in order."""
    spec: bytes
    """The normalised sweep (JSON), complete: table columns are in it."""
    sweep_text: str
    sweep_name: str
    fingerprint: dict[str, str]
    """Part -> digest of what runs the tasks (argv template, script content, setup)."""
    provenance: dict[str, Any]


class WorkerJoined(msgspec.Struct, frozen=True, tag="join"):
    worker: int
    """Unique within one journal; row of `/workers` is assigned by the store."""
    rank: int
    host: str
    slots: int
    memory_bytes: int
    pid: int
    at: float


class WorkerLeft(msgspec.Struct, frozen=True, tag="left"):
    worker: int
    why: str
    at: float


class TasksAssigned(msgspec.Struct, frozen=True, tag="give"):
    """Written without waiting for the disk."""

    worker: int
    at: float
    attempts: list[AttemptKey]


class AttemptStarted(msgspec.Struct, frozen=True, tag="start"):
    """Only for attempts that live longer than a fraction of a second."""

    worker: int
    index: int
    attempt: int
    at: float


class AttemptEnded(msgspec.Struct, frozen=True, tag="end"):
    worker: int
    report: AttemptReport
    state: TaskState
    """State of the task from now on: PENDING when it is retried."""
    recorded: float


class TaskEnded(msgspec.Struct, frozen=True, tag="task"):
    """A task reached a state with no attempt of its own (cancelled, impossible, dropped, put back)."""

    index: int
    state: TaskState
    why: Why
    error: str
    at: float
    returned_attempt: int = 0
    """PENDING since a worker gave this attempt back unstarted. 0: it is to run again from the beginning, and
    what its attempts so far took of its retries is forgiven."""


class RecipeAdded(msgspec.Struct, frozen=True, tag="recipe"):
    """A program runs tasks in a new way; recipes are numbered in the order in which they come."""

    recipe: bytes
    """A `records.programs.StoredRecipe` as JSON."""


class AddedTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task as a program submitted it; also a row of /tasks/request (JSON)."""

    recipe: int
    """Position in the spec's recipes."""
    params: dict[str, Any]
    options: dict[str, Any] = {}
    """Those of submit_task that are not the defaults."""


class TasksAdded(msgspec.Struct, frozen=True, tag="add"):
    """A program submitted tasks; their rows follow those known so far."""

    tasks: list[AddedTask]
    at: float


class RunClosed(msgspec.Struct, frozen=True, tag="close"):
    """The master ended in order; `state` is ``complete`` or ``interrupted``."""

    state: str
    reason: str
    at: float


Entry = (
    RunOpened
    | WorkerJoined
    | WorkerLeft
    | TasksAssigned
    | AttemptStarted
    | AttemptEnded
    | TaskEnded
    | RecipeAdded
    | TasksAdded
    | RunClosed
)
