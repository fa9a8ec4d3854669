"""Frames: what a worker rank and its function processes say to each other.

Rule: one datagram is one message (SOCK_SEQPACKET), so the kernel's queue is the
queue of calls: the function process takes one call at a time, and the rank,
which keeps the reading end too, can take back what has not been begun. Whoever
takes a call has it alone; no lock, no race. Every reply is sent when it is
made, so what a crash loses is the one call that was running.

    rank: CALL | FUNCTION --> [kernel queue] --> function process     (rank may read it, too)
    rank: <-- REPLY                                                   (in the order of the calls)
    rank: <-- OUTPUT                                                  (what functions print, before the reply)
    rank closes its end --> the function process ends

Parts (large buffers) are memory files that go along as descriptors; the
reader maps them, and numpy arrays lie in them uncopied.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

FUNCTION = 1
CALL = 2
REPLY = 3
OUTPUT = 4

OK = 0
FAILED = 1
"""The value is the exception and its traceback as text."""

_CALL = struct.Struct("<BBIQ")
_REPLY = struct.Struct("<BBBQdd")
_SIZE = struct.Struct("<Q")
CALL_HEAD_BYTES = _CALL.size
REPLY_HEAD_BYTES = _REPLY.size
MESSAGE_BYTES = 128 << 10
OUTPUT_BYTES = 16 << 10
"""Printed text goes in pieces of this size at most."""
MAX_PARTS = 200
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_PARTS * 4)


class SharedBlock:
    """Memory that another process can map: a buffer of a call or of a result."""

    __slots__ = ("fd", "map", "size_bytes")

    def __init__(self, size_bytes: int, fd: int = -1) -> None:
        if fd < 0:
            fd = os.memfd_create("keystone-part", os.MFD_CLOEXEC)
            os.ftruncate(fd, size_bytes)
        self.fd = fd
        self.size_bytes = size_bytes
        self.map: mmap.mmap | None = None

    @classmethod
    def of(cls, data: Any) -> SharedBlock:
        """Copy a buffer."""
        view = memoryview(data).cast("B")
        block = cls(view.nbytes)
        done = 0
        while done < view.nbytes:
            done += os.pwrite(block.fd, view[done:], done)
        return block

    @property
    def view(self) -> memoryview:
        """The memory itself, writable."""
        if self.map is None:
            self.map = mmap.mmap(self.fd, self.size_bytes)
        return memoryview(self.map)

    def close(self) -> None:
        """Let go of the descriptor; what is mapped stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


def as_block(part: Any) -> SharedBlock:
    """Return a part as a block, copying it when it is not one yet."""
    return part if isinstance(part, SharedBlock) else SharedBlock.of(part)


def as_buffer(part: Any) -> Any:
    """Return a part as something with the buffer protocol."""
    return part.view if isinstance(part, SharedBlock) else part


def pack_call(function: int, call: int, data: bytes, part_sizes: Sequence[int]) -> bytes:
    """Spell a call; the parts go along as descriptors."""
    return b"".join((_CALL.pack(CALL, len(part_sizes), function, call), *map(_SIZE.pack, part_sizes), data))


def pack_function(function: int, data: bytes, part_sizes: Sequence[int]) -> bytes:
    """Spell the definition of a function that calls refer to by number."""
    return b"".join((_CALL.pack(FUNCTION, len(part_sizes), function, 0), *map(_SIZE.pack, part_sizes), data))


def unpack_call(message: bytes) -> tuple[int, int, int, memoryview, list[int]]:
    """Return (kind, function, call, data, sizes of the parts)."""
    kind, parts, function, call = _CALL.unpack_from(message)
    start = CALL_HEAD_BYTES + 8 * parts
    sizes = [_SIZE.unpack_from(message, CALL_HEAD_BYTES + 8 * k)[0] for k in range(parts)] if parts else []
    return kind, function, call, memoryview(message)[start:], sizes


def pack_reply(
    call: int, outcome: int, started: float, duration_s: float, data: bytes, part_sizes: Sequence[int]
) -> bytes:
    """Spell the outcome of a call."""
    head = _REPLY.pack(REPLY, len(part_sizes), outcome, call, started, duration_s)
    if part_sizes:
        return b"".join((head, *map(_SIZE.pack, part_sizes), data))
    return head + data


def reply_parts(message: bytes) -> list[int]:
    """Return the sizes of a reply's parts."""
    return [_SIZE.unpack_from(message, REPLY_HEAD_BYTES + 8 * k)[0] for k in range(message[1])]


def unpack_reply(message: bytes) -> tuple[int, int, float, float, memoryview]:
    """Return (call, outcome, started, duration, data)."""
    _, parts, outcome, call, started, duration_s = _REPLY.unpack_from(message)
    return call, outcome, started, duration_s, memoryview(message)[REPLY_HEAD_BYTES + 8 * parts :]


def pack_output(stream: int, text: bytes) -> bytes:
    """Spell printed text; `stream` is 1 for stdout, 2 for stderr."""
    return bytes((OUTPUT, stream)) + text


def unpack_output(message: bytes) -> tuple[int, bytes]:
    """Return (stream, text)."""
    return message[1], message[2:]


def send(sock: socket.socket, message: bytes, blocks: Sequence[SharedBlock] = ()) -> None:
    """Send one message with the descriptors of its parts."""
    if blocks:
        fds = array.array("i", [block.fd for block in blocks])
        sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    else:
        sock.send(message)


def receive(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive one message and the descriptors that came with it; empty at the end of the stream."""
    flags |= socket.MSG_CMSG_CLOEXEC
    message, ancillary, _, _ = sock.recvmsg(MESSAGE_BYTES, _ANCILLARY_BYTES, flags)
    if not ancillary:
        return message, []
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return message, list(fds)


def blocks_of(sizes: Sequence[int], fds: Sequence[int]) -> list[SharedBlock]:
    """Wrap the descriptors that came with a message."""
    return [SharedBlock(size, fd) for size, fd in zip(sizes, fds, strict=True)]
