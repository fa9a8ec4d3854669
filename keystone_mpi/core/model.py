"""The vocabulary: task states, attempt outcomes, requests and reports.

Rule: everything here is plain data. Nothing does I/O, reads a clock or knows
MPI. Every other folder speaks these words. The modules of what is decoded
evaluate their annotations when they are imported: of postponed ones msgspec
would compile the text of each, in every process that makes a decoder.

    TaskRequest --(scheduler)--> Assignment --(worker)--> AttemptReport
"""

import enum
from typing import Any, NamedTuple, Protocol

import msgspec


class TaskState(enum.IntEnum):
    """State of a task. The numbers are the ``flag_values`` of ``/tasks/state``."""

    PENDING = 0
    RUNNING = 1
    SUCCESS = 2
    FAILURE = 3
    TIMEOUT = 4
    CANCELLED = 5


FINAL_STATES = frozenset({TaskState.SUCCESS, TaskState.FAILURE, TaskState.TIMEOUT, TaskState.CANCELLED})
UNSUCCESSFUL_STATES = FINAL_STATES - {TaskState.SUCCESS}


class Outcome(enum.IntEnum):
    """How one attempt ended. The numbers are the ``flag_values`` of ``/attempts/outcome``."""

    SUCCESS = 0
    FAILED = 1
    """Non-zero exit, fatal signal, unmet success condition, or a program that did not start."""
    TIMEOUT = 2
    OUT_OF_MEMORY = 3
    CANCELLED = 4
    """The task was cancelled while it ran."""
    WORKER_LOST = 5
    """The worker rank, its launcher or its slot process died under the attempt."""
    INTERRUPTED = 6
    """The run itself stopped (killed, walltime, second Ctrl-C): costs the task nothing."""


class Why(enum.IntEnum):
    """Why a task is in its state, beyond the state's name (``/tasks/why``)."""

    NONE = 0
    EXIT_CODE = 1
    SIGNAL = 2
    OUT_OF_MEMORY = 3
    LOST_WORKER = 4
    """Quarantined: it lost as many workers as its budget allows."""
    NOT_STARTED = 5
    """The program could not be started (not found, not executable)."""
    CONDITION = 6
    """It exited 0 but a ``[success]`` condition or a required result was not met."""
    DEPENDENCY = 7
    """A task it depends on did not succeed."""
    BY_USER = 8
    """Cancelled on request."""
    NOT_IN_SWEEP = 9
    """The sweep file no longer contains it."""
    TOO_LARGE = 10
    """No worker of this run has the cores, memory or GPUs that it asks for."""
    RESULTS = 11
    """Its results could not be read (malformed JSON, missing required file)."""


class AttemptKey(NamedTuple):
    """Names one attempt. A named tuple: it is a dictionary key on every hot path."""

    task: int
    attempt: int


class RetryBudget(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many further attempts each cause allows.

    Defaults: a solver's failure, timeout or out of memory is final unless the
    sweep file says otherwise; a lost worker is not the task's fault and may
    happen twice, the third time quarantines the task.
    """

    failed: int = 0
    timed_out: int = 0
    out_of_memory: int = 0
    worker_lost: int = 2


class TaskRequest(msgspec.Struct, frozen=True, gc=False):
    """What the scheduler knows of a task before it runs."""

    index: int
    """Row in the file; unique within the run."""
    cores: int = 1
    memory_bytes: int = 0
    """0: no limit and no reservation."""
    gpus: int = 0
    timeout_s: float = 0.0
    """Per attempt; 0: none."""
    priority: float = 0.0
    """Larger goes first."""
    expected_s: float = 0.0
    """Expected duration; 0: unknown."""
    budget: RetryBudget = RetryBudget()
    used: RetryBudget = RetryBudget(0, 0, 0, 0)
    """What earlier starts of this run have used of `budget`."""
    attempts_before: int = 0
    """Attempts made by earlier starts of this run; the next attempt's number is one more."""
    depends_on: tuple[int, ...] = ()
    """Tasks that must have succeeded; when one ends otherwise, this task is cancelled."""
    start_after: tuple[int, ...] = ()
    """Tasks that must have ended, in whatever way."""


class Assignment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt handed to a worker, as the scheduler sees it."""

    index: int
    attempt: int
    """1 for the first attempt of a task."""
    cores: int = 1
    memory_bytes: int = 0
    gpus: int = 0
    timeout_s: float = 0.0


class TaskSource(Protocol):
    """Pending sweep tasks, made lazily; pure."""

    def take(self, limit: int) -> list[TaskRequest]:
        """Return and consume up to `limit` of the tasks not yet taken, in dispatch order."""

    def remaining(self) -> int:
        """How many `take` can still return."""


class ArrayValue(msgspec.Struct, frozen=True, array_like=True):
    """A numeric array as it travels: C order, little endian."""

    dtype: str
    """numpy typestr such as ``<f8``; never an object type."""
    shape: tuple[int, ...]
    data: bytes = b""


class ShardValue(msgspec.Struct, frozen=True, array_like=True):
    """A value too large for a message: where it lies in a worker's shard file."""

    shard: str
    """File name inside ``<output>.shards/``."""
    offset: int
    size_bytes: int
    crc32: int
    dtype: str
    """numpy typestr, or ``"bytes"`` for packed output text (zlib)."""
    shape: tuple[int, ...] = ()


Scalar = bool | int | float | str | None


class AttemptReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything known of an attempt that ended; sent by the worker, recorded unchanged."""

    index: int
    attempt: int
    outcome: Outcome
    started: float = float("nan")
    """Seconds since the epoch on the worker's clock; NaN when it is not known to have started."""
    finished: float = float("nan")
    duration_s: float = float("nan")
    """Monotonic wall time of the attempt."""
    exit_code: int = -1
    """-1 when it did not exit by itself."""
    signal: int = 0
    """Signal that ended it; 0: none."""
    why: Why = Why.NONE
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0
    """Largest resident set of a single process of the attempt (getrusage)."""
    cpus: tuple[int, ...] = ()
    """Cores it was pinned to; empty: not pinned."""
    stdout_tail: str = ""
    stderr_tail: str = ""
    stdout_bytes: int = 0
    """True size of the output, of which the tail is the end."""
    stderr_bytes: int = 0
    error: str = ""
    """One line for people; empty on success."""
    scalars: dict[str, Any] = {}
    """Result name -> bool | int | float | str; nested objects flattened with dots."""
    arrays: dict[str, ArrayValue] = {}
    large: dict[str, ShardValue] = {}
    """Results above 1 MiB. ``stdout`` and ``stderr`` under keep_output use the names
    ``"@stdout"`` and ``"@stderr"`` here or, when small, in `packed`."""
    packed: dict[str, bytes] = {}
    """Kept output, zlib-compressed: ``"@stdout"``, ``"@stderr"``."""
    artifacts: tuple[str, ...] = ()
    """Files kept from the work folder, relative to it."""
    work_path: str = ""
    """The attempt's kept work folder; empty: none."""
    command: str = ""
    """The command as run, shell-quoted; recorded for attempts that did not succeed."""
