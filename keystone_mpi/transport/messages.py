"""What travels between master and workers.

Rule: typed, versioned by the first message, encoded with msgpack on every
transport (also between threads, so that both behave alike).

    worker: Hello ------------------------------> master
    worker: <------------------------- Welcome    master
    worker: <-- Assign, Recall, Cancel, Drain     master
    worker: <-- BookOpened, RecipesAdded, BookClosed    master    (a program's pipelines, one book each)
    worker: <-- FunctionDefined, CallsGiven, CallsRecalled, SeatClosing    master
    worker: CallOutput, CallReplies, CallsReturned, SeatEnded --> master
    worker: RecipeRefused (its setup failed here) -----> master
    worker: AttemptsStarted, AttemptsProgress, AttemptsFinished, TasksReturned --> master
    worker: <-------------------------- Farewell  master    (the work is over: stop the launcher)
    worker: Goodbye ----------------------------> master
    worker: <-------------------------- Dismissal master    (the end of MPI: leave)
"""

from typing import Any

import msgspec

from keystone_mpi.core.model import AttemptKey, AttemptReport
from keystone_mpi.tools.recipe import Recipe

PROTOCOL_VERSION = 1


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    protocol_version: int
    rank: int
    host: str
    cpus: tuple[int, ...]
    """One logical cpu per physical core of the node that the job may use."""
    threads: tuple[int, ...]
    """All logical cpus of the node that the job may use."""
    local_index: int
    """Position of this worker among the workers of its node."""
    local_workers: int
    memory_bytes: int
    """Of the node, within the job's limits."""
    gpus: int
    """Of this worker."""
    pid: int
    slots: int = 0
    """Cores of the node by the batch system's figure, where that decides and not `cpus`; 0: `cpus` does."""
    thread_slots: int = 0
    alone: bool = False
    """`cpus` are this worker's own and not to be divided among those of the node."""
    source: str = ""
    """Where the number of cores comes from, for people."""
    error: str = ""
    """Why this worker cannot work (its launcher did not start, ...); empty: it can."""


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    worker: int
    """Identity of this worker in the run."""
    run_id: str
    epoch: int
    output_path: str
    """Absolute path of the HDF5 file; ``<output>.shards`` and ``<output>.work`` lie beside it."""
    recipes: list[Recipe]
    slots: int
    cpus: tuple[int, ...] = ()
    """Cores to pin tasks to; empty: no pinning."""


class TaskOrder(msgspec.Struct, frozen=True, array_like=True):
    """One attempt to run: the assignment, and the parameters that only the master knows."""

    index: int
    attempt: int
    params: dict[str, Any]
    cores: int = 1
    memory_bytes: int = 0
    gpus: int = 0
    timeout_s: float = 0.0
    seed: int = 0
    task_id: str = ""
    recipe: int = 0
    """Position in `Welcome.recipes`, or what `RecipesAdded` said."""


class Assign(msgspec.Struct, frozen=True, tag="assign"):
    orders: list[TaskOrder]


class Recall(msgspec.Struct, frozen=True, tag="recall"):
    """Give back those of these attempts that have not started; answered by `TasksReturned`."""

    attempts: list[AttemptKey]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Stop one attempt, started or not; answered by its report."""

    index: int
    attempt: int
    interrupted: bool = False
    """The run is stopping: the outcome is INTERRUPTED, not CANCELLED."""


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """A sign of life, both ways; a worker gives its own once it has had one of the master's."""


class Farewell(msgspec.Struct, frozen=True, tag="farewell"):
    """No more work. Whatever still runs is killed; answered by `Goodbye`."""

    grace_s: float = 0.0


class Dismissal(msgspec.Struct, frozen=True, tag="dismissal"):
    """Leave MPI. Comes when rank 0 is about to do so, since waiting in MPI_Finalize spins."""


class BookOpened(msgspec.Struct, frozen=True, tag="book"):
    """A program writes a results file: what its recipes need to know of it."""

    book: int
    run_id: str
    epoch: int
    output_path: str


