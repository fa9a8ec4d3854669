"""A worker's function processes: their queues, what they answer, and what is left when one dies.

Rule: a seat is an attempt of a task, placed and supervised like any other; this
module only carries calls to its process and replies back. What was given comes
back once: as a reply, as returned, or as the call that was running at the end.

    CallsGiven --> waiting --> kernel queue --> function process --> CallReplies
    CallsRecalled --> what is still in the kernel queue is read back --> CallsReturned
    report of the attempt --> last replies, what is left in the queue --> SeatEnded
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from keystone_mpi.execution import function_frames as frames
from keystone_mpi.execution.function_frames import SharedBlock
from keystone_mpi.execution.function_server import SOCKET_VARIABLE
from keystone_mpi.execution.scratch import new_scratch_root
from keystone_mpi.tools.recipe import Launch
from keystone_mpi.transport.messages import (
    Call,
    CallOutput,
    CallReplies,
    CallsReturned,
    FromWorker,
    SeatEnded,
)

GATHER_S = 0.0002
"""Replies of a seat that has many calls are gathered for so long."""
GATHER_FROM = 8
"""Calls a seat must still have for its replies to be gathered."""
_CREDENTIALS = struct.Struct("3i")

Outgoing = tuple[FromWorker, Sequence[Any]]
"""A message for the master and its parts."""


class _Seat:
    __slots__ = ("closing", "known", "parts", "queue", "sent", "spare", "waiting")

    def __init__(self) -> None:
        self.queue: socket.socket | None = None
        """Our end; None until the process has connected."""
        self.spare: socket.socket | None = None
        """The process's end, held too: calls that it has not taken are read back from it."""
        self.waiting: deque[tuple[Call, Sequence[Any]]] = deque()
        self.sent: deque[int] = deque()
        """Calls in the kernel's queue, and before them the one that runs."""
        self.known: set[int] = set()
        """Functions that the process was sent."""
        self.closing = False


