"""Calls: functions on their way to function processes and back, on the master's side.

Rule: the scheduler places seats (function processes, tasks of its own kind);
which call goes to which seat is decided here, since calls are a hundred times
quicker than tasks. Quick calls are given many at a time, long ones one by one;
what waits behind a long one while a seat is idle is asked back.

    submit --> pool's queue --give--> seat --CallReplies--> future
    seat died --> its running call fails, the others go back to the front of the queue
    tasks wait for cores --> idle seats are closed, busy ones are after a while
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from keystone_mpi.core.errors import ClusterError
from keystone_mpi.core.model import AttemptReport, Outcome
from keystone_mpi.engine.call_futures import CallCrashedError, CallFuture, PendingCall, RemoteError
from keystone_mpi.execution import function_frames as frames
from keystone_mpi.execution.function_values import Value, load
from keystone_mpi.transport import messages

AHEAD_S = 0.005
"""Work that a seat may have beyond the call it runs."""
AHEAD_CALLS = 256
AHEAD_BYTES = 1 << 20
OVERHEAD_S = 20e-6
"""Least time that a call is taken to need."""
STUCK_S = 0.005
"""A seat that answers nothing for so long gives back what waits there, when another is idle."""
SHARE_S = 1.0
"""A seat makes room for waiting tasks after so long."""
STILLBORN_LIMIT = 3
"""Function processes that may die before their first call, one after the other."""
_SMOOTHING = 0.3


class CallPool:
    """The calls of one executor.

    Parameters
    ----------
    limit : int or None
        Seats it may use at the same time; None: as many as there are slots.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.pending: deque[PendingCall] = deque()
        self.seats: set[Seat] = set()
        self.hungry: deque[Seat] = deque()
        """Seats that should be given more."""
        self.requested = 0
        self.mean_s = float("nan")
        self.stillborn = 0
        self.submitted = 0
        """Calls ever; counted by who submits."""
        self.settled = 0
        """Calls that have their answer; counted by the engine's thread."""
        self.quiet = threading.Condition()
        """Notified when every call has its answer."""

    @property
    def unanswered(self) -> int:
        """Calls without an answer."""
        return self.submitted - self.settled

    def depth(self) -> int:
        """Return how many calls a seat may have, the running one included."""
        if not self.mean_s < 4 * AHEAD_S:
            return 1
        wanted = 1 + max(1, min(AHEAD_CALLS, int(AHEAD_S / max(self.mean_s, OVERHEAD_S))))
        return max(1, min(wanted, len(self.pending) // (2 * max(1, len(self.seats))) + 1))


class Seat:
    """A function process."""

    __slots__ = ("answered", "at", "closing", "given", "index", "is_hungry", "opened", "pool", "recalled",
                 "running", "worker")  # fmt: skip

    def __init__(self, index: int, pool: CallPool) -> None:
        self.index = index
        self.pool: CallPool | None = pool
        """None: idle."""
        self.worker = -1
        self.given: dict[int, PendingCall] = {}
        self.at = 0.0
        """When it was last given something or answered."""
        self.opened = 0.0
        self.answered = 0
        self.is_hungry = False
        self.recalled = False
        self.closing = False
        self.running = -1


class Engine(Protocol):
    """What the desk needs of the hub."""

    def request_seat(self, seat: Callable[[int], Seat]) -> None:
        """Have the scheduler place one more seat."""

    def send(self, worker: int, message: Any, parts: Sequence[Any] = ()) -> None:
        """Send a message to a worker."""

    def tasks_wait(self) -> bool:
        """Tell whether tasks wait for cores."""

    def place_of(self, worker: int) -> str:
        """Name a worker and its host for people."""

    @property
    def slots(self) -> int:
        """Slots of all workers."""


class CallDesk:
    """Gives calls to seats; used in the engine's thread, but for `submit`."""

    def __init__(self, engine: Engine, functions: Callable[[int], Value]) -> None:
        self._engine = engine
        self._functions = functions
        """Number -> pickled function."""
        self._pools: list[CallPool] = []
        self._seats: dict[int, Seat] = {}
        self._idle: deque[Seat] = deque()
        self._known: dict[int, set[int]] = {}
        """Worker -> functions that it was sent."""
        self._look_at = 0.0
        self.broken: Exception | None = None
        """Why no call can be made any more."""

    # --- other threads -------------------------------------------------------

    @staticmethod
    def submit(pool: CallPool, call: PendingCall) -> None:
        """Queue a call; the caller holds a lock of its own on the pool, and wakes the engine."""
        pool.submitted += 1
        pool.pending.append(call)

    def fail_late(self, pool: CallPool) -> None:
        """Fail what was queued after the engine had ended, which will not look again."""
        self._fail_all(pool, self.broken or ClusterError("the engine has ended"))

    # --- the engine's thread -------------------------------------------------

    def add_pool(self, pool: CallPool) -> None:
        """Take an executor on."""
        self._pools.append(pool)

    def remove_pool(self, pool: CallPool) -> None:
        """Forget an executor that has no unanswered call."""
        if pool in self._pools:
            self._pools.remove(pool)

    def pump(self, now: float) -> None:
        """Give out what waits, as far as there are seats, and ask for more seats."""
        for pool in self._pools:
            if pool.pending:
                if self.broken is not None:
                    self._fail_all(pool, self.broken)
                else:
                    self._pump_pool(pool, now)
            while pool.hungry and not pool.pending:
                seat = pool.hungry.popleft()
                seat.is_hungry = False
                if not seat.given:
                    self._rest(seat, pool)
        if self.broken is not None:
            self._close_seats()
        elif now >= self._look_at:
            self._look_at = now + STUCK_S
            self._look_around(now)

    def next_deadline(self) -> float | None:
        """Return when `pump` should be called again though nothing happens."""
        for pool in self._pools:
            if not pool.pending and any(len(seat.given) > 1 and not seat.recalled for seat in pool.seats):
                return self._look_at
        if self._seats and self._engine.tasks_wait() and not all(s.closing for s in self._seats.values()):
            return self._look_at
        return None

    @property
    def unplaced(self) -> int:
        """Seats that were asked for and have no worker yet."""
        return sum(pool.requested for pool in self._pools)

    def _pump_pool(self, pool: CallPool, now: float) -> None:
        limit = min(pool.limit or self._engine.slots, self._engine.slots)
        while pool.pending:
            if pool.hungry:
                seat = pool.hungry.popleft()
                seat.is_hungry = False
                if seat.closing or seat.pool is not pool:
                    continue
            elif self._idle and len(pool.seats) < limit:
                seat = self._idle.pop()  # the one that was at work last
                if seat.closing:
                    continue
                seat.pool = pool
                pool.seats.add(seat)
            else:
                break
            self._give(seat, pool, now)
        wanted = min(limit - len(pool.seats), len(pool.pending)) - pool.requested
        for _ in range(wanted):
            pool.requested += 1
            self._engine.request_seat(lambda index: self._new_seat(index, pool))

    def _new_seat(self, index: int, pool: CallPool) -> Seat:
        seat = self._seats[index] = Seat(index, pool)
        return seat

    def _give(self, seat: Seat, pool: CallPool, now: float) -> None:
        pending = pool.pending
        room = pool.depth() - len(seat.given)
        known = self._known.setdefault(seat.worker, set())
        calls: list[messages.Call] = []
        parts: list[Any] = []
        size_bytes = 0
        while room > 0 and pending and size_bytes < AHEAD_BYTES:
            call = pending.popleft()
            if not call.begun:
                if not call.future.set_running_or_notify_cancel():
                    self._settled(pool)
                    continue
                call.begun = True
            function = call.function
            value = call.value
            if function and function not in known:
                known.add(function)
                definition = self._functions(function)
                self._engine.send(
                    seat.worker, messages.FunctionDefined(function, definition.data), definition.parts
                )
            calls.append(messages.Call(call.number, function, value.data, len(value.parts)))
            if value.parts:
                parts += value.parts
                size_bytes += AHEAD_BYTES
            size_bytes += len(value.data)
            seat.given[call.number] = call
            room -= 1
        if calls:
            seat.at = now
            self._engine.send(seat.worker, messages.CallsGiven(seat.index, calls), parts)
        if not seat.given:
            self._rest(seat, pool)

    def _rest(self, seat: Seat, pool: CallPool) -> None:
        """A seat has nothing to do."""
        if seat.pool is pool and not seat.closing:
            pool.seats.discard(seat)
            seat.pool = None
            self._idle.append(seat)

    def seat_opened(self, index: int, worker: int) -> None:
        """The scheduler placed a seat."""
        seat = self._seats[index]
        seat.worker = worker
        seat.opened = time.monotonic()
        pool = seat.pool
        assert pool is not None
        pool.requested -= 1
        pool.seats.add(seat)
        if pool.pending:
            self._feel_hungry(seat, pool)
        else:
            self._rest(seat, pool)

    @staticmethod
    def _feel_hungry(seat: Seat, pool: CallPool) -> None:
        if not seat.is_hungry and not seat.closing:
            seat.is_hungry = True
            pool.hungry.append(seat)

    def replies(self, index: int, replies: Sequence[bytes], parts: Sequence[Any], now: float) -> None:
        """A seat answered; the parts belong to the last of the replies."""
        seat = self._seats.get(index)
        if seat is None or seat.pool is None:
            return
        pool = seat.pool
        seat.at = now
        total_s = 0.0
        settled = 0
        last = len(replies) - 1
        for position, reply in enumerate(replies):
            number, outcome, started, duration_s, data = frames.unpack_reply(reply)
            call = seat.given.pop(number, None)
            if call is None:
                continue
            total_s += duration_s
            settled += 1
            call.future.started = started
            call.future.duration_s = duration_s
            self._answer(call.future, seat, outcome, data, parts if position == last else ())
        self._settled(pool, settled)
        seat.answered += len(replies)
        pool.stillborn = 0
        mean_s = total_s / max(1, len(replies))
        known_s = pool.mean_s if pool.mean_s == pool.mean_s else mean_s
        pool.mean_s = known_s + _SMOOTHING * (mean_s - known_s)
        if seat.closing:
            return
        if pool.pending:
            if len(seat.given) <= pool.depth() // 2:
                self._feel_hungry(seat, pool)
        elif not seat.given:
            self._rest(seat, pool)

    def _answer(
        self, future: CallFuture, seat: Seat, outcome: int, data: memoryview, parts: Sequence[Any]
    ) -> None:
        """Give a future what came back; nothing here keeps it."""
        try:
            value = load(data, [frames.as_buffer(part) for part in parts] if parts else ())
        except Exception as error:  # such as a module that only the worker has
            future.set_exception(error)
            return
        if outcome == frames.OK:
            future.set_result(value)
        else:
            raised, text = value
            raised.__cause__ = RemoteError(f"on {self._engine.place_of(seat.worker)}:\n{text}")
            future.set_exception(raised)

    @staticmethod
    def _settled(pool: CallPool, count: int = 1) -> None:
        pool.settled += count
        if pool.settled == pool.submitted:
            with pool.quiet:
                pool.quiet.notify_all()

    def returned(self, index: int, numbers: Sequence[int]) -> None:
        """A seat gave calls back that it had not begun."""
        seat = self._seats.get(index)
        if seat is None or seat.pool is None:
            return
        seat.recalled = False
        self._put_back(seat, seat.pool, numbers)
        if not seat.given:
            self._feel_hungry(seat, seat.pool)

    @staticmethod
    def _put_back(seat: Seat, pool: CallPool, numbers: Sequence[int]) -> None:
        calls = [seat.given.pop(number) for number in numbers if number in seat.given]
        pool.pending.extendleft(reversed(calls))

    def seat_ended(self, index: int, running: int, numbers: Sequence[int]) -> None:
        """A seat's process is gone; why, its report says next."""
        seat = self._seats.get(index)
        if seat is not None and seat.pool is not None:
            seat.running = running
            self._put_back(seat, seat.pool, numbers)

    def seat_gone(self, index: int, report: AttemptReport | None, error: str) -> None:
        """The attempt of a seat has ended, or never will begin."""
        seat = self._seats.pop(index, None)
        if seat is None:
            return
        if seat in self._idle:
            self._idle.remove(seat)
        pool = seat.pool
        if pool is None:
            return
        if seat.worker < 0:
            pool.requested -= 1
        pool.seats.discard(seat)
        seat.closing = True
        lost = report is not None and report.outcome in (Outcome.WORKER_LOST, Outcome.INTERRUPTED)
        if seat.running < 0 and lost and seat.given:
            seat.running = next(iter(seat.given))
        crashed = seat.given.pop(seat.running, None)
        self._put_back(seat, pool, list(seat.given))
        if crashed is not None:
            stopped = self.broken if report is not None and report.outcome == Outcome.INTERRUPTED else None
            died = CallCrashedError(self._obituary(crashed, seat, report, error))
            crashed.future.set_exception(stopped or died)
            self._settled(pool)
        elif not seat.answered and pool.pending:
            pool.stillborn += 1
            if pool.stillborn >= STILLBORN_LIMIT or report is None:
                tail = report.stderr_tail.strip() if report is not None else ""
                text = f"function processes do not start: {error}" + (f"\n{tail}" if tail else "")
                self._fail_all(pool, ClusterError(text))
                pool.stillborn = 0

    def _obituary(self, call: PendingCall, seat: Seat, report: AttemptReport | None, error: str) -> str:
        how = error or "its process ended without an answer"
        text = f"{call.label} died on {self._engine.place_of(seat.worker)}: {how}"
        if report is not None and report.stderr_tail.strip():
            text += f"\n{report.stderr_tail.strip()}"
        return text

    def _fail_all(self, pool: CallPool, error: Exception) -> None:
        while True:
            try:
                call = pool.pending.popleft()
            except IndexError:  # the engine's thread and one that submits may both be here
                return
            if call.begun or call.future.set_running_or_notify_cancel():
                call.future.set_exception(error)
            self._settled(pool)

    def drain(self, error: Exception) -> None:
        """Let the calls that run end; the others, and later ones, fail with `error`."""
        self.broken = error
        for seat in self._seats.values():
            if seat.worker >= 0 and len(seat.given) > 1 and not seat.recalled:
                seat.recalled = True
                self._engine.send(seat.worker, messages.CallsRecalled(seat.index))
        self._close_seats()

    def _close_seats(self) -> None:
        """Have every function process end when it has answered what it runs."""
        for seat in self._seats.values():
            if seat.worker >= 0 and not seat.closing:
                seat.closing = True
                self._engine.send(seat.worker, messages.SeatClosing(seat.index))

    @property
    def placed(self) -> int:
        """Seats that a worker has."""
        return sum(seat.worker >= 0 for seat in self._seats.values())

    def break_off(self, error: Exception) -> None:
        """No call will be answered any more."""
        self.broken = error
        for pool in self._pools:
            for seat in pool.seats:
                self._put_back(seat, pool, list(seat.given))
            self._fail_all(pool, error)

    # --- sharing with tasks and among seats ----------------------------------

    def _look_around(self, now: float) -> None:
        if self._engine.tasks_wait():
            self._make_room(now)
        for pool in self._pools:
            if pool.pending or not pool.seats:
                continue
            for seat in pool.seats:
                stuck = len(seat.given) > 1 and not seat.recalled and now - seat.at >= STUCK_S
                if stuck and self._has_idle(pool):
                    seat.recalled = True
                    self._engine.send(seat.worker, messages.CallsRecalled(seat.index))

    def _has_idle(self, pool: CallPool) -> bool:
        limit = min(pool.limit or self._engine.slots, self._engine.slots)
        return bool(self._idle) or len(pool.seats) + pool.requested < limit

    def _make_room(self, now: float) -> None:
        """Close seats that are idle, and those that have kept their core for long."""
        for seat in list(self._seats.values()):
            if seat.closing or seat.worker < 0:
                continue
            if seat.pool is None:
                self._idle.remove(seat)
            elif now - seat.opened < SHARE_S:
                continue
            seat.closing = True
            self._engine.send(seat.worker, messages.SeatClosing(seat.index))
