"""A function process: serves calls one after the other, in the place of a solver.

Rule: an ordinary Python with the program's import path; started, watched,
pinned and killed like any solver. It takes one call at a time from the
kernel's queue and answers it before it takes the next. Whatever a function
raises is its result; what kills the process costs the call that was running.

    rank's listening socket <--connect, hello: both ends of the queue-- function process
    take --> load --> run --> dump --> reply          what a function prints goes to the program's own output
"""

from __future__ import annotations

import faulthandler
import io
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from keystone_mpi.execution import function_frames as frames
from keystone_mpi.execution.function_values import CannotTravelError, Value, dump, load

SOCKET_VARIABLE = "KEYSTONE_CALLS"
BOOT = (
    "import sys; sys.path[:] = __import__('json').loads(sys.argv.pop(1)); "
    "from keystone_mpi.execution.function_server import main; main()"
)
"""Run with the program's import path as first argument."""
_QUEUE_BYTES = 1 << 20
_OWN_FRAMES = 1
"""Frames of ours at the top of every traceback."""


def _connect(path: str, seat: int) -> socket.socket:
    """Make the queue and show both ends of it to the rank."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE_BYTES)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.connect(path)
        socket.send_fds(door, [str(seat).encode()], [theirs.fileno(), ours.fileno()])
    theirs.close()
    return ours


class FunctionServer:
    """The functions that are known and the loop around them.

    Parameters
    ----------
    sock : socket.socket
        This process's end of the queue.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._functions: dict[int, Callable[..., Any] | BaseException] = {}

    def serve(self) -> None:
        """Answer calls until the rank closes its end."""
        sock = self._sock
        while True:
            message, fds = frames.receive(sock)
            if not message:
                return
            kind, function, call, data, sizes = frames.unpack_call(message)
            blocks = frames.blocks_of(sizes, fds)
            parts = [block.view for block in blocks]
            if kind == frames.FUNCTION:
                try:
                    self._functions[function] = load(data, parts)
                except Exception as error:  # told by every call of it
                    self._functions[function] = error
            else:
                self._answer(function, call, data, parts)

    def _answer(self, function: int, call: int, data: memoryview, parts: list[memoryview]) -> None:
        started = time.time()
        began = time.perf_counter()
        try:
            if function:
                found = self._functions[function]
                if isinstance(found, BaseException):
                    raise found
                args, kwargs = load(data, parts)
            else:
                found, args, kwargs = load(data, parts)
            value = dump(found(*args, **kwargs))
            outcome = frames.OK
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            value = _failure(error)
            outcome = frames.FAILED
        sys.stdout.flush()
        sys.stderr.flush()
        duration_s = time.perf_counter() - began
        if value.parts:
            blocks = [frames.SharedBlock.of(part) for part in value.parts]
            sizes = [block.size_bytes for block in blocks]
            reply = frames.pack_reply(call, outcome, started, duration_s, value.data, sizes)
            frames.send(self._sock, reply, blocks)
        else:
            self._sock.send(frames.pack_reply(call, outcome, started, duration_s, value.data, ()))


class _Output(io.TextIOBase):
    """A standard stream of a function process: what is printed travels to the program.

    Parameters
    ----------
    sock : socket.socket
        This process's end of the queue.
    stream : int
        1 for stdout, 2 for stderr.
    """

    def __init__(self, sock: socket.socket, stream: int) -> None:
        self._sock = sock
        self._stream = stream
        self._pid = os.getpid()
        self._text = ""

    @property
    def encoding(self) -> str:  # type: ignore[override] # a plain attribute there
        """What text is sent as."""
        return "utf-8"

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the process's own stream, for what writes past this one."""
        return self._stream

    def write(self, text: str) -> int:
        """Take text; whole lines are sent at once."""
        self._text += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Send what was taken."""
        data, self._text = self._text.encode("utf-8", "replace"), ""
        if os.getpid() != self._pid:
            os.write(self._stream, data)  # a child of the function: the queue is not its own
            return
        for start in range(0, len(data), frames.OUTPUT_BYTES):
            self._sock.send(frames.pack_output(self._stream, data[start : start + frames.OUTPUT_BYTES]))


def _failure(error: BaseException) -> Value:
    """Pickle an exception with its traceback; one that cannot travel is told by its text."""
    trace = error.__traceback__
    for _ in range(_OWN_FRAMES):
        trace = trace.tb_next if trace is not None and trace.tb_next is not None else trace
    text = "".join(traceback.format_exception(type(error), error, trace))
    error.__traceback__ = None
    try:
        value = dump((error, text))
        load(value.data, value.parts)
    except Exception:
        # Some exceptions pickle and cannot be unpickled (an __init__ with other arguments).
        return dump((RuntimeError(f"{type(error).__name__}: {error}"), text))
    return value


def main() -> None:
    """Be a function process; for `FunctionSeats` only."""
    path = os.environ.pop(SOCKET_VARIABLE)
    seat = int(os.environ["KEYSTONE_INDEX"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    sys.argv[:] = [""]
    sock = _connect(path, seat)
    sys.stdout, sys.stderr = _Output(sock, 1), _Output(sock, 2)
    server = FunctionServer(sock)
    try:
        server.serve()
    except (BrokenPipeError, ConnectionResetError):
        return  # the rank is gone
    finally:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # the queue is closed


__all__ = ["BOOT", "SOCKET_VARIABLE", "CannotTravelError", "FunctionServer", "main"]