class FunctionSeats:
    """All function processes of one worker."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._folder = ""
        self._door: socket.socket | None = None
        self._seats: dict[int, _Seat] = {}
        self._seat_of_fd: dict[int, int] = {}
        self._functions: dict[int, tuple[bytes, Sequence[Any]]] = {}

    def fileno(self) -> int:
        """Return the descriptor that is readable when `poll` has something to do."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Let go of everything; the processes end by themselves."""
        for seat in self._seats.values():
            self._hang_up(seat)
        self._seats.clear()
        if self._door is not None:
            self._door.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._epoll.close()

    # --- what the worker says ------------------------------------------------

    def open(self, seat: int, launch: Launch) -> Launch:
        """A function process is about to be started as attempt of task `seat`: tell it the way here."""
        if self._door is None:
            self._listen()
        self._seats.setdefault(seat, _Seat())
        return msgspec.structs.replace(launch, env={**launch.env, SOCKET_VARIABLE: self._path})

    @property
    def _path(self) -> str:
        return os.path.join(self._folder, "calls")

    def _listen(self) -> None:
        # Removed by the next start on this node when this process is killed.
        self._folder = new_scratch_root()
        os.mkdir(self._folder, 0o700)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door.bind(self._path)
        self._door.listen(256)
        self._door.setblocking(False)
        self._epoll.register(self._door.fileno(), select.EPOLLIN)

    def define(self, function: int, data: bytes, parts: Sequence[Any]) -> None:
        """Remember a function for the processes that will be given calls of it."""
        self._functions[function] = (data, parts)

    def give(self, number: int, calls: Sequence[Call], parts: Sequence[Any]) -> None:
        """Queue calls for a seat."""
        seat = self._seats.setdefault(number, _Seat())
        first = 0
        for call in calls:
            seat.waiting.append((call, parts[first : first + call.parts]))
            first += call.parts
        self._feed(seat)

    def recall(self, number: int) -> list[Outgoing]:
        """Take back the calls that a seat has not begun."""
        seat = self._seats.get(number)
        if seat is None:
            return []
        return [(CallsReturned(number, self._take_back(seat)), ())]

    def close_seat(self, number: int) -> None:
        """Have a seat's process end when it has answered what it was given."""
        seat = self._seats.get(number)
        if seat is not None:
            seat.closing = True
            self._feed(seat)

    @property
    def any_open(self) -> bool:
        """Whether some attempt serves function calls."""
        return bool(self._seats)

    def ended(self, number: int) -> list[Outgoing]:
        """The attempt of a seat has ended: say what became of its calls."""
        seat = self._seats.pop(number, None)
        if seat is None:
            return []
        outgoing = self._read(number, seat)
        returned = self._take_back(seat)
        running = seat.sent[0] if seat.sent else -1
        self._hang_up(seat)
        outgoing.append((SeatEnded(number, running, returned), ()))
        return outgoing

    # --- the queues ----------------------------------------------------------

    def poll(self) -> list[Outgoing]:
        """Take in new processes and replies."""
        ready = self._epoll.poll(0)
        if not ready:
            return []
        outgoing: list[Outgoing] = []
        gathered = False
        for fd, _ in ready:
            number = self._seat_of_fd.get(fd)
            if number is None:
                self._accept()
                continue
            seat = self._seats[number]
            if not gathered and len(seat.sent) > GATHER_FROM:
                gathered = True
                time.sleep(GATHER_S)
            outgoing += self._read(number, seat)
            if seat.waiting or seat.closing:
                self._feed(seat)
        return outgoing

    def _accept(self) -> None:
        assert self._door is not None
        try:
            visitor, _ = self._door.accept()
        except BlockingIOError:
            return
        with visitor:
            data = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(data)[1] != os.getuid():
                return
            visitor.settimeout(5.0)
            try:
                hello, fds = frames.receive(visitor)
            except OSError:
                return  # it died right after its start; its report says so
        ends = [socket.socket(fileno=fd) for fd in fds]
        seat = self._seats.get(int(hello)) if hello.isdigit() else None
        if seat is None or len(ends) != 2:
            for end in ends:
                end.close()
            return
        seat.queue, seat.spare = ends
        seat.queue.setblocking(False)
        self._seat_of_fd[seat.queue.fileno()] = int(hello)
        self._epoll.register(seat.queue.fileno(), select.EPOLLIN)
        self._feed(seat)

    def _feed(self, seat: _Seat) -> None:
        """Move calls into the kernel's queue, as many as it takes."""
        if seat.queue is None:
            return
        while seat.waiting:
            call, parts = seat.waiting[0]
            try:
                if call.function and call.function not in seat.known:
                    self._send_function(seat, call.function)
                blocks = [frames.as_block(part) for part in parts]
                sizes = [block.size_bytes for block in blocks]
                frames.send(seat.queue, frames.pack_call(call.function, call.call, call.data, sizes), blocks)
            except BlockingIOError:
                return
            except OSError:
                return  # its process is gone: the report of its attempt settles what it had
            seat.waiting.popleft()
            seat.sent.append(call.call)
        if seat.closing and not seat.sent:
            self._hang_up(seat)

    def _send_function(self, seat: _Seat, function: int) -> None:
        assert seat.queue is not None
        data, parts = self._functions[function]
        blocks = [SharedBlock.of(frames.as_buffer(part)) for part in parts]
        sizes = [block.size_bytes for block in blocks]
        frames.send(seat.queue, frames.pack_function(function, data, sizes), blocks)
        seat.known.add(function)

    def _read(self, number: int, seat: _Seat) -> list[Outgoing]:
        """Take the replies that have come; those with parts travel alone."""
        outgoing: list[Outgoing] = []
        replies: list[bytes] = []
        queue = seat.queue
        if queue is None:
            return outgoing
        while True:
            try:
                message, fds = frames.receive(queue)
            except (BlockingIOError, ConnectionResetError):
                break
            if not message:
                break
            if message[0] == frames.OUTPUT:
                if replies:
                    outgoing.append((CallReplies(number, replies), ()))
                    replies = []
                outgoing.append((CallOutput(number, *frames.unpack_output(message)), ()))
                continue
            seat.sent.popleft()
            replies.append(message)
            if fds:
                blocks = frames.blocks_of(frames.reply_parts(message), fds)
                outgoing.append((CallReplies(number, replies), blocks))
                replies = []
        if replies:
            outgoing.append((CallReplies(number, replies), ()))
        return outgoing

    def _take_back(self, seat: _Seat) -> list[int]:
        """Read back what the process has not taken."""
        returned: list[int] = []
        while seat.spare is not None:
            try:
                # Not by setblocking: that would change the process's end, too.
                message, fds = frames.receive(seat.spare, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                break
            if not message:
                break
            for fd in fds:
                os.close(fd)
            kind, function, call, _, _ = frames.unpack_call(message)
            if kind == frames.FUNCTION:
                seat.known.discard(function)
            else:
                returned.append(call)
        if returned:
            taken = set(returned)
            seat.sent = deque(call for call in seat.sent if call not in taken)
        returned += [call.call for call, _ in seat.waiting]
        seat.waiting.clear()
        return returned

    def _hang_up(self, seat: _Seat) -> None:
        if seat.queue is not None:
            self._seat_of_fd.pop(seat.queue.fileno(), None)
            self._epoll.unregister(seat.queue.fileno())
            seat.queue.close()
            seat.queue = None
        if seat.spare is not None:
            seat.spare.close()
            seat.spare = None
