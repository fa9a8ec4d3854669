"""Functions in parallel: `ParallelExecutor`, `BatchProcessor`, and a standard `KeystoneExecutor`.

Rule: an in-memory pool. Nothing is written to disk; what a function returns
comes back and is gone when the program drops it. Under mpiexec the calls run in
function processes beside the worker ranks of all nodes, without a launcher in
local ones (or in threads). A call that kills its process costs itself alone.

    ParallelExecutor, BatchProcessor --> KeystoneExecutor (engine/executor.py) --> engine's call desk
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from keystone_mpi.allocation_end import end_of_program
from keystone_mpi.core.errors import RequestError, RunInterruptedError
from keystone_mpi.engine.call_futures import CallCrashedError, CallFuture, RemoteError
from keystone_mpi.engine.executor import KeystoneExecutor, check_workers, chunks_of, run_chunk
from keystone_mpi.engine.program import PROGRAM, check_callback
from keystone_mpi.execution.environment import launcher_environment

__all__ = [
    "BatchProcessor", "CallCrashedError", "KeystoneExecutor", "ParallelExecutor", "RemoteError",
    "TaskResult",
]  # fmt: skip
PROGRAM.find_end = end_of_program


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How one call of `ParallelExecutor.execute_parallel` ended."""

    task_id: str
    status: str
    """``success`` or ``failed``."""
    result: Any = None
    error: str | None = None
    """One line, with the exception's type."""
    start_time: float | None = None
    """Seconds since the epoch on the worker's clock; None: it did not run."""
    end_time: float | None = None
    duration: float | None = None
    """Seconds."""
    exception: BaseException | None = None
    """What was raised, with the remote traceback as its cause."""

    @property
    def successful(self) -> bool:
        """Whether it returned."""
        return self.status == "success"


class ParallelExecutor:
    """Runs functions in parallel; a context manager.

    Parameters
    ----------
    max_workers : int, optional
        Calls that run at the same time, at most; None: one per slot.
    use_processes : bool
        False: threads of this process when there is no launcher (under mpiexec
        the calls run on the worker ranks all the same). For functions that
        release the GIL or share memory.

    Examples
    --------
    >>> with ParallelExecutor() as executor:                                 # doctest: +SKIP
    ...     executor.execute_map(lambda x: x * x, range(4))
    [0, 1, 4, 9]
    """

    def __init__(self, max_workers: int | None = None, use_processes: bool = True) -> None:
        check_workers(max_workers)
        if use_processes or launcher_environment().launcher is not None:
            self._executor: Executor = KeystoneExecutor(max_workers)
        else:
            self._executor = _Threads(max_workers or len(os.sched_getaffinity(0)))

    def __enter__(self) -> ParallelExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=kind is None)

    def shutdown(self, wait: bool = True) -> None:
        """End the executor; `wait` lets the calls end first, else those that have not begun are dropped."""
        self._executor.shutdown(wait=wait, cancel_futures=not wait)

    def execute_parallel(
        self,
        tasks: Iterable[Mapping[str, Any]],
        callback: Callable[[TaskResult], object] | None = None,
        timeout: float | None = None,
    ) -> list[TaskResult]:
        """Run tasks and return their results in the order of the tasks.

        Parameters
        ----------
        tasks : iterable of dict
            ``{'id', 'func', 'args', 'kwargs'}``; all but 'func' may be left out.
        callback : callable, optional
            Called with each TaskResult when its task is done, on one thread; what it raises is raised here.
        timeout : float, optional
            Seconds for all of them.

        Raises
        ------
        TimeoutError
            Some are not done in time; they run on.
        RequestError
            A task is no such dict; nothing was run.
        RunInterruptedError
            Not all were run: the engine was drained, or the allocation ends.
        """
        check_callback(callback)
        checked = [_check_function_task(task, position) for position, task in enumerate(tasks)]
        futures = [
            self._submit(func, args, kwargs, f"task {task_id!r}") for task_id, func, args, kwargs in checked
        ]
        names = [task_id for task_id, *_ in checked]
        found: dict[Future[Any], TaskResult] = {}
        names_of = dict(zip(futures, names, strict=True))
        for future in _done(futures, timeout):
            result = found[future] = _result_of(names_of[future], future)
            if callback is not None:
                PROGRAM.callbacks.run(partial(callback, result))
        _settle_callbacks(callback)
        for result in found.values():
            if isinstance(result.exception, RunInterruptedError):
                raise result.exception
        return [found[future] for future in futures]

    def execute_map(
        self,
        func: Callable[[Any], Any],
        items: Iterable[Any],
        callback: Callable[[int, Any], object] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Return ``[func(item) for item in items]``; the first exception in item order is raised.

        Parameters
        ----------
        func : callable
        items : iterable
        callback : callable, optional
            Called with (index, result) when an item is done, on one thread.
        timeout : float, optional
            Seconds for all of them.
        """
        check_callback(callback)
        futures = [self._submit(func, (item,), {}, f"item {index}") for index, item in enumerate(items)]
        if callback is None:
            for _ in _done(futures, timeout):
                pass
        else:
            position = {future: index for index, future in enumerate(futures)}
            for future in _done(futures, timeout):
                if future.exception() is None:
                    PROGRAM.callbacks.run(partial(callback, position[future], future.result()))
            _settle_callbacks(callback)
        return [future.result() for future in futures]

    def _submit(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], label: str
    ) -> Future[Any]:
        if isinstance(self._executor, KeystoneExecutor):
            return self._executor.submit_call(func, args, kwargs, label)
        return self._executor.submit(func, *args, **kwargs)


class BatchProcessor:
    """Runs one function over a grid or a list.

    Parameters
    ----------
    max_workers : int, optional
        As for `ParallelExecutor`.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        self._executor = ParallelExecutor(max_workers)

    def __enter__(self) -> BatchProcessor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=kind is None)

    def shutdown(self, wait: bool = True) -> None:
        """End it; forgetting this loses nothing."""
        self._executor.shutdown(wait)

    def parameter_sweep(
        self,
        func: Callable[..., Any],
        param_dict: Mapping[str, Iterable[Any]],
        callback: Callable[[dict[str, Any], Any], object] | None = None,
    ) -> list[dict[str, Any]]:
        """Call ``func(**params)`` for every combination; the first parameter varies slowest.

        Parameters
        ----------
        func : callable
        param_dict : mapping
            Name -> values (any iterable).
        callback : callable, optional
            Called with (params, result) when a call has succeeded, on one thread.

        Returns
        -------
        list of dict
            ``{'params', 'status', 'result', 'error', 'duration'}`` in grid order.
        """
        from keystone_mpi.engine.task_requests import grid_points

        check_callback(callback)
        points = grid_points(param_dict)
        tasks = [{"id": str(k), "func": func, "kwargs": point} for k, point in enumerate(points)]

        def tell(result: TaskResult) -> None:
            if callback is not None and result.successful:
                callback(points[int(result.task_id)], result.result)

        results = self._executor.execute_parallel(tasks, tell if callback is not None else None)
        return [
            {
                "params": point, "status": result.status, "result": result.result, "error": result.error,
                "duration": result.duration,
            }
            for point, result in zip(points, results, strict=True)
        ]  # fmt: skip

    def batch_execute(
        self,
        func: Callable[[Any], Any],
        items: Iterable[Any],
        callback: Callable[[int, Any], object] | None = None,
        chunk_size: int | None = None,
    ) -> list[Any]:
        """Return ``[func(item) for item in items]``.

        Parameters
        ----------
        func, items, callback
            As for `ParallelExecutor.execute_map`.
        chunk_size : int, optional
            Items that are one call together; None: one each (they travel in batches anyway).
        """
        check_callback(callback)
        if chunk_size is None or chunk_size == 1:
            return self._executor.execute_map(func, items, callback)
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise RequestError(f"chunk_size must be a whole number, at least 1, not {chunk_size!r}")
        size = chunk_size

        def tell(chunk: int, results: list[Any]) -> None:
            if callback is not None:
                for offset, result in enumerate(results):
                    callback(chunk * size + offset, result)

        chunks = list(chunks_of(zip(items, strict=True), size))
        done = self._executor.execute_map(
            partial(run_chunk, func), chunks, tell if callback is not None else None
        )
        return [result for results in done for result in results]


