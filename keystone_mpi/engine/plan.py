"""What a start of a run has to do: the rows of the file, and which of them are still to run.

Rule: a row is a task for ever. A fresh run's row k is point k of the space. A
continued run keeps every row; points that the sweep gained become rows at the
end; rows that the sweep no longer contains stay in the file and are not run.

    sweep + file so far --(make_plan)--> RunPlan
    RunPlan.source() -> scheduler (lazily, in dispatch order)
    RunPlan.order(assignment) -> message to a worker

Nothing here is proportional to the number of queued tasks except one byte of
state per row of a continued run.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from keystone_mpi.core.errors import OutputError
from keystone_mpi.core.model import FINAL_STATES, Assignment, RetryBudget, TaskRequest, TaskState
from keystone_mpi.deferred_numpy import np
from keystone_mpi.engine.expectation import DurationModel
from keystone_mpi.records.programs import is_program
from keystone_mpi.sweeps.fingerprint import fingerprint_difference
from keystone_mpi.sweeps.values import REPLICATE
from keystone_mpi.transport.messages import TaskOrder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from keystone_mpi.records.view import RunView
    from keystone_mpi.sweeps.sweep import Sweep

CHUNK_ROWS = 65536
"""Rows looked at together."""
LEARNED_ROWS = 2000
"""Tasks of an earlier file that durations are learned from."""
LEARNING_WINDOW = 256
"""Tasks taken in advance, at least, while nothing is known of their durations."""


class PlanOptions(msgspec.Struct, frozen=True):
    """The user's choices about an existing file."""

    retry_failed: bool = False
    accept_changed: bool = False
    points: list[tuple[int, int]] | None = None
    """Only these points of the sweep (a shard of it), half-open ranges, ascending; None: all."""
    whole_rows: dict[int, int] = {}
    """Of a shard: point -> row in the file of the whole sweep, where that is not the point itself."""


