"""The transport under mpiexec and srun.

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

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from keystone_mpi.transport.channel import (
    Delivered,
    Received,
    decode_from_worker,
    decode_to_worker,
    encode,
    split_parts,
    with_parts,
)
from keystone_mpi.transport.local import LocalHub
from keystone_mpi.transport.messages import FromWorker, ToWorker
from keystone_mpi.transport.waiter import Waiter
from keystone_mpi.transport.world import MASTER_RANK, MpiWorld

TAG = 17
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