class _Threads(ThreadPoolExecutor):
    """Threads of this process, with the times of each call on its future."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `concurrent.futures.Executor.submit`."""
        clock: list[float] = []

        def timed() -> Any:
            began = time.perf_counter()
            clock.append(time.time())
            try:
                return fn(*args, **kwargs)
            finally:
                clock.append(time.perf_counter() - began)

        future = super().submit(timed)
        future.clock = clock  # type: ignore[attr-defined]
        return future


def _check_function_task(
    task: Any, position: int
) -> tuple[str, Callable[..., Any], Sequence[Any], Mapping[str, Any]]:
    where = f"task {position}"
    if not isinstance(task, Mapping):
        raise RequestError(f"{where}: must be a dict with 'id', 'func', 'args' and 'kwargs', not {task!r}")
    unknown = [key for key in task if key not in ("id", "func", "args", "kwargs")]
    if unknown:
        raise RequestError(f"{where}: no such key {unknown[0]!r}; allowed are 'id', 'func', 'args', 'kwargs'")
    func = task.get("func")
    if not callable(func):
        raise RequestError(f"{where}: 'func' must be callable, found {func!r}")
    args, kwargs = task.get("args", ()), task.get("kwargs") or {}
    if isinstance(args, str) or not isinstance(args, Iterable):
        raise RequestError(f"{where}: 'args' must be a list or tuple, found {args!r}")
    if not isinstance(kwargs, Mapping):
        raise RequestError(f"{where}: 'kwargs' must be a dict, found {kwargs!r}")
    return str(task.get("id", position)), func, tuple(args), dict(kwargs)


def _done(futures: Sequence[Future[Any]], timeout: float | None) -> Iterator[Future[Any]]:
    """Yield the futures as they are done."""
    try:
        yield from as_completed(futures, timeout)
    except TimeoutError:
        left = sum(1 for future in futures if not future.done())
        raise TimeoutError(
            f"{left} of {len(futures)} calls were not done after {timeout:g} s; they run on"
        ) from None


def _result_of(task_id: str, future: Future[Any]) -> TaskResult:
    if isinstance(future, CallFuture):
        started, duration_s = future.started, future.duration_s
    else:
        clock = getattr(future, "clock", [])
        started, duration_s = clock if len(clock) == 2 else (math.nan, math.nan)
    ran = started == started
    error = future.exception()
    return TaskResult(
        task_id=task_id,
        status="success" if error is None else "failed",
        result=future.result() if error is None else None,
        error=None if error is None else f"{type(error).__name__}: {error}",
        start_time=started if ran else None,
        end_time=started + duration_s if ran else None,
        duration=duration_s if ran else None,
        exception=error,
    )


def _settle_callbacks(callback: Callable[..., object] | None) -> None:
    """Wait for the callbacks that were asked for, and raise what one of them raised."""
    if callback is not None:
        PROGRAM.callbacks.run_and_wait(lambda: None)
        PROGRAM.callbacks.raise_problem()
