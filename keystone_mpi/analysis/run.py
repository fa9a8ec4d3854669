"""A run as an object to ask: tables, labelled arrays, statistics, failures.

Rule: opening reads next to nothing; each question reads the columns that it
needs. A selection is a Run too, of fewer tasks.

    open_run(OUT) --> Run --select(mesh_size=64)--> Run
                       '--> .tasks .attempts .workers (pandas)   .to_xarray()   .stats()   .failures()
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.analysis.contents import Contents, open_contents
from keystone_mpi.analysis.failures import (
    FailedTask,
    FailureGroup,
    Trait,
    common_traits,
    group_failures,
)
from keystone_mpi.analysis.libraries import load
from keystone_mpi.analysis.statistics import Attempts, Workers, compute_statistics
from keystone_mpi.core.errors import UserError
from keystone_mpi.core.model import UNSUCCESSFUL_STATES, Outcome, TaskState, Why
from keystone_mpi.records.store.schema import ATTEMPTS, TASKS, WORKERS, Table

Rows = NDArray[np.int64]

TIMES = {"submitted", "started", "finished", "recorded", "joined", "left"}
LINES_READ = 20_000
"""Failures whose output tails are read for grouping; of more, the first so many stand for all."""
FEW_VALUES = 1000
"""A parameter of more distinct values is not looked at for what failures have in common."""


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the results of a run: finished, going on, or dead.

    Parameters
    ----------
    path : path
        The HDF5 file. While the run goes on, its journal is read too; no lock
        is taken and nothing is changed.

    Raises
    ------
    UserError
        There is no such file, or it is not a results file of keystone_mpi.
    """
    return Run(open_contents(Path(path)))