class RecipesAdded(msgspec.Struct, frozen=True, tag="recipes"):
    """Recipes of a book, numbered from `first` on; sent before the first order that names one."""

    book: int
    first: int
    recipes: list[Recipe]


class BookClosed(msgspec.Struct, frozen=True, tag="unbook"):
    """No further order of this book will come, and none is left."""

    book: int


class FunctionDefined(msgspec.Struct, frozen=True, tag="function"):
    """A function that calls refer to by number; its large buffers are the message's parts."""

    function: int
    data: bytes


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    call: int
    function: int
    """0: the function is in the data, before the arguments."""
    data: bytes
    """Pickled; empty: the first of its parts."""
    parts: int = 0
    """How many of the message's parts are its own."""


class CallsGiven(msgspec.Struct, frozen=True, tag="calls"):
    """Calls for the function process that runs as attempt of task `seat`, in this order."""

    seat: int
    calls: list[Call]


class CallsRecalled(msgspec.Struct, frozen=True, tag="recalls"):
    """Give back the calls of this seat that have not begun; answered by `CallsReturned`."""

    seat: int


class SeatClosing(msgspec.Struct, frozen=True, tag="unseat"):
    """No more calls: the function process is to end; answered by the report of its attempt."""

    seat: int


class AttemptStart(msgspec.Struct, frozen=True, array_like=True):
    index: int
    attempt: int
    at: float
    """Seconds since the epoch."""


class AttemptsStarted(msgspec.Struct, frozen=True, tag="started"):
    """Only attempts older than a fraction of a second are told."""

    starts: list[AttemptStart]


class AttemptProgress(msgspec.Struct, frozen=True, array_like=True):
    index: int
    attempt: int
    fraction: float
    """What the solver says of itself, 0 to 1."""


class AttemptsProgress(msgspec.Struct, frozen=True, tag="progress"):
    """Only the last of each attempt is of interest; nothing of it is recorded."""

    progress: list[AttemptProgress]


class RecipeRefused(msgspec.Struct, frozen=True, tag="refused"):
    """A recipe's setup failed on this worker, or its solver is not there."""

    recipe: int
    error: str
    """With the setup's output; several lines."""


class AttemptsFinished(msgspec.Struct, frozen=True, tag="finished"):
    reports: list[AttemptReport]


class TasksReturned(msgspec.Struct, frozen=True, tag="returned"):
    attempts: list[AttemptKey]


class CallReplies(msgspec.Struct, frozen=True, tag="replies"):
    """Answers of a function process as it made them; their large buffers are the message's parts."""

    seat: int
    replies: list[bytes]


class CallOutput(msgspec.Struct, frozen=True, tag="printed"):
    """What a function printed; comes before its reply."""

    seat: int
    stream: int
    """1: stdout, 2: stderr."""
    text: bytes


class CallsReturned(msgspec.Struct, frozen=True, tag="uncalled"):
    seat: int
    calls: list[int]


class SeatEnded(msgspec.Struct, frozen=True, tag="unseated"):
    """A function process is gone; comes after its last replies and before its attempt's report."""

    seat: int
    running: int
    """The call that it was at; -1: none."""
    returned: list[int]
    """Calls that it had not begun."""


class WorkerFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker met an internal error and is about to leave."""

    traceback: str


class Goodbye(msgspec.Struct, frozen=True, tag="goodbye"):
    left_behind: int = 0
    """Processes that could not be killed; 0 unless something is very wrong."""


FromWorker = (
    Hello
    | AttemptsStarted
    | AttemptsProgress
    | AttemptsFinished
    | RecipeRefused
    | TasksReturned
    | CallReplies
    | CallOutput
    | CallsReturned
    | SeatEnded
    | WorkerFailed
    | Beat
    | Goodbye
)
ToWorker = (
    Welcome
    | Assign
    | Recall
    | Cancel
    | BookOpened
    | RecipesAdded
    | BookClosed
    | FunctionDefined
    | CallsGiven
    | CallsRecalled
    | SeatClosing
    | Beat
    | Farewell
    | Dismissal
)
