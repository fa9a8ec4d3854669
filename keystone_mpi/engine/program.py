"""The program around the engine: one hub per process, and its end.

Rule: a program that forgets to close anything loses nothing and hangs nothing.
At its end what was submitted is finished; after an uncaught exception what
runs is stopped. A rank other than 0 never gets past the first use: it serves.

    first TaskPipeline or executor --> engine()  rank 0, or no launcher: the hub
                                                 another rank: serve, then end the process
    end of the program --> exit hook --> closers (pipelines, executors) --> Hub.stop --> exit code
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

from keystone_mpi.core.errors import ClosedError, LauncherMismatchError, RequestError, RunInterruptedError
from keystone_mpi.engine.bringing_up import bring_up
from keystone_mpi.engine.call_futures import CallFuture
from keystone_mpi.engine.end_watch import AllocationEnd
from keystone_mpi.engine.functions import FunctionTable
from keystone_mpi.engine.hub import Hub
from keystone_mpi.engine.program_exit import exit_code_of, leave_interrupted, leave_now
from keystone_mpi.engine.program_stop import ProgramStop
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
        self.find_end: Callable[[float], AllocationEnd] = _no_end
        """Grace (s) -> the end of the allocation; set by the modules that a program imports."""
        self.failed = False
        self._exit_code = 0
        self._sent_home = False
        """The other ranks left, and MPI with them."""
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
        recipe = _function_recipe()
        stops = ProgramStop(
            first_means_now=promised.launcher == "openmpi",
            end=self._end(),
            under_launcher=promised.launcher is not None,
        )
        hub = Hub(
            promised,
            slots_per_node=slots,
            function_recipe=recipe,
            functions=self.functions.value,
            notice=tell,
            printed=self._show,
            stops=stops,
        )
        self.hub = hub
        stops.install(hub.wake)
        try:
            hub.start()
        except BaseException:
            hub.stop(now=True, timeout_s=30.0)
            raise
        return hub

    def _end(self) -> AllocationEnd:
        try:
            return self.find_end(Recipe(tool="", argv=()).grace_s)
        except BaseException:
            self.send_workers_home()  # they wait in MPI_Init
            raise

    def _show(self, stream: int, text: bytes) -> None:
        """Print what a function printed, away from the engine's thread."""
        self.callbacks.run(lambda: _write(sys.stdout if stream == 1 else sys.stderr, text))

    # --- the end -------------------------------------------------------------

    def send_workers_home(self) -> None:
        """Let the other ranks leave when the program never used them."""
        promised = launcher_environment()
        if promised.launcher is None or promised.size < 2 or self._sent_home:
            return
        self._sent_home = True
        try:
            ranks = bring_up(promised)
        except LauncherMismatchError:
            return  # there are no ranks that could be sent home
        ranks.close()

    def _hook(self) -> None:
        if self._hooked:
            return
        self._hooked = True
        atexit.register(self._end_at_exit)
        os.register_at_fork(after_in_child=self._forget)
        before = sys.excepthook

        def note_failure(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
            self.failed = True
            if isinstance(error, RunInterruptedError):
                leave_interrupted(error)
            return before(kind, error, trace)

        sys.excepthook = note_failure

    def _forget(self) -> None:
        """In a forked child: the hub's thread is the parent's, and so is what signals mean."""
        if self.hub is not None:
            self.hub.stops.restore()
        self.hub = None
        self._exit_code = 0
        self.closers.clear()
        self.callbacks = CallbackThread()
        self.lock = threading.RLock()

    def end(self) -> None:
        """Close what is open and end the engine; the exit hook, or `python -m keystone_mpi`."""
        hub = self.hub
        if hub is None or hub.pid != os.getpid():
            return
        hub.stops.ending = True
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
            hub.stops.restore()

    def _end_at_exit(self) -> None:
        """End with the interpreter, which would forget what is raised now."""
        try:
            self.end()
        except BaseException as error:  # told here, there is nobody else
            self._exit_code = exit_code_of(error)

    def leave_at_exit(self) -> None:
        """Give the exit code to what Python would end with 0."""
        if self._exit_code:
            leave_now(self._exit_code)

    def _close_all(self, *, failed: bool) -> None:
        """End every executor and pipeline; after a failure one that fails, too, keeps none from ending."""
        errors: list[Exception] = []
        while self.closers:
            close = self.closers.pop() if failed else self.closers[-1]
            try:
                close(failed)
            except Exception as error:  # told below
                if not failed:
                    raise
                errors.append(error)
            if close in self.closers:
                self.closers.remove(close)
        for other in errors[1:]:
            tell(f"{type(other).__name__}: {other}")
        if errors:
            raise errors[0]


CALLBACKS_END_S = 5.0


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
                    self._thread.join(CALLBACKS_END_S)
                    if self._thread.is_alive():
                        tell(f"a callback took over {CALLBACKS_END_S:.0f} s; those after it are not called")
                self._thread = None
            for problem in self._problems:
                tell(f"a callback raised {type(problem).__name__}: {problem}")
            self._problems.clear()


def check_callback(callback: object) -> None:
    """Refuse a callback that cannot be called, before anything is done."""
    if callback is not None and not callable(callback):
        raise RequestError(f"callback must be callable, not {callback!r}")


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


def _no_end(_grace_s: float) -> AllocationEnd:
    return AllocationEnd()


PROGRAM = Program()
"""This process's."""
# Registered before the program's own exit hooks, so that it runs after them.
atexit.register(PROGRAM.leave_at_exit)
CallFuture.call_later = staticmethod(lambda run: PROGRAM.callbacks.run(run))
