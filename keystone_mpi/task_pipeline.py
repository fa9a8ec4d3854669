"""Solver tasks from a Python program: `TaskPipeline`.

Rule: every task, attempt and result is in the results file before the program
is told of it, and every method that waits is woken by the event, not by a
clock. Tools and scripts mean what they mean in a sweep file. A call either does
all that it says or raises and does nothing.

    submit_* --> ids --> wait_*, as_completed, get_*_status --> results --> results.h5
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from keystone_mpi.allocation_end import end_of_program
from keystone_mpi.core.errors import KeystoneError, RequestError
from keystone_mpi.engine.program import PROGRAM, check_callback
from keystone_mpi.engine.task_records import TaskRecord
from keystone_mpi.engine.task_reports import TaskStatus, result_of, status_of, workflow_of

if TYPE_CHECKING:
    from keystone_mpi.engine.task_requests import CheckedTask

__all__ = ["TaskPipeline", "TaskStatus"]

PROGRAM.find_end = end_of_program
Status = dict[str, Any]
Callback = Callable[[Status], object]


class TaskPipeline:
    """Submits solver tasks, watches them, keeps their results in one file.

    Parameters
    ----------
    output : path, optional
        The results file. None: one named after the program and the time, in
        the current folder; its name is told once.
    resume : bool
        Continue `output` if it exists: ids of earlier starts stay valid, and a
        task with the same tool, script and parameters that has succeeded is
        not run again.
    fresh : bool
        Move an existing `output` aside.
    accept_changed : bool
        With `resume`: keep results although a script has changed since.
    slots : int, optional
        Tasks side by side on each node; None: one per physical core. Only the
        first pipeline or executor of a program decides.
    settings : mapping, optional
        Tables as in a sweep file that hold for all tasks: ``task`` (workdir,
        keep, keep_output, setup, launcher, ...), ``collect``, ``success``,
        ``files``, ``tools``.
    name : str, optional
        Told by ``keystone-mpi status``; the program's name by default.

    Notes
    -----
    On a rank other than 0 this serves tasks and ends the process when rank 0 is
    done. Forgetting `close` loses nothing: at the end of the program what was
    submitted is finished, or stopped when the program ends with an error.

    Examples
    --------
    >>> with TaskPipeline("results.h5") as pipeline:                         # doctest: +SKIP
    ...     ids = pipeline.parameter_sweep("python", "heat.py", {"mesh_size": [16, 32, 64]})
    ...     status = pipeline.wait_for_workflow(ids)
    """

    def __init__(
        self,
        output: str | os.PathLike[str] | None = None,
        *,
        resume: bool = False,
        fresh: bool = False,
        accept_changed: bool = False,
        slots: int | None = None,
        settings: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        self._hub = PROGRAM.engine(slots)
        # Not earlier: a worker rank never comes here and needs none of it.
        from keystone_mpi.engine.pipeline_tasks import PipelineTasks
        from keystone_mpi.engine.task_requests import TaskChecker

        if resume and fresh:
            raise RequestError("resume and fresh exclude each other")
        program = Path(sys.argv[0] or "program").stem or "program"
        self.path = Path.cwd() / (output if output is not None else _free_name(program))
        self._checker = TaskChecker(settings or {}, Path.cwd())
        self._checker.check("command", ["true"], {}, where="settings")
        self._tasks = PipelineTasks(
            self._hub,
            self.path,
            name=name or program,
            resume=resume,
            fresh=fresh,
            accept_changed=accept_changed,
            tell_path=output is None,
        )
        self._close_lock = threading.Lock()
        PROGRAM.closers.append(self._end)

    # --- submitting ----------------------------------------------------------

    def submit_task(
        self,
        tool: str,
        script: str | os.PathLike[str] | Sequence[str],
        params: Mapping[str, Any] | None = None,
        *,
        priority: float = 0,
        timeout: float | str | None = None,
        retries: int | Mapping[str, int] | None = None,
        cores: int = 1,
        memory: int | str | None = None,
        depends_on: Iterable[str] = (),
    ) -> str:
        """Submit one task.

        Parameters
        ----------
        tool : str
            ``python``, ``fenicsx``, ``lammps``, ``openfoam``, ``command`` or one of `settings`' tools.
        script : path
            What the tool runs. For ``command``: the argv as a list with
            ``{name}`` templates, or a shell line.
        params : mapping, optional
            JSON-able values; numpy scalars and arrays too. Lists and dicts
            reach the command line as JSON.
        priority : float
            Larger goes first.
        timeout : float or str, optional
            Per attempt: seconds, or a text such as ``"10min"``.
        retries : int or mapping, optional
            Further attempts after a failure, or per cause (``failed``, ``timeout``, ``memory``, ``lost``).
        cores : int
            Cores that it uses.
        memory : int or str, optional
            Limit: bytes, or a text such as ``"2GiB"``.
        depends_on : iterable of str
            Ids of tasks that must have succeeded; when one ends otherwise this
            task is cancelled.

        Returns
        -------
        str
            The task's id, its row in the file.

        Raises
        ------
        RequestError
            Something of it cannot be; nothing was submitted.
        """
        checked = self._checker.check(
            tool,
            script,
            params,
            depends_on=depends_on,
            priority=priority or None,
            timeout=timeout,
            retries=retries,
            cores=None if cores == 1 else cores,
            memory=memory,
        )
        return self._tasks.add([checked])[0]

    def submit_workflow(self, tasks: Iterable[Mapping[str, Any]], sequential: bool = True) -> list[str]:
        """Submit several tasks: dicts with ``tool``, ``script``, ``params`` and options of `submit_task`.

        Parameters
        ----------
        tasks : iterable of dict
        sequential : bool
            Each starts after the one before it has ended, in whatever way.
        """
        return self._tasks.add(self._check_all(tasks), sequential=sequential)

    def submit_batch_workflow(
        self,
        tasks: Iterable[Mapping[str, Any]],
        batch_size: int | None = None,
        callback: Callback | None = None,
    ) -> list[str]:
        """Submit many tasks, batch by batch; they run in parallel.

        Parameters
        ----------
        tasks : iterable of dict
            As for `submit_workflow`.
        batch_size : int, optional
            None: as many as there are slots.
        callback : callable, optional
            Called after each batch with ``{'batch_num', 'batch_size', 'submitted', 'total'}``.
        """
        check_callback(callback)
        size = self._hub.slots if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise RequestError(f"batch_size must be a whole number, at least 1, not {batch_size!r}")
        checked = self._check_all(tasks)
        self._tasks.check_dependencies(checked)
        ids: list[str] = []
        for number, start in enumerate(range(0, len(checked), size), 1):
            batch = checked[start : start + size]
            ids += self._tasks.add(batch)
            if callback is not None:
                facts = {
                    "batch_num": number, "batch_size": len(batch), "submitted": len(ids),
                    "total": len(checked),
                }  # fmt: skip
                self._call(callback, facts)
        return ids

    def parameter_sweep(
        self,
        tool: str,
        script: str | os.PathLike[str],
        param_grid: Mapping[str, Iterable[Any]],
        callback: Callback | None = None,
    ) -> list[str]:
        """Submit every combination of a grid; the first parameter varies slowest.

        Parameters
        ----------
        tool, script
            As for `submit_task`.
        param_grid : mapping
            Name -> values: any iterable (list, range, numpy array).
        callback : callable, optional
            As for `submit_batch_workflow`.
        """
        from keystone_mpi.engine.task_requests import grid_points

        tasks = [{"tool": tool, "script": script, "params": point} for point in grid_points(param_grid)]
        return self.submit_batch_workflow(tasks, callback=callback)

    def _check_all(self, tasks: Iterable[Mapping[str, Any]]) -> list[CheckedTask]:
        from keystone_mpi.engine.task_requests import check_task_dict

        if isinstance(tasks, Mapping | str):
            raise RequestError("tasks must be a list of dicts, each with 'tool', 'script' and 'params'")
        checked = []
        for position, task in enumerate(tasks):
            fields = check_task_dict(task, position)
            checked.append(
                self._checker.check(
                    fields.pop("tool"),
                    fields.pop("script"),
                    fields.pop("params", None),
                    where=f"task {position}",
                    depends_on=fields.pop("depends_on", ()),
                    **fields,
                )
            )
        return checked

    # --- asking --------------------------------------------------------------

    def get_task_status(self, task_id: str) -> Status:
        """Return everything known of a task: state, result, error, times.

        Raises
        ------
        UnknownTaskError
            A `KeyError`: there is no such task.
        """
        return self._status(self._tasks.find(task_id))

    def get_workflow_status(self, task_ids: Iterable[str]) -> Status:
        """Return ``total, completed, failed, running, pending, all_complete`` and all ``tasks``."""
        records = self._tasks.find_all(task_ids)
        self._tasks.look_at(records)
        return workflow_of(records, self.path)

    def get_parallel_execution_stats(self, task_ids: Iterable[str]) -> Status:
        """Return how well these tasks used the slots.

        ``speedup`` is total task time over the wall time from the first start
        to the last end of these tasks (``elapsed_s``), ``efficiency`` is that
        over the slots they could use (``usable_slots``).
        """
        from keystone_mpi.pipeline_statistics import statistics_of

        return statistics_of(self._tasks.find_all(task_ids), self._hub.worker_slots())

    def health_check(self) -> Status:
        """Return whether the engine works, with its workers, slots, hosts and what waits."""
        hub = self._hub
        workers, hosts = hub.crew()
        problem = str(hub.problem) if hub.problem is not None else self._tasks.book.problem
        return {
            "status": "healthy" if hub.alive and not problem and not self._tasks.closed else "unhealthy",
            "problem": problem or ("closed" if self._tasks.closed else None),
            "transport": hub.promised.launcher or "local",
            "workers": workers,
            "slots": hub.slots,
            "hosts": hosts,
            **hub.counts(),
            "journal_backlog": self._tasks.book.backlog,
            "output": str(self.path),
        }

    def list_available_simulations(self) -> dict[str, Status]:
        """Return the tools: what each is, whether it is found on this machine, and how to install it."""
        from keystone_mpi.tools.table import TOOLS

        found: dict[str, Status] = {}
        for name, tool in TOOLS.items():
            finding = tool.find()
            found[name] = {
                "available": finding.found,
                "description": tool.summary,
                "parameters": tool.parameters,
                "program": finding.where or None,
                "detail": finding.detail or None,
                "install": None if finding.found else finding.install or None,
            }
        return found

    # --- waiting -------------------------------------------------------------

    def wait_for_task(self, task_id: str, timeout: float | None = None) -> Status:
        """Wait until a task has ended and return its result, whatever its state.

        Raises
        ------
        TimeoutError
            It has not within `timeout` seconds; it runs on.
        RunInterruptedError
            It will not in this start: the engine was drained, or the allocation ends.
        """
        record = self._tasks.find(task_id)
        next(self._tasks.ends([record], timeout))
        self._tasks.look_at([record])
        return result_of(record, self.path)

    def wait_for_any(self, task_ids: Iterable[str], timeout: float | None = None) -> Status:
        """Wait until one of these tasks has ended; return ``{'task_id', 'status'}`` of the first."""
        records = self._tasks.find_all(task_ids)
        if not records:
            raise RequestError("wait_for_any: there is no task to wait for")
        record = next(self._tasks.ends(records, timeout))
        return {"task_id": record.task_id, "status": self._status(record)}

    def as_completed(self, task_ids: Iterable[str], timeout: float | None = None) -> Iterator[str]:
        """Yield the ids in the order in which the tasks end."""
        for record in self._tasks.ends(self._tasks.find_all(task_ids), timeout):
            yield record.task_id

    def wait_for_workflow(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        callback: Callback | None = None,
        poll_interval: float = 2.0,
    ) -> Status:
        """Wait until all these tasks have ended and return their workflow status.

        Parameters
        ----------
        task_ids : iterable of str
        timeout : float, optional
            Seconds after which TimeoutError is raised; the tasks run on.
        callback : callable, optional
            Called with the workflow status (without results) at every end, and
            at least every `poll_interval` seconds.
        poll_interval : float
            Bounds how rarely `callback` is called.
        """
        check_callback(callback)
        records = self._tasks.find_all(task_ids)

        def tell_callback() -> None:
            if callback is not None:
                self._tasks.look_at(records)
                self._call(callback, workflow_of(records, self.path, with_results=False))

        for _ in self._tasks.ends(
            records, timeout, None if callback is None else poll_interval, tell_callback
        ):
            tell_callback()
        self._tasks.look_at(records)
        return workflow_of(records, self.path)

    def monitor_task(
        self, task_id: str, callback: Callback | None = None, poll_interval: float = 2.0
    ) -> Status:
        """Watch a task until it has ended; return its status.

        Parameters
        ----------
        task_id : str
        callback : callable, optional
            Called with the status at once, at its end, and at least every `poll_interval` seconds.
        poll_interval : float
            Bounds how rarely `callback` is called.
        """
        check_callback(callback)
        record = self._tasks.find(task_id)

        def tell_callback() -> None:
            if callback is not None:
                self._call(callback, self._status(record))

        tell_callback()
        if not record.is_final:
            for _ in self._tasks.ends([record], None, poll_interval, tell_callback):
                tell_callback()
        return self._status(record)

    def cancel_task(self, task_id: str) -> bool:
        """Cancel a task: one that waits never starts, one that runs is killed.

        Returns
        -------
        bool
            False when it had ended before.
        """
        record = self._tasks.find(task_id)
        if record.is_final or not self._tasks.is_own(record):
            return False
        self._tasks.book.cancel(record)
        return True

    # --- the end -------------------------------------------------------------

    def close(self, wait: bool | None = None) -> None:
        """End this pipeline and write the last of its file.

        Parameters
        ----------
        wait : bool, optional
            True: what was submitted is finished first. False: what has not
            ended is cancelled. None: wait, unless an exception is on its way
            through the caller (``try: ... finally: pipeline.close()``).

        Raises
        ------
        RunInterruptedError
            Not everything that was waited for could be done in this allocation, or before a drain.
        """
        if wait is None:
            wait = sys.exc_info()[0] is None
        with self._close_lock:
            if self._tasks.closed:
                return
            try:
                self._tasks.close(wait=wait)
            except KeystoneError:  # the engine ended before its tasks; the file is closed all the same
                PROGRAM.closers.remove(self._end)
                raise
            PROGRAM.closers.remove(self._end)
        PROGRAM.callbacks.raise_problem()

    def cleanup(self, wait: bool | None = None) -> None:
        """End this pipeline; another name of `close`."""
        self.close(wait)

    def __enter__(self) -> TaskPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(wait=kind is None)

    def _end(self, failed: bool) -> None:
        """End with the program; it is not closed yet."""
        if failed:
            self._tasks.finish(interrupted=True, reason="the program ended with an error")
        else:
            self._tasks.close(wait=True)

    def _status(self, record: TaskRecord) -> Status:
        self._tasks.look_at([record])
        return status_of(record, self.path)

    @staticmethod
    def _call(callback: Callback, facts: Status) -> None:
        PROGRAM.callbacks.run_and_wait(lambda: callback(facts))


def _free_name(program: str) -> str:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name, number = f"{program}-{stamp}.h5", 1
    while os.path.exists(name) or os.path.exists(f"{name}.journal"):
        number += 1
        name = f"{program}-{stamp}-{number}.h5"
    return name
