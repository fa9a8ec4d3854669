"""The two ends of a transport, as the engine sees them.

Rule: a transport carries messages in order between the master and each
worker, and knows nothing of tasks. All calls on one end come from one thread,
except `wake`, which any thread or signal handler may call.

    master end   send(worker, message)   receive(timeout) -> [Received]
    worker end   send(message)           receive(timeout) -> [message]

Workers are numbered by their MPI rank; 0 is a worker beside the master.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from keystone_mpi.transport.messages import FromWorker, ToWorker

encode = msgspec.msgpack.Encoder().encode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode


class Received(msgspec.Struct, frozen=True, gc=False):
    """One message from one worker."""

    worker: int
    message: FromWorker


class MasterEnd(Protocol):
    """The master's end: one to many."""

    @property
    def workers(self) -> Sequence[int]:
        """Numbers of the workers that will say hello."""

    def send(self, worker: int, message: ToWorker) -> None:
        """Queue `message` for `worker`; never blocks."""

    def receive(self, timeout_s: float) -> list[Received]:
        """Return what has arrived, waiting up to `timeout_s` for the first message or wake-up."""

    def wake(self) -> None:
        """Make a waiting `receive` return."""

    def close(self) -> None:
        """Send what is queued, then leave."""


class WorkerEnd(Protocol):
    """A worker's end: one to one."""

    def send(self, message: FromWorker) -> None:
        """Queue `message` for the master; never blocks."""

    def receive(self, timeout_s: float) -> list[ToWorker]:
        """Return what has arrived, waiting up to `timeout_s` or until a watched descriptor is ready."""

    def watch(self, fileno: int) -> None:
        """Make a waiting `receive` return when `fileno` is readable."""

    def unwatch(self, fileno: int) -> None:
        """Stop watching `fileno`."""

    def close(self) -> None:
        """Send what is queued, then leave."""
