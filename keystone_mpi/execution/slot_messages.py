"""What a worker rank and its slot processes say to each other, and the frames it travels in.

Rule: a stream socket carries frames of a 4-byte length and a msgpack list of
tagged messages; no size limit, no blocking on either side. The first frame a
slot process gets is its `SlotSetup`; a closed socket means that the other side
is dead.

    rank: SlotSetup, MoreRecipes*, SlotOrder*, CancelOrder, RecallOrders, StopSlot --> slot process
    rank: <-- AttemptStarted, AttemptProgress, AttemptFinished, OrdersReturned, SlotStopped, SlotTrouble
    rank: Preparation*, SlotWanted (with one end of a new socket pair) --> launcher
    rank: <-- RecipePrepared, SlotEnded, LauncherTrouble
"""

import socket
from collections import deque

import msgspec

from keystone_mpi.core.model import AttemptReport
from keystone_mpi.tools.recipe import Launch, Recipe

STARTED_AFTER_S = 0.2
"""Attempts shorter than this send no `AttemptStarted`."""


class SlotSetup(msgspec.Struct, frozen=True, tag="setup", array_like=True):
    """Everything that the orders of a slot have in common."""

    slot: int
    run_id: str
    epoch: int
    worker: int
    output_path: str
    """Absolute path of the HDF5 file; empty: nothing may be written beside it."""
    recipes: list[Recipe]
    cpus: tuple[int, ...] = ()
    """Logical cpus for orders that name none; empty: leave the affinity as it is."""


class MoreRecipes(msgspec.Struct, frozen=True, tag="recipes", array_like=True):
    """Recipes that follow those known so far; their tasks' results are for another file."""

    recipes: list[Recipe]
    output_path: str
    epoch: int


class SlotOrder(msgspec.Struct, frozen=True, tag="run", array_like=True):
    """One attempt of a command. Another kind of order is another tag."""

    index: int
    attempt: int
    launch: Launch
    recipe: int = 0
    """Position in `SlotSetup.recipes`, or further on in those of `MoreRecipes`."""
    timeout_s: float = 0.0
    memory_bytes: int = 0
    """Limit of the attempt's resident memory; 0: none."""
    cpus: tuple[int, ...] = ()
    """Logical cpus it is pinned to; empty: `SlotSetup.cpus`."""
    keep_failed: bool = True
    """Whether its work folder stays when it does not succeed."""

    @property
    def key(self) -> tuple[int, int]:
        """(index, attempt), which names the order within the run."""
        return self.index, self.attempt


class CancelOrder(msgspec.Struct, frozen=True, tag="cancel", array_like=True):
    index: int
    attempt: int
    interrupted: bool = False
    """The outcome is INTERRUPTED, not CANCELLED."""


class RecallOrders(msgspec.Struct, frozen=True, tag="recall", array_like=True):
    """Give back what has not started; answered by one `OrdersReturned`, perhaps empty."""

    keys: list[tuple[int, int]] | None = None
    """Only these; None: all."""


class StopSlot(msgspec.Struct, frozen=True, tag="stop", array_like=True):
    """Kill what runs (outcome INTERRUPTED), forget what waits, answer `SlotStopped`, exit."""

    grace_s: float = 0.0


class AttemptStarted(msgspec.Struct, frozen=True, tag="started", array_like=True):
    index: int
    attempt: int
    at: float
    """Seconds since the epoch."""


class AttemptProgress(msgspec.Struct, frozen=True, tag="progress", array_like=True):
    index: int
    attempt: int
    fraction: float
    """What the solver says of itself, 0 to 1."""


class AttemptFinished(msgspec.Struct, frozen=True, tag="finished", array_like=True):
    report: AttemptReport


class OrdersReturned(msgspec.Struct, frozen=True, tag="returned", array_like=True):
    keys: list[tuple[int, int]]


class SlotStopped(msgspec.Struct, frozen=True, tag="stopped", array_like=True):
    left_behind: int = 0
    """Processes that could not be killed."""


class SlotTrouble(msgspec.Struct, frozen=True, tag="trouble", array_like=True):
    """The slot process met an internal error and is about to end."""

    traceback: str


class RecipePrepared(msgspec.Struct, frozen=True, tag="prepared", array_like=True):
    """Answer to `Preparation`; the rank tells its slot processes."""

    recipe: int
    error: str = ""
    """Why no attempt of the recipe can run on this worker; empty: they can."""
    env: dict[bytes, bytes] = {}
    """What its solvers see."""
    launcher: tuple[str, ...] = ()
    """What starts ranks, up to ``-n N``."""
    rewrites_arguments: bool = False
    """That launcher changes arguments of the solver that look like its own."""