class Run:
    """One run, or some tasks of it; a context manager.

    Attributes
    ----------
    path : Path
    phase : str
        ``running``, ``complete``, ``interrupted`` or ``died``.
    """

    def __init__(self, contents: Contents, rows: Rows | None = None) -> None:
        self._contents = contents
        self._rows = rows
        self.path = contents.path
        self.phase = contents.phase

    def __repr__(self) -> str:
        part = "" if self._rows is None else f"{len(self._rows):,} of "
        return f"<Run {self.name!r} ({self.path}): {part}{self._contents.task_count:,} tasks, {self.phase}>"

    def __len__(self) -> int:
        return self._contents.task_count if self._rows is None else len(self._rows)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; tables and arrays that were made stay."""
        self._contents.close()

    # ------------------------------------------------------------------ words

    @property
    def contents(self) -> Contents:
        """The file's columns as plain numpy arrays."""
        return self._contents

    @property
    def name(self) -> str:
        """Name of the sweep."""
        return self._contents.name

    @property
    def params(self) -> list[str]:
        """Names of the parameters, in the order of the sweep file."""
        return list(self._contents.params)

    @property
    def results(self) -> list[str]:
        """Names of the results."""
        return list(self._contents.results)

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, hosts and settings of the run."""
        return self._contents.provenance

    @property
    def sweep_text(self) -> str:
        """The sweep file as it was written."""
        return self._contents.text("sweep_text")

    @property
    def rows(self) -> Rows:
        """Rows of this run's tasks in the file."""
        return np.arange(self._contents.task_count) if self._rows is None else self._rows

    @property
    def states(self) -> NDArray[np.int8]:
        """`TaskState` of every task."""
        return self._contents.states if self._rows is None else self._contents.states[self._rows]

    def values(self, name: str) -> NDArray[Any]:
        """Return a parameter, a result or a column of /tasks, one element per task."""
        values = self._contents.value(name)
        return values if self._rows is None else values[self._rows]

    # ----------------------------------------------------------------- tables

    @cached_property
    def tasks(self) -> Any:
        """A pandas DataFrame of all tasks: parameters, results (one value each), state and timings."""
        pandas = load("pandas", "the table of tasks")
        contents = self._contents
        columns: dict[str, Any] = {name: self.values(name) for name in contents.params}
        for name in contents.scalars:
            columns[name if name not in columns else f"{name}_result"] = self._picked(contents.result(name))
        for name, values in self._fixed_columns(TASKS, self._rows).items():
            columns[name if name not in columns else f"task_{name}"] = values
        return pandas.DataFrame(columns, index=pandas.Index(self.rows, name="task"), copy=False)

    @cached_property
    def attempts(self) -> Any:
        """A pandas DataFrame of every attempt that ended, with its host."""
        pandas = load("pandas", "the table of attempts")
        columns = self._fixed_columns(ATTEMPTS, self._attempt_rows)
        columns["host"] = self._hosts_of(columns["worker"])
        return pandas.DataFrame(columns, copy=False)

    @cached_property
    def workers(self) -> Any:
        """A pandas DataFrame of the workers of all starts."""
        pandas = load("pandas", "the table of workers")
        return pandas.DataFrame(self._fixed_columns(WORKERS, None), copy=False)

    def to_xarray(self, *names: str, layout: str = "auto") -> Any:
        """Return results as an `xarray.Dataset` with the parameters as coordinates.

        Parameters
        ----------
        *names : str
            Results or columns of /tasks; none: all results, the tasks' states
            and durations.
        layout : {"auto", "grid", "tasks"}
            ``grid``: one dimension per parameter; columns of a zip, a table or
            a sample share one, and repeated points get the dimension
            `replicate`. Holes are NaN. ``tasks``: one dimension `task`.
            ``auto``: a grid, unless it would be mostly holes.
        """
        from keystone_mpi.analysis.gridding import to_xarray

        if layout not in ("auto", "grid", "tasks"):
            raise UserError(f"layout {layout!r}: allowed are 'auto', 'grid' and 'tasks'")
        return to_xarray(self._contents, names, rows=self._rows, layout=layout)

    def select(self, **conditions: Any) -> Run:
        """Return the run of some tasks.

        Parameters
        ----------
        **conditions
            Parameter, result or column of /tasks -> a value, a list of values,
            or a `slice` (both ends included). ``state`` takes names:
            ``state="FAILURE"``.
        """
        chosen = np.ones(len(self), bool)
        for name, condition in conditions.items():
            if name == "state" and name not in self._contents.params:
                condition = _state_numbers(condition)
            chosen &= _matches(self.values(name), condition)
        return Run(self._contents, self.rows[chosen])

    # ---------------------------------------------------------------- numbers

    def stats(self) -> dict[str, Any]:
        """Return the numbers of `get_parallel_execution_stats` and more.

        See `keystone_mpi.analysis.statistics.compute_statistics` for the keys;
        ``failures`` are the groups of `failures`, ``common`` what they share.
        """
        found = compute_statistics(
            self.states,
            self.attempt_arrays(),
            self.worker_arrays(),
            submitted=self._picked(self._contents.fixed("tasks", "submitted")),
            first_started=self._picked(self._contents.fixed("tasks", "started")),
        )
        found["failures"] = self.failures()
        found["common"] = [trait.sentence() for trait in self.common()]
        return found

    def attempt_arrays(self) -> Attempts:
        """Return the attempts as arrays, for the functions of `statistics`."""
        return self._attempt_arrays

    @cached_property
    def _attempt_arrays(self) -> Attempts:
        def column(name: str, dtype: Any) -> NDArray[Any]:
            return self.attempt_column(name).astype(dtype, copy=False)

        return Attempts(
            task=column("task_index", np.int64),
            worker=column("worker", np.int64),
            started=column("started", np.float64),
            finished=column("finished", np.float64),
            duration_s=column("duration_s", np.float64),
            cores=column("cores", np.int64),
            epoch=column("epoch", np.int64),
        )

    def attempt_column(self, name: str) -> NDArray[Any]:
        """Return a column of /attempts for the attempts of this run's tasks."""
        values = self._contents.fixed("attempts", name)
        return values if self._attempt_rows is None else values[self._attempt_rows]

    def worker_arrays(self) -> Workers:
        """Return the workers as arrays, for the functions of `statistics`."""
        fixed = self._contents.fixed
        return Workers(
            slots=fixed("workers", "slots").astype(np.int64),
            epoch=fixed("workers", "epoch").astype(np.int64),
            joined=fixed("workers", "joined"),
            left=fixed("workers", "left"),
            rank=fixed("workers", "rank").astype(np.int64),
            host=list(self.hosts),
        )

    @cached_property
    def hosts(self) -> list[str]:
        """Host of each worker, by row of /workers."""
        return [str(host) for host in self._contents.fixed("workers", "host")]

    # --------------------------------------------------------------- failures

    def failures(self) -> list[FailureGroup]:
        """Return the failures, grouped by how they ended and what they said last."""
        return self._grouped

    @cached_property
    def _grouped(self) -> list[FailureGroup]:
        return group_failures(self.failed_tasks)

    def common(self) -> list[Trait]:
        """Return what most failures share and most tasks do not: a host, a parameter's value."""
        failed = self.failed_tasks
        if len(failed) < 2:
            return []
        rows = np.array([task.task for task in failed], np.int64)
        params: dict[str, list[object]] = {}
        of_all: dict[str, dict[object, int]] = {}
        for name in self._contents.params:
            if name in self._contents.space.get("derived", {}):
                continue  # it only repeats what it is made of
            column = self._contents.param(name)
            distinct, counts = np.unique(
                column if self._rows is None else column[self._rows], return_counts=True
            )
            if len(distinct) <= FEW_VALUES:
                params[name] = column[rows].tolist()
                of_all[name] = dict(zip(distinct.tolist(), counts.tolist(), strict=True))
        by_host = Counter(self._hosts_of(self.attempt_column("worker")).tolist())
        return common_traits(failed, by_host, params=params, params_of_all=of_all)

    @cached_property
    def failed_tasks(self) -> list[FailedTask]:
        """Every task that did not succeed, with its last attempt; `LINES_READ` of them have their output."""
        contents = self._contents
        bad = self.rows[np.isin(self.states, [int(state) for state in UNSUCCESSFUL_STATES])]
        if not len(bad):
            return []
        attempt = contents.fixed_rows("tasks", "last_attempt", bad)
        why = contents.fixed_rows("tasks", "why", bad)
        error = contents.fixed_rows("tasks", "error", bad[:LINES_READ]).tolist()
        alone = np.isin(
            why, [int(Why.DEPENDENCY), int(Why.BY_USER), int(Why.NOT_IN_SWEEP), int(Why.TOO_LARGE)]
        )
        has_attempt = (attempt >= 0) & ~alone
        sorted_rows, inverse = np.unique(attempt[has_attempt], return_inverse=True)
        columns = {
            name: contents.fixed_rows("attempts", name, sorted_rows)[inverse].tolist()
            for name in ("outcome", "exit_code", "signal")
        }
        hosts = self._hosts_of(contents.fixed_rows("attempts", "worker", sorted_rows)[inverse]).tolist()
        tails = contents.fixed_rows("attempts", "stderr_tail", sorted_rows[:LINES_READ])
        found = []
        position = -1
        for index, row in enumerate(bad.tolist()):
            said = error[index] if index < len(error) else ""
            if not has_attempt[index]:
                found.append(FailedTask(row, None, Why(int(why[index])), error=said))
                continue
            position += 1
            place = int(inverse[position])
            found.append(
                FailedTask(
                    task=row,
                    outcome=Outcome(columns["outcome"][position]),
                    why=Why(int(why[index])),
                    exit_code=columns["exit_code"][position],
                    signal=columns["signal"][position],
                    error=said,
                    stderr_tail=tails[place] if place < len(tails) else "",
                    host=hosts[position],
                )
            )
        return found

    # ------------------------------------------------------------------ parts

    @cached_property
    def _attempt_rows(self) -> Rows | None:
        """Rows of /attempts that belong to the selected tasks; None: all."""
        if self._rows is None:
            return None
        return np.flatnonzero(np.isin(self._contents.fixed("attempts", "task_index"), self._rows))

    def _picked(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self._rows is None else values[self._rows]

    def _hosts_of(self, worker: NDArray[Any]) -> NDArray[Any]:
        names = np.array([*self.hosts, ""], dtype=object)
        return names[np.where((worker >= 0) & (worker < len(self.hosts)), worker, len(self.hosts))]

    def _fixed_columns(self, table: Table, rows: Rows | None) -> dict[str, Any]:
        """Return the columns of a fixed table, times as UTC dates and flags by name."""
        pandas = load("pandas", f"the table of {table.group}")
        found: dict[str, Any] = {}
        for column in table.columns:
            if not self._contents.has(table.group, column.name):
                continue  # a file of an older version
            values = self._contents.fixed(table.group, column.name)
            values = values if rows is None else values[rows]
            if column.flags is not None:
                members = [member.name for member in column.flags]
                found[column.name] = pandas.Categorical.from_codes(values, members)
            elif column.name in TIMES:
                found[column.name] = pandas.to_datetime(values, unit="s", utc=True)
            else:
                found[column.name] = values
        return found


def _state_numbers(condition: Any) -> Any:
    """Turn names of states into their numbers."""
    if isinstance(condition, str):
        if condition not in TaskState.__members__:
            raise UserError(f"no state {condition!r}; there are {', '.join(TaskState.__members__)}")
        return int(TaskState[condition])
    if isinstance(condition, list | tuple | set):
        return [_state_numbers(item) for item in condition]
    return condition


def _matches(values: NDArray[Any], condition: Any) -> NDArray[np.bool_]:
    """Tell which values meet a condition."""
    if isinstance(condition, slice):
        chosen = np.ones(len(values), bool)
        if condition.start is not None:
            chosen &= values >= condition.start
        if condition.stop is not None:
            chosen &= values <= condition.stop
        return chosen
    if isinstance(condition, list | tuple | set | np.ndarray):
        return np.isin(values, list(condition))
    return np.asarray(values == condition, bool)
