"""The program around the engine: one hub per process, and its end.

Rule: a program that forgets to close anything loses nothing and hangs nothing.
At its end what was submitted is finished; after an uncaught exception what
runs is stopped. A rank other than 0 never gets past the first use: it serves.

    first TaskPipeline or executor --> engine()  rank 0, or no launcher: the hub
                                                 another rank: serve, then end the process
    end of the program --> exit hook --> closers (pipelines, executors) --> Hub.stop
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from keystone_mpi.core.errors import ClosedError, LauncherMismatchError
from keystone_mpi.engine.calls import CallFuture
from keystone_mpi.engine.functions import FunctionTable
from keystone_mpi.engine.hub import Hub
from keystone_mpi.engine.ranks import bring_up
from keystone_mpi.engine.worker import FUNCTION_TOOL
from keystone_mpi.engine.worker_exit import end_worker_rank
from keystone_mpi.execution.environment import launcher_environment
from keystone_mpi.execution.function_server import BOOT
from keystone_mpi.tools.recipe import Recipe

SLOTS_VARIABLE = "KEYSTONE_SLOTS"
"""Slots per node, where the program does not say."""


class Program:
    """What this process shares: its hub, its functions, what is to be closed at its end."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.hub: Hub | None = None
        self.functions = FunctionTable()
        self.callbacks = CallbackThread()
        self.closers: list[Callable[[bool], None]] = []
        """Called at the end of the program, newest first, with whether it ends because of an error."""
        self.failed = False
        self._hooked = False

    def engine(self, slots: int | None = None) -> Hub:
        """Return this process's hub, started if need be; ends the process on a rank other than 0.

        Raises
        ------
        ClosedError
            The program is at its end.
        ClusterError
            It cannot be started.
        """
        with self.lock:
            if self.hub is not None and self.hub.pid == os.getpid():
                if self.hub.problem is not None:
                    raise self.hub.problem
                if self.hub.alive:
                    return self.hub
                if self.hub.promised.launcher is not None:
                    raise ClosedError("the engine has ended; under mpiexec it cannot be started again")
            return self._start(slots)

    def _start(self, slots: int | None) -> Hub:
        promised = launcher_environment()
        if promised.rank > 0:
            end_worker_rank(promised)
        if promised.launcher is not None and _mpi_is_up():
            tell(
                "MPI was initialised before keystone_mpi was used: solvers are started by processes that are "
                "forked after MPI_Init, which some networks (InfiniBand) do not support; "
                f"python -m keystone_mpi {os.path.basename(sys.argv[0]) or 'PROGRAM.py'} avoids it"
            )
        self._hook()
        if slots is None:
            given = os.environ.get(SLOTS_VARIABLE, "")
            slots = int(given) if given.isdigit() and int(given) > 0 else None
        hub = Hub(
            promised,
            slots_per_node=slots,
            function_recipe=_function_recipe(),
            functions=self.functions.value,
            notice=tell,
            printed=self._show,
        )
        self.hub = hub
        try:
            hub.start()
        except BaseException:
            hub.stop(now=True, timeout_s=30.0)
            raise
        return hub

    def _show(self, stream: int, text: bytes) -> None:
        """Print what a function printed, away from the engine's thread."""
        self.callbacks.run(lambda: _write(sys.stdout if stream == 1 else sys.stderr, text))

    # --- the end -------------------------------------------------------------

    def send_workers_home(self) -> None:
        """Let the other ranks leave when the program never used them."""
        promised = launcher_environment()
        if promised.launcher is None or promised.size < 2:
            return
        try:
            ranks = bring_up(promised)
        except LauncherMismatchError:
            return  # there are no ranks that could be sent home
        ranks.close()

    def _hook(self) -> None:
        if self._hooked:
            return
        self._hooked = True
        atexit.register(self.end)
        os.register_at_fork(after_in_child=self._forget)
        before = sys.excepthook

        def note_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
            self.failed = True
            return before(kind, error, trace)

        sys.excepthook = note_failure

    def _forget(self) -> None:
        """In a forked child: the hub's thread is the parent's."""
        self.hub = None
        self.closers.clear()
        self.callbacks = CallbackThread()
        self.lock = threading.RLock()

    def end(self) -> None:
        """Close what is open and end the engine; the exit hook, or `python -m keystone_mpi`."""
        hub = self.hub
        if hub is None or hub.pid != os.getpid():
            return
        try:
            if not self.failed:
                self._close_all(failed=False)
        except BaseException:  # an interrupt while the program waits for its tasks: stop
            self.failed = True
            raise
        finally:
            hub.stop(now=True)
            if self.failed:
                self._close_all(failed=True)
            self.callbacks.close()

    def _close_all(self, *, failed: bool) -> None:
        for close in reversed(tuple(self.closers)):
            close(failed)
        self.closers.clear()


class CallbackThread:
    """The one thread on which the program's callbacks run, in order."""

    def __init__(self) -> None:
        self._todo: Any = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._problems: list[BaseException] = []

    def run(self, callback: Callable[[], object]) -> None:
        """Have a callback called soon; what it raises is kept for `raise_problem`."""
        import queue

        with self._lock:
            if self._thread is None:
                self._todo = queue.SimpleQueue()
                self._thread = threading.Thread(target=self._serve, name="keystone-callbacks", daemon=True)
                self._thread.start()
            self._todo.put(callback)

    def run_and_wait(self, callback: Callable[[], object]) -> None:
        """Have a callback called and wait for its end; at once when this is the thread itself."""
        if threading.current_thread() is self._thread:
            callback()
            return
        done = threading.Event()

        def run() -> None:
            try:
                callback()
            finally:
                done.set()

        self.run(run)
        done.wait()

    def _serve(self) -> None:
        while (callback := self._todo.get()) is not None:
            try:
                callback()
            except BaseException as error:  # surfaces at the next wait, whatever it is
                self._problems.append(error)

    def raise_problem(self) -> None:
        """Raise what a callback raised, once."""
        if self._problems and threading.current_thread() is not self._thread:
            raise self._problems.pop(0)

    def close(self) -> None:
        """Let the thread end after what is queued."""
        with self._lock:
            if self._thread is not None:
                self._todo.put(None)
                if threading.current_thread() is not self._thread:
                    self._thread.join(5.0)
                self._thread = None


def tell(text: str) -> None:
    """Say one line to the person who runs the program."""
    sys.stderr.write(f"keystone_mpi: {text}\n")
    sys.stderr.flush()


def _write(stream: Any, text: bytes) -> None:
    try:
        stream.write(text.decode("utf-8", "replace"))
        stream.flush()
    except (OSError, ValueError):
        return  # the program closed its stream, or its reader is gone


def _mpi_is_up() -> bool:
    module = sys.modules.get("mpi4py.MPI")
    return module is not None and bool(module.Is_initialized())


def _function_recipe() -> Recipe:
    """Return how function processes are started: this Python, this import path, this folder."""
    path = json.dumps([entry or os.getcwd() for entry in sys.path])
    words = [sys.executable, "-c", BOOT, path]
    return Recipe(
        tool=FUNCTION_TOOL,
        argv=tuple(word.replace("{", "{{").replace("}", "}}") for word in words),
        start_dir=os.getcwd(),
        grace_s=1.0,
    )


PROGRAM = Program()
"""This process's."""
CallFuture.call_later = staticmethod(lambda run: PROGRAM.callbacks.run(run))