ToSlot = RecipePrepared | SlotSetup | MoreRecipes | SlotOrder | CancelOrder | RecallOrders | StopSlot
FromSlot = AttemptStarted | AttemptProgress | AttemptFinished | OrdersReturned | SlotStopped | SlotTrouble


class SlotWanted(msgspec.Struct, frozen=True, tag="slot"):
    """Fork a slot process around the socket that comes with this message."""

    slot: int
    generation: int
    """Counts the slot processes that the rank asked for; names this one."""
    scratch_path: str
    """Private folder on the node's own disk; the launcher makes it."""


class Preparation(msgspec.Struct, frozen=True, tag="prepare"):
    """What a launcher is asked to do for one recipe."""

    recipe: int
    """Its position among the run's recipes."""
    setup: tuple[str, ...]
    check: tuple[str, ...]
    check_hint: str
    program: str
    """First word of the command, where that is known; empty: nothing to look up."""
    unset: tuple[str, ...]
    launcher: str
    launcher_path: str
    launcher_flags: tuple[str, ...]
    threads: int
    mpi_program: str
    cwd: str
    tags: dict[str, str] = {}
    """Variables by which leftovers are found."""


class SlotEnded(msgspec.Struct, frozen=True, tag="ended", array_like=True):
    """A slot process is gone, and so is everything that descended from it."""

    slot: int
    generation: int
    exit_code: int = 0
    signal: int = 0
    orphans: int = 0
    """Processes of its attempt that the launcher had to kill."""
    error: str = ""

    def reason(self) -> str:
        """Say in one line how it ended."""
        if self.error:
            return self.error
        if self.signal:
            return f"its slot process was killed (signal {self.signal})"
        if self.exit_code:
            return f"its slot process ended with exit code {self.exit_code}"
        return "its slot process is gone"


class LauncherTrouble(msgspec.Struct, frozen=True, tag="trouble", array_like=True):
    """The launcher met an internal error and is about to end."""

    traceback: str


ToLauncher = SlotWanted | Preparation
FromLauncher = SlotEnded | RecipePrepared | LauncherTrouble

_HEADER_BYTES = 4
_READ_BYTES = 1 << 16


class FrameChannel:
    """Frames over a non-blocking stream socket.

    Parameters
    ----------
    sock : socket.socket
        One end of a socket pair; owned from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received = bytearray()
        self._unsent: deque[memoryview] = deque()
        self.unsent_bytes = 0
        self.closed = False
        """The other side is gone, or `close` was called."""

    def fileno(self) -> int:
        """Return the descriptor to wait on, -1 once closed."""
        return self._socket.fileno()

    def send(self, payload: bytes) -> None:
        """Queue one frame and send as much as the socket takes now."""
        if self.closed:
            return
        frame = len(payload).to_bytes(_HEADER_BYTES, "little") + payload
        if not self._unsent:
            try:
                sent = self._socket.send(frame)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The reader is gone: what it had sent before may still be in the socket.
                return
            if sent == len(frame):
                return
            rest = memoryview(frame)[sent:]
        else:
            rest = memoryview(frame)
        self._unsent.append(rest)
        self.unsent_bytes += len(rest)

    def flush(self) -> bool:
        """Send what waits, as far as the socket takes it; True when nothing waits any more."""
        while self._unsent:
            head = self._unsent[0]
            try:
                sent = self._socket.send(head)
            except BlockingIOError:
                return False
            except OSError:
                self._unsent.clear()
                self.unsent_bytes = 0
                return True
            self.unsent_bytes -= sent
            if sent == len(head):
                self._unsent.popleft()
            else:
                self._unsent[0] = head[sent:]
        return True

    def receive(self) -> list[bytes]:
        """Return the complete frames that have come; sets `closed` at the end of the stream."""
        frames: list[bytes] = []
        if self.closed:
            return frames
        while True:
            try:
                chunk = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.closed = True
                break
            self._received += chunk
            if len(chunk) < _READ_BYTES:
                break
        start = 0
        data = self._received
        while len(data) - start >= _HEADER_BYTES:
            end = start + _HEADER_BYTES + int.from_bytes(data[start : start + _HEADER_BYTES], "little")
            if len(data) < end:
                break
            frames.append(bytes(data[start + _HEADER_BYTES : end]))
            start = end
        if start:
            del data[:start]
        return frames

    def close(self) -> None:
        """Close the socket; what was not sent is lost."""
        self.closed = True
        self._socket.close()