class RunPlan:
    """Rows, points and states of one start of a run.

    Parameters
    ----------
    sweep : Sweep
        What the user asks for now.
    base : RunView or None
        The file so far; None for a fresh run.
    point_of_row : array of int64 or None
        Point of the sweep's space for each row of the file so far, -1 for rows
        that the sweep no longer contains; None when row k is point k.
    added_points : list of (start, stop)
        Points that become new rows, in order.
    states : array of int8 or None
        State of each row of the file so far.
    whole_rows : dict or None
        For a shard: see `PlanOptions`; None: this is the whole sweep.
    """

    def __init__(
        self,
        sweep: Sweep,
        *,
        base: RunView | None,
        point_of_row: NDArray[np.int64] | None,
        added_points: list[tuple[int, int]],
        states: NDArray[np.int8] | None,
        retry_failed: bool,
        whole_rows: dict[int, int] | None = None,
    ) -> None:
        self.sweep = sweep
        self.model = DurationModel(tuple(sweep.space.names))
        self.base = base
        self.added_points = added_points
        self._added_before = list(itertools.accumulate((b - a for a, b in added_points), initial=0))
        self.base_task_count = 0 if base is None else base.task_count
        self.task_count = self.base_task_count + sum(stop - start for start, stop in added_points)
        self._point_of_row = point_of_row
        self._states = states
        self._whole_rows = whole_rows
        self._rerun_states = (
            (TaskState.PENDING, TaskState.RUNNING, TaskState.FAILURE, TaskState.TIMEOUT, TaskState.CANCELLED)
            if retry_failed
            else (TaskState.PENDING, TaskState.RUNNING)
        )
        self.dropped = 0 if point_of_row is None else int(np.count_nonzero(point_of_row < 0))
        self.to_run = sum(len(rows) for rows in self._pending_base_rows()) + (
            self.task_count - self.base_task_count
        )

    def point(self, row: int) -> int:
        """Return the point of the space that `row` stands for."""
        if row < self.base_task_count:
            return row if self._point_of_row is None else int(self._point_of_row[row])
        offset = row - self.base_task_count
        if offset >= self._added_before[-1]:
            raise IndexError(row)
        place = bisect.bisect_right(self._added_before, offset) - 1
        return self.added_points[place][0] + offset - self._added_before[place]

    def put_back_rows(self) -> Iterator[int]:
        """Rows that were final in the file and are to run again."""
        if self._states is None:
            return
        for rows in self._pending_base_rows():
            for row in rows:
                if self._states[row] not in (TaskState.PENDING, TaskState.RUNNING):
                    yield int(row)

    def dropped_rows(self) -> Iterator[int]:
        """Unfinished rows of the file that the sweep no longer contains."""
        if self._point_of_row is None or self._states is None:
            return
        unfinished = np.isin(self._states, (TaskState.PENDING, TaskState.RUNNING))
        for row in np.flatnonzero(unfinished & (self._point_of_row < 0)):
            yield int(row)

    def request(self, row: int) -> TaskRequest:
        """Describe the task of `row` to the scheduler."""
        point = self.point(row)
        request = self.sweep.request(point, row)
        if self.model.knows and (expected_s := self.model.expect(self.sweep.space.params(point))):
            request = msgspec.structs.replace(request, expected_s=expected_s)
        if self.base is None or row >= self.base_task_count:
            return request
        # An attempt that was cut off says how long the task takes at least.
        seen_s = float(self.base.durations[row])
        return msgspec.structs.replace(
            request,
            expected_s=max(request.expected_s, seen_s) if seen_s == seen_s else request.expected_s,
            attempts_before=int(self.base.last_attempt[row]),
            used=self._used(row),
        )

    def _used(self, row: int) -> RetryBudget:
        if self.base is None or self._states is None:
            return RetryBudget(0, 0, 0, 0)
        if self._states[row] not in (TaskState.PENDING, TaskState.RUNNING):
            # --retry-failed grants the whole budget again.
            return RetryBudget(0, 0, 0, 0)
        used = self.base.used_budget
        return RetryBudget(
            failed=int(used.failed[row]),
            timed_out=int(used.timed_out[row]),
            out_of_memory=int(used.out_of_memory[row]),
            worker_lost=int(used.worker_lost[row]),
        )

    def order(self, assignment: Assignment) -> TaskOrder:
        """Spell out `assignment` for a worker."""
        point = self.point(assignment.index)
        params = self.sweep.space.params(point)
        # A shard's tasks are called as in the whole sweep: the names of their files must not collide.
        whole_row = assignment.index if self._whole_rows is None else self._whole_rows.get(point, point)
        return TaskOrder(
            index=assignment.index,
            attempt=assignment.attempt,
            params=params,
            cores=assignment.cores,
            memory_bytes=assignment.memory_bytes,
            gpus=assignment.gpus,
            timeout_s=assignment.timeout_s,
            seed=self.sweep.seed_of(params),
            task_id=str(whole_row),
        )

    def learn(self, row: int, duration_s: float) -> None:
        """A task succeeded: later ones like it are expected to take as long."""
        self.model.learn(duration_s, lambda: self.sweep.space.params(self.point(row)))

    def learn_from(self, earlier: RunView) -> None:
        """Learn from the tasks that succeeded in a file."""
        durations = np.where(earlier.states == TaskState.SUCCESS, earlier.durations, np.nan)
        rows = np.flatnonzero(np.isfinite(durations))
        rows = rows[:: max(1, len(rows) // LEARNED_ROWS)]
        columns = {name: column[rows].tolist() for name, column in earlier.param_columns().items()}

        def params(position: int) -> dict[str, Any]:
            return {name: values[position] for name, values in columns.items()}

        for position, duration_s in enumerate(durations[rows].tolist()):
            self.model.learn(duration_s, functools.partial(params, position))

    def source(self) -> PlanSource:
        """Return the pending tasks, lazily and in dispatch order."""
        return PlanSource(self, self.to_run)

    def pending_rows(self) -> Iterator[NDArray[np.int64] | range]:
        """Rows to run, in chunks; row order, or priority order where priorities differ by task."""
        if self.sweep.options.priority.param:
            rows = np.concatenate([*self._pending_base_rows(), *self._added_rows(), np.empty(0, np.int64)])
            priorities = np.concatenate([self._priorities(chunk) for chunk in _chunks(rows)] or [np.empty(0)])
            yield from _chunks(rows[np.argsort(-priorities, kind="stable")])
        else:
            yield from self._pending_base_rows()
            yield from self._added_rows()

    def _priorities(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        points = np.array([self.point(int(row)) for row in rows], dtype=np.int64)
        first = int(points.min())
        return self.sweep.priorities(first, int(points.max()) + 1)[points - first]

    def _pending_base_rows(self) -> Iterator[NDArray[np.int64]]:
        if self._states is None:
            return
        for start in range(0, self.base_task_count, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, self.base_task_count)
            wanted = np.isin(self._states[start:stop], self._rerun_states)
            if self._point_of_row is not None:
                wanted &= self._point_of_row[start:stop] >= 0
            rows = np.flatnonzero(wanted) + start
            if len(rows):
                yield rows

    def _added_rows(self) -> Iterator[range]:
        for start in range(self.base_task_count, self.task_count, CHUNK_ROWS):
            yield range(start, min(start + CHUNK_ROWS, self.task_count))


class PlanSource:
    """The scheduler's `TaskSource` over a plan.

    While durations are unknown it gives out little in advance, so that most
    tasks are ordered by what the first ones taught.
    """

    def __init__(self, plan: RunPlan, remaining: int) -> None:
        self._plan = plan
        self._remaining = remaining
        self._taken = 0
        self.finished = 0
        """Told by the master."""
        self.slots = 1
        """Told by the master."""
        self._rows = (int(row) for chunk in plan.pending_rows() for row in chunk)

    def take(self, limit: int) -> list[TaskRequest]:
        """See `TaskSource`."""
        if not self._plan.model.settled:
            window = max(LEARNING_WINDOW, 4 * self.slots)
            limit = min(limit, window - (self._taken - self.finished))
        requests = [self._plan.request(row) for row in itertools.islice(self._rows, max(0, limit))]
        self._taken += len(requests)
        self._remaining -= len(requests)
        return requests

    def remaining(self) -> int:
        """See `TaskSource`."""
        return self._remaining


def make_plan(sweep: Sweep, base: RunView | None, options: PlanOptions) -> RunPlan:
    """Compare the sweep with the file so far.

    Raises
    ------
    OutputError
        The file belongs to another sweep, or what runs the tasks has changed
        and `accept_changed` is not set.
    """
    if base is None:
        return RunPlan(
            sweep,
            base=None,
            point_of_row=None,
            added_points=_all_points(sweep) if options.points is None else options.points,
            states=None,
            retry_failed=False,
            whole_rows=None if options.points is None else options.whole_rows,
        )
    if is_program(base.spec):
        raise OutputError(
            f"{base.path}: holds the results of a Python program, not of a sweep "
            "(-o FILE writes elsewhere, --fresh moves the old file aside)"
        )
    _refuse_other_sweep(sweep, base)
    changes = fingerprint_difference(base.fingerprint, sweep.fingerprint)
    # Where no task has ended (the setup failed, say) there is nothing that a change could be mixed with.
    if changes and not options.accept_changed and bool(np.isin(base.states, list(FINAL_STATES)).any()):
        raise OutputError(
            f"{base.path}: what runs the tasks has changed since this file was made: {'; '.join(changes)} "
            "(--accept-changed continues with the new one, --fresh starts over, -o FILE writes elsewhere)"
        )
    point_of_row, added_points = _match_rows(sweep, base, options.points)
    plan = RunPlan(
        sweep,
        base=base,
        point_of_row=point_of_row,
        added_points=added_points,
        states=base.states,
        retry_failed=options.retry_failed,
        whole_rows=None if options.points is None else options.whole_rows,
    )
    plan.learn_from(base)
    return plan


def _all_points(sweep: Sweep) -> list[tuple[int, int]]:
    return [(0, len(sweep.space))] if len(sweep.space) else []


def _refuse_other_sweep(sweep: Sweep, base: RunView) -> None:
    choices = "(-o FILE writes elsewhere, --fresh moves the old file aside)"
    if base.sweep_name != sweep.name:
        raise OutputError(
            f"{base.path}: holds the results of sweep {base.sweep_name!r}, not of {sweep.name!r} {choices}"
        )
    ours = _identity_names(set(sweep.space.kinds()), frozenset(sweep.space.derived_names))
    theirs = _identity_names(set(base.param_columns()), _derived_names_of(base))
    if base.task_count and ours != theirs:
        raise OutputError(
            f"{base.path}: holds the results of another sweep: its parameters are "
            f"{', '.join(sorted(theirs)) or 'none'}, those of {sweep.name} are "
            f"{', '.join(sorted(ours)) or 'none'} {choices}"
        )


def _identity_names(names: set[str], derived: frozenset[str]) -> set[str]:
    """Return the parameters that tell tasks apart; a missing replicate is replicate 0."""
    return names - derived - {REPLICATE}


def _derived_names_of(base: RunView) -> frozenset[str]:
    prefix = "derived:"
    return frozenset(part.removeprefix(prefix) for part in base.fingerprint if part.startswith(prefix))


def _match_rows(
    sweep: Sweep, base: RunView, points: list[tuple[int, int]] | None
) -> tuple[NDArray[np.int64] | None, list[tuple[int, int]]]:
    """Find each row's point; (None, added) when row k is point k. Only `points` are added, None: all."""
    columns = base.param_columns()
    point_count = len(sweep.space)
    if (
        points is None
        and base.task_count <= point_count
        and _rows_are_points(sweep, base.task_count, columns)
    ):
        return None, [(base.task_count, point_count)] if base.task_count < point_count else []
    point_of_row = sweep.space.indices_of(columns, ignore=_derived_names_of(base))
    known, first_rows = np.unique(point_of_row, return_index=True)
    repeated = np.ones(base.task_count, dtype=bool)
    repeated[first_rows] = False
    point_of_row[repeated] = -1
    wanted = [np.arange(start, stop) for start, stop in ([(0, point_count)] if points is None else points)]
    new_points = np.setdiff1d(np.concatenate([*wanted, np.empty(0, np.int64)]), known, assume_unique=True)
    return point_of_row, _ranges(new_points)


def _rows_are_points(sweep: Sweep, count: int, columns: dict[str, NDArray[Any]]) -> bool:
    """Compare column by column: the usual case of a sweep that is continued unchanged, at little cost."""
    if set(columns) != set(sweep.space.kinds()):
        return False
    for start in range(0, count, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, count)
        expected = sweep.space.columns(start, stop)
        for name, column in columns.items():
            if not np.array_equal(np.asarray(expected[name]), column[start:stop]):
                return False
    return True


def _ranges(points: NDArray[np.int64]) -> list[tuple[int, int]]:
    if not len(points):
        return []
    breaks = np.flatnonzero(np.diff(points) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(points, breaks)]


def _chunks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows[start : start + CHUNK_ROWS]
