"""The transport under mpiexec and srun; the only module that imports mpi4py.

Rule: an idle rank sleeps. No call blocks inside MPI: receives are matched
probes with adaptive back-off, sends are non-blocking and their buffers live
until MPI has let go of them. All MPI calls of a rank come from one thread.

    receive:  Improbe, Improbe (the first call makes progress, the second reports
              it), then sleep clamp(0.2 * time since the last message, 50 us, cap)
              in select(), which other descriptors and threads can end

Back-off and double probe: measured, 0.3 to 0.6% of a core idle, 0.1 ms round
trip under load. ``KEYSTONE_MPI_MPROBE=0`` falls back to Iprobe + Recv for MPI
stacks whose matched probe is broken.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from keystone_mpi.core.errors import LauncherMismatchError
from keystone_mpi.transport.channel import (
    Delivered,
    Received,
    decode_from_worker,
    decode_to_worker,
    encode,
    split_parts,
    with_parts,
)
from keystone_mpi.transport.loading import no_memory_hooks
from keystone_mpi.transport.local import LocalHub
from keystone_mpi.transport.matching import known_mismatch, needs_short_requests, way_out
from keystone_mpi.transport.messages import FromWorker, ToWorker
from keystone_mpi.transport.pmi_relay import short_requests
from keystone_mpi.transport.waiter import Waiter

TAG = 17
MASTER_RANK = 0
SHORTEST_SLEEP_S = 50e-6
UNHURRIED_SLEEP_S = 2e-3
"""Of a rank that holds work: nothing that can come is urgent, and each look disturbs a solver."""
BACKOFF_FRACTION = 0.2
LONGEST_SLEEP_S = 0.02
LONGEST_SLEEP_QUIET_S = 0.05
LARGEST_MESSAGE_BYTES = 512 << 20
"""Larger parts go in pieces: MPI counts in 32 bits."""
QUIET_AFTER_S = 10.0


def _buffer(part: Any) -> Any:
    """Return the memory of a part, which may be a block that carries its memory along."""
    return getattr(part, "view", part)


class NodePlace(msgspec.Struct, frozen=True):
    """Where a rank stands among the workers of its node."""

    index: int
    """Position among the node's workers; -1 for a master that has workers on its node."""
    workers: int
    master_alone: bool


