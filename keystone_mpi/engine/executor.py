"""A standard executor over the engine's call desk.

Rule: `concurrent.futures.Executor` to the letter (CPython's own tests say so);
usable from any thread. Arguments are taken by value when a call is submitted.

    submit --> CallFuture <-- CallDesk (calls.py) --> function processes
    end of the program --> what was submitted is finished first
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from keystone_mpi.core.errors import ClosedError, RequestError
from keystone_mpi.engine.call_futures import CallFuture, PendingCall
from keystone_mpi.engine.calls import CallPool
from keystone_mpi.engine.hub import Hub
from keystone_mpi.engine.program import PROGRAM
from keystone_mpi.execution.environment import launcher_environment
from keystone_mpi.execution.function_frames import SharedBlock
from keystone_mpi.execution.function_values import CannotTravelError, Value, dump

LOOK_S = 1.0
SHARED_CALLS = 64
"""Calls whose large arguments wait in shared memory: each takes a descriptor."""

_numbers = itertools.count(1)


class KeystoneExecutor(Executor):
    """A `concurrent.futures.Executor` whose calls run on the worker ranks, or in local processes.

    Parameters
    ----------
    max_workers : int, optional
        Calls that run at the same time, at most; None: one per slot. Without a
        launcher, more than the machine has cores makes that many slots if this
        is the first use of keystone_mpi in the program.

    Examples
    --------
    >>> with KeystoneExecutor() as ex:                              # doctest: +SKIP
    ...     print(list(ex.map(lambda x: x * x, range(4))))
    [0, 1, 4, 9]
    """

    def __init__(self, max_workers: int | None = None) -> None:
        check_workers(max_workers)
        hub = PROGRAM.engine(_local_slots(max_workers))
        self._hub = hub
        self._functions = PROGRAM.functions
        self._desk = hub.calls
        self._pool = CallPool(max_workers)
        self._lock = threading.Lock()
        self._shut = False
        pool, desk = self._pool, self._desk
        hub.post(lambda: desk.add_pool(pool))
        self._closer = _closer_of(self)
        PROGRAM.closers.append(self._closer)

    @property
    def max_workers(self) -> int:
        """Calls that can run at the same time."""
        return min(self._pool.limit or self._hub.slots, self._hub.slots)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CallFuture:
        """Schedule ``fn(*args, **kwargs)``; see `concurrent.futures.Executor.submit`.

        An object that cannot be pickled makes the future fail, not this call.
        """
        return self.submit_call(fn, args, kwargs, "")

    def submit_call(
        self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], label: str
    ) -> CallFuture:
        """Schedule a call that is named `label` for people; empty: after the function."""
        future = CallFuture()
        number = next(_numbers)
        try:
            function = self._functions.number(fn)
            value = dump((args, kwargs) if function else (fn, args, kwargs))
            if value.parts:
                value = self._taken(value)
        except CannotTravelError as error:
            future.set_running_or_notify_cancel()
            name = PendingCall(number, future, 0, Value(b"", []), label or fn).label
            future.set_exception(CannotTravelError(f"{name} {error}"))
            return future
        call = PendingCall(number, future, function, value, label or fn)
        with self._lock:
            if self._shut:
                raise ClosedError("cannot schedule new futures after shutdown")
            if _has_ended(self._hub):
                raise self._hub.problem or ClosedError("cannot schedule new futures: the engine has ended")
            self._desk.submit(self._pool, call)
            if _has_ended(self._hub):
                self._desk.fail_late(self._pool)
        self._hub.wake()
        return future

    def _taken(self, value: Value) -> Value:
        """Copy what the caller may change; into memory that a local function process maps as it is."""
        shared = self._hub.promised.launcher is None and len(self._pool.pending) < SHARED_CALLS
        parts: list[Any] = []
        for part in value.parts:
            if isinstance(part, bytes):
                parts.append(part)
            elif shared:
                parts.append(SharedBlock.of(part))
            else:
                parts.append(bytes(part))
        return Value(value.data, parts)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[Any]:
        """Map like `concurrent.futures.Executor.map`; calls travel in batches whatever the chunk size.

        Parameters
        ----------
        fn, *iterables
            As for the built-in ``map``.
        timeout : float, optional
            Seconds from this call until a result must be there.
        chunksize : int
            Calls that are one call together: worth it only when a call takes microseconds.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        chunks = chunks_of(zip(*iterables, strict=False), chunksize)
        results: Iterator[list[Any]] = super().map(partial(run_chunk, fn), chunks, timeout=timeout)
        return _flat(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End this executor; see `concurrent.futures.Executor.shutdown`."""
        with self._lock:
            self._shut = True
        if cancel_futures:
            for call in tuple(self._pool.pending):
                call.future.cancel()
            self._hub.wake()
        if wait:
            _wait_until_quiet(self._pool, self._hub)
            pool, desk = self._pool, self._desk
            self._hub.post(lambda: desk.remove_pool(pool))
            if self._closer in PROGRAM.closers:
                PROGRAM.closers.remove(self._closer)


def _closer_of(executor: KeystoneExecutor) -> Callable[[bool], None]:
    """Make what the end of the program calls; it keeps no executor alive that nobody uses."""
    reference = weakref.ref(executor)
    pool, hub = executor._pool, executor._hub

    def close(failed: bool) -> None:
        alive = reference()
        if alive is not None:
            alive._shut = True
        if failed:
            return
        _wait_until_quiet(pool, hub)

    return close


def _has_ended(hub: Hub) -> bool:
    """Look anew: it may end at any moment."""
    return not hub.alive


def _wait_until_quiet(pool: CallPool, hub: Hub) -> None:
    """Wait until every call is answered; an engine that died does not tell."""
    with pool.quiet:
        while not pool.quiet.wait_for(lambda: not pool.unanswered or not hub.alive, timeout=LOOK_S):
            continue


def check_workers(max_workers: int | None) -> None:
    """Refuse a number of workers that means nothing."""
    if max_workers is None:
        return
    if isinstance(max_workers, bool) or not isinstance(max_workers, int):
        raise RequestError(f"max_workers must be a whole number or None, not {max_workers!r}")
    if max_workers <= 0:
        raise RequestError("max_workers must be greater than 0")


def _local_slots(max_workers: int | None) -> int | None:
    if max_workers is None or launcher_environment().launcher is not None:
        return None
    return max_workers if max_workers > len(os.sched_getaffinity(0)) else None


def chunks_of(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` items each, the last perhaps shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def run_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """Make the calls of one chunk; runs in a function process."""
    return [fn(*args) for args in chunk]


def _flat(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
