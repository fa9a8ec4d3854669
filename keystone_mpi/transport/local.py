"""The transport with no launcher: threads of one process, the same protocol.

Rule: messages are encoded here too, so that nothing is shared by accident and
what works on a laptop works under mpiexec.

    LocalEnd.send --bytes--> hub inbox   -> LocalMaster.receive
    LocalMaster.send --bytes--> end inbox -> LocalEnd.receive
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from keystone_mpi.core.errors import InternalError
from keystone_mpi.transport.channel import (
    Delivered,
    Received,
    decode_from_worker,
    decode_to_worker,
    encode,
)
from keystone_mpi.transport.messages import FromWorker, ToWorker
from keystone_mpi.transport.waiter import Waiter


class LocalHub:
    """Where the local workers' messages arrive; shared by `LocalMaster` and the MPI master.

    Parameters
    ----------
    waiter : Waiter
        Woken for every message that arrives.
    """

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter
        self._inbox: deque[tuple[int, bytes, Sequence[Any]]] = deque()
        self._ends: dict[int, LocalEnd] = {}
        self._lock = threading.Lock()

    @property
    def workers(self) -> list[int]:
        """Numbers of the connected workers."""
        with self._lock:
            return sorted(self._ends)

    def connect(self, worker: int) -> LocalEnd:
        """Make the end of local worker number `worker`."""
        end = LocalEnd(worker, self)
        with self._lock:
            if worker in self._ends:
                raise InternalError(f"local worker {worker} is connected already")
            self._ends[worker] = end
        return end

    def deliver(self, worker: int, data: bytes, parts: Sequence[Any]) -> None:
        """Called by an end, from its own thread."""
        self._inbox.append((worker, data, parts))
        self._waiter.wake()

    def send(self, worker: int, message: ToWorker, parts: Sequence[Any] = ()) -> None:
        """Hand `message` to a local worker; one that has left is ignored."""
        with self._lock:
            end = self._ends.get(worker)
        if end is not None:
            end.deliver(encode(message), parts)

    def take(self) -> list[Received]:
        """Return what has arrived, without waiting."""
        received = []
        while self._inbox:
            worker, data, parts = self._inbox.popleft()
            received.append(Received(worker, decode_from_worker(data), list(parts)))
        return received

    def disconnect(self, worker: int) -> None:
        """Called by an end that closes."""
        with self._lock:
            self._ends.pop(worker, None)


class LocalEnd:
    """A local worker's end."""

    def __init__(self, worker: int, hub: LocalHub) -> None:
        self.worker = worker
        self._hub = hub
        self._waiter = Waiter()
        self._inbox: deque[tuple[bytes, Sequence[Any]]] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def deliver(self, data: bytes, parts: Sequence[Any]) -> None:
        """Called by the hub, from the master's thread."""
        with self._lock:
            if not self._closed:
                self._inbox.append((data, parts))
                self._waiter.wake()

    def send(self, message: FromWorker, parts: Sequence[Any] = ()) -> None:
        """See `WorkerEnd`."""
        self._hub.deliver(self.worker, encode(message), parts)

    def receive(
        self,
        timeout_s: float,
        *,
        unhurried: bool = False,  # noqa: ARG002 - a thread is woken, it does not poll
    ) -> list[ToWorker | Delivered]:
        """See `WorkerEnd`."""
        if not self._inbox:
            self._waiter.wait(timeout_s)
        messages: list[ToWorker | Delivered] = []
        while self._inbox:
            data, parts = self._inbox.popleft()
            message = decode_to_worker(data)
            messages.append(Delivered(message, list(parts)) if parts else message)
        return messages

    def allocate_parts_with(self, allocate: Callable[[int], Any]) -> None:
        """See `WorkerEnd`: here parts come as they were sent."""

    def watch(self, fileno: int) -> None:
        """See `WorkerEnd`."""
        self._waiter.watch(fileno)

    def unwatch(self, fileno: int) -> None:
        """See `WorkerEnd`."""
        self._waiter.unwatch(fileno)

    def close(self) -> None:
        """See `WorkerEnd`."""
        self._hub.disconnect(self.worker)
        with self._lock:
            self._closed = True
            self._waiter.close()


class LocalMaster:
    """The master's end when every worker is a thread of this process."""

    def __init__(self) -> None:
        self._waiter = Waiter()
        self.hub = LocalHub(self._waiter)

    @property
    def workers(self) -> Sequence[int]:
        """See `MasterEnd`."""
        return self.hub.workers

    def send(self, worker: int, message: ToWorker, parts: Sequence[Any] = ()) -> None:
        """See `MasterEnd`."""
        self.hub.send(worker, message, parts)

    def receive(self, timeout_s: float) -> list[Received]:
        """See `MasterEnd`."""
        deadline = time.monotonic() + timeout_s
        received = self.hub.take()
        if not received:
            self._waiter.wait(deadline - time.monotonic())
            received = self.hub.take()
        return received

    def wake(self) -> None:
        """See `MasterEnd`."""
        self._waiter.wake()

    def close(self) -> None:
        """See `MasterEnd`."""
        self._waiter.close()
