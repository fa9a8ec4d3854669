"""A call, its future, and how a call fails.

Rule: plain parts of the call desk (calls.py); a future's callbacks never run in
the engine's thread.

    PendingCall --desk, seat--> CallFuture: result | exception (cause: RemoteError) | CallCrashedError
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from typing import Any, ClassVar

from keystone_mpi.core.errors import SolverError
from keystone_mpi.execution.function_values import Value


class RemoteError(Exception):
    """The traceback of a function's exception where it was raised; the cause of the local one."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class CallCrashedError(SolverError, BrokenExecutor):
    """The process that ran a function died under it; only that call is lost."""


class CallFuture(Future[Any]):
    """A future that knows when and where its call ran."""

    started = float("nan")
    """Seconds since the epoch on the worker's clock."""
    duration_s = float("nan")
    call_later: ClassVar[Callable[[Callable[[], None]], None] | None] = None
    """Runs callbacks elsewhere than in the engine's thread."""

    _done_callbacks: list[Callable[[Any], object]]

    def _invoke_callbacks(self) -> None:
        run: Callable[[], None] = super()._invoke_callbacks  # type: ignore[misc] # not in the stubs: the library's own
        if self._done_callbacks and CallFuture.call_later is not None:
            CallFuture.call_later(run)
        else:
            run()


class PendingCall:
    """A call without an answer."""

    __slots__ = ("begun", "called", "function", "future", "number", "value")

    def __init__(self, number: int, future: CallFuture, function: int, value: Value, called: Any) -> None:
        self.number = number
        self.future = future
        self.function = function
        """0: the function is in the value."""
        self.value = value
        self.called = called
        """Its name for people, or what it calls."""
        self.begun = False
        """The future says running."""

    @property
    def label(self) -> str:
        """Names the call for people."""
        called = self.called
        if isinstance(called, str):
            return called
        return f"{getattr(called, '__qualname__', repr(called))} (call {self.number})"