class MpiWorld:
    """An initialised MPI and its world communicator.

    Parameters
    ----------
    promised_size : int or None
        How many ranks the launcher's environment promises; None when it does
        not say.
    ours : bool
        No other code of this process speaks MPI: it is set up for few and small messages.

    Raises
    ------
    LauncherMismatchError
        mpi4py cannot be imported or initialised, or finds another number of
        ranks than the launcher started.
    """

    def __init__(self, promised_size: int | None, *, ours: bool = False) -> None:
        try:
            import mpi4py

            # Started and ended by us: a library that aborts in MPI_Init must be found out before, and a
            # failing rank must be able to leave without hanging in an exit hook.
            mpi4py.rc.initialize = False
            mpi4py.rc.finalize = False
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # "suspicious environment": told below
                with no_memory_hooks(os.environ) if ours else contextlib.nullcontext():
                    from mpi4py import MPI

                version = MPI.Get_library_version()
                library = version.strip().splitlines()[0].strip("\x00 ")
                problem = known_mismatch(version, os.environ)
                if problem:  # MPI_Init would abort the process
                    raise LauncherMismatchError(
                        f"{problem}, but the MPI library is {library}. {way_out(version, os.environ)}"
                    )
                self.initialised_before = bool(MPI.Is_initialized())
                """By the program that we serve: it ends MPI, too."""
                if not self.initialised_before:
                    relayed = needs_short_requests(version, os.environ)
                    with short_requests(os.environ) if relayed else contextlib.nullcontext():
                        MPI.Init_thread(MPI.THREAD_SERIALIZED)
                elif MPI.Query_thread() < MPI.THREAD_SERIALIZED and not MPI.Is_thread_main():
                    raise LauncherMismatchError(
                        "MPI was initialised without the thread level that keystone_mpi needs "
                        "(MPI_THREAD_SERIALIZED): do not set mpi4py.rc.threads or rc.thread_level, or start "
                        "the program with python -m keystone_mpi"
                    )
        except (ImportError, RuntimeError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise LauncherMismatchError(
                f"started by an MPI launcher, but no MPI library can be loaded: {first_line} "
                "(install one: pip install 'keystone_mpi[mpich]', or load your site's MPI module; "
                "keystone-mpi doctor tells more)"
            ) from error
        self.library: str = library
        self._mpi: Any = MPI
        self.comm: Any = MPI.COMM_WORLD
        self.rank: int = self.comm.Get_rank()
        self.size: int = self.comm.Get_size()
        self.comm.Set_errhandler(MPI.ERRORS_RETURN)
        if promised_size is not None and promised_size != self.size:
            raise LauncherMismatchError(
                f"the launcher started {promised_size} ranks, but the MPI library ({self.library}) sees "
                f"{self.size}: they do not belong together. {way_out(library, os.environ)}"
            )

    def node_place(self) -> NodePlace:
        """Find the ranks that share this node; collective, every rank calls it."""
        node = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        try:
            local_size = node.Get_size()
            local_ranks: list[int] = node.Get_group().Translate_ranks(
                list(range(local_size)), self.comm.Get_group()
            )
        finally:
            node.Free()
        workers = sorted(rank for rank in local_ranks if rank != MASTER_RANK)
        if not workers:
            # A node whose only rank is the master gets a worker beside it.
            return NodePlace(index=0, workers=1, master_alone=True)
        index = workers.index(self.rank) if self.rank in workers else -1
        return NodePlace(index=index, workers=len(workers), master_alone=False)

    def finalize(self) -> None:
        """End MPI; every rank calls this."""
        if self.initialised_before:
            return  # mpi4py's own exit hook does it
        if self._mpi.Is_initialized() and not self._mpi.Is_finalized():
            _finalize_of(self._mpi)()

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        self.comm.Abort(code)


def _finalize_of(mpi: Any) -> Callable[[], object]:
    """Return MPI_Finalize, called so that other threads of Python run: one watches how long it takes.

    mpi4py keeps the interpreter's lock in its own call.
    """
    try:
        finalize = ctypes.CDLL(mpi.__file__).MPI_Finalize
    except (OSError, AttributeError):  # an mpi4py that finds its library in another way
        return mpi.Finalize  # type: ignore[no-any-return] # `mpi` is a module that is imported late
    finalize.restype = ctypes.c_int
    return finalize


class _Port:
    """Probing, sending and sleeping, common to both ends."""

    def __init__(self, world: MpiWorld, waiter: Waiter) -> None:
        self._mpi = world._mpi
        self._comm = world.comm
        self._waiter = waiter
        self._pending: list[tuple[Any, Any]] = []
        self.allocate: Callable[[int], Any] = bytearray
        """Makes the memory that a part is received into."""
        self._last_message = time.monotonic()
        self._matched_probe = os.environ.get("KEYSTONE_MPI_MPROBE", "1") != "0"
        self._status = self._mpi.Status()

    def send(self, rank: int, data: bytes, parts: Sequence[Any] = ()) -> None:
        if parts:
            views = [memoryview(_buffer(part)).cast("B") for part in parts]
            self._send(rank, with_parts(data, [view.nbytes for view in views]))
            for view in views:
                for start in range(0, view.nbytes, LARGEST_MESSAGE_BYTES):
                    self._send(rank, view[start : start + LARGEST_MESSAGE_BYTES])
        else:
            self._send(rank, data)
        self._last_message = time.monotonic()

    def _send(self, rank: int, data: Any) -> None:
        request = self._comm.Isend([data, self._mpi.BYTE], dest=rank, tag=TAG)
        if not request.Test():
            self._pending.append((request, data))

    def _receive_parts(self, source: int, sizes: Sequence[int]) -> list[Any]:
        """Receive what follows a message from `source`: the next messages from there, in order."""
        parts = []
        for size in sizes:
            part = self.allocate(size)
            view = memoryview(_buffer(part))
            for start in range(0, size, LARGEST_MESSAGE_BYTES):
                piece = view[start : start + LARGEST_MESSAGE_BYTES]
                self._comm.Recv([piece, self._mpi.BYTE], source=source, tag=TAG)
            parts.append(part)
        return parts

    def take(self, source: int) -> list[tuple[int, bytes, list[Any]]]:
        """Receive all that has arrived; empty when nothing has."""
        if self._pending:
            self._pending = [(request, data) for request, data in self._pending if not request.Test()]
        arrived = []
        while True:
            message = self._probe(source) or self._probe(source)
            if message is None:
                break
            rank, frame = message
            data, sizes = split_parts(frame)
            arrived.append((rank, data, self._receive_parts(rank, sizes) if sizes else []))
            if len(arrived) >= 1024:
                break
        if arrived:
            self._last_message = time.monotonic()
        return arrived

    def _probe(self, source: int) -> tuple[int, bytes] | None:
        status = self._status
        if self._matched_probe:
            message = self._comm.Improbe(source=source, tag=TAG, status=status)
            if message is None:
                return None
            buffer = bytearray(status.Get_count(self._mpi.BYTE))
            message.Recv([buffer, self._mpi.BYTE])
        else:
            if not self._comm.Iprobe(source=source, tag=TAG, status=status):
                return None
            buffer = bytearray(status.Get_count(self._mpi.BYTE))
            self._comm.Recv([buffer, self._mpi.BYTE], source=status.Get_source(), tag=TAG)
        return status.Get_source(), bytes(buffer)

    def wait(self, deadline: float, unhurried: bool = False) -> bool:
        """Sleep once, as long as the back-off allows; True when a descriptor or a wake-up ended it."""
        now = time.monotonic()
        quiet_s = now - self._last_message
        longest_s = LONGEST_SLEEP_S if quiet_s < QUIET_AFTER_S else LONGEST_SLEEP_QUIET_S
        shortest_s = UNHURRIED_SLEEP_S if unhurried else SHORTEST_SLEEP_S
        sleep_s = min(max(BACKOFF_FRACTION * quiet_s, shortest_s), longest_s)
        return self._waiter.wait(min(sleep_s, deadline - now))

    def flush(self, timeout_s: float) -> None:
        """Wait until MPI has sent everything, `timeout_s` at most."""
        deadline = time.monotonic() + timeout_s
        while self._pending and time.monotonic() < deadline:
            self._pending = [(request, data) for request, data in self._pending if not request.Test()]
            if self._pending:
                self._waiter.wait(0.001)


class MpiMaster:
    """Rank 0's end; local workers beside it may be connected to `hub`."""

    def __init__(self, world: MpiWorld) -> None:
        self._waiter = Waiter()
        self._port = _Port(world, self._waiter)
        self._any_source = world._mpi.ANY_SOURCE
        self._remote = [rank for rank in range(world.size) if rank != MASTER_RANK]
        self.hub = LocalHub(self._waiter)

    @property
    def workers(self) -> Sequence[int]:
        """See `MasterEnd`."""
        return self.hub.workers + self._remote

    def send(self, worker: int, message: ToWorker, parts: Sequence[Any] = ()) -> None:
        """See `MasterEnd`."""
        if worker == MASTER_RANK:
            self.hub.send(worker, message, parts)
        else:
            self._port.send(worker, encode(message), parts)

    def receive(self, timeout_s: float) -> list[Received]:
        """See `MasterEnd`."""
        deadline = time.monotonic() + timeout_s
        while True:
            received = self.hub.take()
            if self._remote:
                received += [
                    Received(rank, decode_from_worker(data), parts)
                    for rank, data, parts in self._port.take(self._any_source)
                ]
            if received or time.monotonic() >= deadline:
                return received
            if self._port.wait(deadline):
                # Somebody woke us: local messages, a signal or the journal. Look once more, then report.
                return self.hub.take()

    def wake(self) -> None:
        """See `MasterEnd`."""
        self._waiter.wake()

    def close(self) -> None:
        """See `MasterEnd`."""
        self._port.flush(timeout_s=5.0)
        self._waiter.close()


class MpiWorkerEnd:
    """The end of a rank other than 0."""

    def __init__(self, world: MpiWorld) -> None:
        self._waiter = Waiter()
        self._port = _Port(world, self._waiter)

    def allocate_parts_with(self, allocate: Callable[[int], Any]) -> None:
        """Receive the parts of messages into memory that `allocate` makes."""
        self._port.allocate = allocate

    def send(self, message: FromWorker, parts: Sequence[Any] = ()) -> None:
        """See `WorkerEnd`."""
        self._port.send(MASTER_RANK, encode(message), parts)

    def receive(self, timeout_s: float, *, unhurried: bool = False) -> list[ToWorker | Delivered]:
        """See `WorkerEnd`."""
        deadline = time.monotonic() + timeout_s
        while True:
            messages: list[ToWorker | Delivered] = []
            for _, data, parts in self._port.take(MASTER_RANK):
                message = decode_to_worker(data)
                messages.append(Delivered(message, parts) if parts else message)
            if messages or time.monotonic() >= deadline or self._port.wait(deadline, unhurried):
                return messages

    def watch(self, fileno: int) -> None:
        """See `WorkerEnd`."""
        self._waiter.watch(fileno)

    def unwatch(self, fileno: int) -> None:
        """See `WorkerEnd`."""
        self._waiter.unwatch(fileno)

    def close(self) -> None:
        """See `WorkerEnd`."""
        self._port.flush(timeout_s=5.0)
        self._waiter.close()
