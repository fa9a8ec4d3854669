"""The two ends of a transport, as the engine sees them.

Rule: a transport carries messages in order between the master and each
worker, and knows nothing of tasks. All calls on one end come from one thread,
except `wake`, which any thread or signal handler may call.

    master end   send(worker, message, parts)   receive(timeout) -> [Received]
    worker end   send(message, parts)           receive(timeout) -> [message]

Parts are large buffers that travel behind their message without being copied
into it; their sender leaves them alone from then on.

Workers are numbered by their MPI rank; 0 is a worker beside the master.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from keystone_mpi.transport.messages import FromWorker, ToWorker

encode = msgspec.msgpack.Encoder().encode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode


class Received(msgspec.Struct, frozen=True, gc=False):
    """One message from one worker."""

    worker: int
    message: FromWorker
    parts: list[Any] = []


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """One message from the master that has parts."""

    message: ToWorker
    parts: list[Any]


_HEAD = struct.Struct("<BI")
_SIZE = struct.Struct("<Q")
_HAS_PARTS = 0xC1
"""First byte of a frame whose parts follow; no msgpack begins with it."""


def with_parts(data: bytes, sizes: Sequence[int]) -> bytes:
    """Announce the parts that follow an encoded message."""
    return b"".join((_HEAD.pack(_HAS_PARTS, len(sizes)), *map(_SIZE.pack, sizes), data))


def split_parts(frame: bytes) -> tuple[bytes, list[int]]:
    """Return the encoded message of a frame and the sizes of the parts that follow it."""
    if frame[0] != _HAS_PARTS:
        return frame, []
    _, count = _HEAD.unpack_from(frame)
    start = _HEAD.size + 8 * count
    return frame[start:], [_SIZE.unpack_from(frame, _HEAD.size + 8 * k)[0] for k in range(count)]


class MasterEnd(Protocol):
    """The master's end: one to many."""

    @property
    def workers(self) -> Sequence[int]:
        """Numbers of the workers that will say hello."""

    def send(self, worker: int, message: ToWorker, parts: Sequence[Any] = ()) -> None:
        """Queue `message` and the buffers that belong to it for `worker`; never blocks."""

    def receive(self, timeout_s: float) -> list[Received]:
        """Return what has arrived, waiting up to `timeout_s` for the first message or wake-up."""

    def wake(self) -> None:
        """Make a waiting `receive` return."""

    def close(self) -> None:
        """Send what is queued, then leave."""


class WorkerEnd(Protocol):
    """A worker's end: one to one."""

    def send(self, message: FromWorker, parts: Sequence[Any] = ()) -> None:
        """Queue `message` and the buffers that belong to it for the master; never blocks."""

    def receive(self, timeout_s: float, *, unhurried: bool = False) -> list[ToWorker | Delivered]:
        """Return what has arrived, waiting up to `timeout_s` or until a watched descriptor is ready.

        `unhurried`: a worker that holds work may hear of a message a few milliseconds late.
        A message that came with parts comes as `Delivered`.
        """

    def allocate_parts_with(self, allocate: Callable[[int], Any]) -> None:
        """Receive the parts of messages into memory that `allocate` makes, where they are received."""

    def watch(self, fileno: int) -> None:
        """Make a waiting `receive` return when `fileno` is readable."""

    def unwatch(self, fileno: int) -> None:
        """Stop watching `fileno`."""

    def close(self) -> None:
        """Send what is queued, then leave."""
