"""Applying: one batch of journal entries into an open results file.

Rule: the file given here is a private copy. Every batch is turned into whole
numpy columns first; one write per column follows.

    open: task rows, params, texts
    Tail --> /workers --> /attempts (+ /output) --> /tasks --> /results
    close: /in_flight, attributes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import h5py
import msgspec
import numpy as np

from keystone_mpi.core.model import ArrayValue, AttemptReport, Outcome, ShardValue
from keystone_mpi.records.entries import AttemptEnded, RunOpened
from keystone_mpi.records.programs import is_program, with_recipes, write_request
from keystone_mpi.records.store import ColumnSource, hdf5, schema
from keystone_mpi.records.store.arrays import ArrayGroup, ArrayItem, storable
from keystone_mpi.records.store.hdf5 import TableFile
from keystone_mpi.records.store.output import STREAMS, OutputGroup
from keystone_mpi.records.store.shards import ShardReader
from keystone_mpi.records.store.values import ValueGroup
from keystone_mpi.records.tail import Tail, TaskUpdate, plausible_times, task_update

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PARAM_ROWS = 65_536
Rows: TypeAlias = "NDArray[np.int64]"


class OpenFile:
    """The results file while a fold works on it.

    Parameters
    ----------
    file : h5py.File
        A private copy, or a new file.
    head : RunOpened
        First entry of the journal that is being folded.
    shards : ShardReader
    """

    def __init__(self, file: h5py.File, head: RunOpened, shards: ShardReader) -> None:
        self.file = file
        self._head = head
        self._shards = shards
        chunk = schema.chunk_rows(head.task_count)
        if is_program(head.spec):
            chunk = max(chunk, schema.PROGRAM_CHUNK_ROWS)
        if "task" not in file:
            self._start(chunk)
        self._tasks = TableFile(file, schema.TASKS, chunk=chunk, dimension=file["task"])
        self._attempts = TableFile(file, schema.ATTEMPTS, chunk=chunk)
        self._workers = TableFile(file, schema.WORKERS, chunk=64)
        self._results = ValueGroup(file, "results", file["task"])
        self._arrays = ArrayGroup(file["results"], file["task"])
        self._output = OutputGroup(file)
        for column in schema.KEPT_COLUMNS:
            if column.name in file["attempts"]:
                self._attempts.ensure(column)
        if schema.REQUEST_COLUMN.name in file["tasks"]:
            self._tasks.ensure(schema.REQUEST_COLUMN)
        self._worker_rows = self._known_workers()

    def _start(self, chunk: int) -> None:
        file, head = self.file, self._head
        hdf5.set_text(file, "Conventions", "CF-1.11")
        hdf5.set_text(file, "title", hdf5.clean_text(head.sweep_name) or "parameter sweep")
        hdf5.set_text(file, "format", schema.FORMAT)
        file.attrs["format_version"] = schema.FORMAT_VERSION
        hdf5.set_text(file, "run_id", head.run_id)
        file.attrs["created"] = head.created
        tasks = hdf5.make_dimension(file, "task", 0, coordinate=True, chunk=chunk)
        hdf5.set_text(tasks, "long_name", "row of the task")
        names = hdf5.make_variable(file, "task_id", hdf5.TEXT, (tasks,), chunks=(chunk,), fill="")
        hdf5.set_text(names, "long_name", "name of the task")
        file.require_group("params")

    def begin_epoch(self, columns: ColumnSource | None) -> None:
        """Add what a start of the run brings: task rows, parameters, texts."""
        head, file = self._head, self.file
        present = int(file["task"].shape[0])
        hdf5.require(
            present <= head.task_count, f"it has {present} tasks, the journal speaks of {head.task_count}"
        )
        added = head.task_count - present
        hdf5.resize_dimension(file["task"], head.task_count)
        file["task_id"].resize(head.task_count, axis=0)
        self._tasks.resize(head.task_count)
        self._results.resize(head.task_count)
        self._arrays.resize(head.task_count)
        params = ValueGroup(file, "params", file["task"])
        params.resize(head.task_count)
        if columns is not None and added:
            known = set(params.names)
            for name, kind in columns.kinds().items():
                params.ensure(name, kind)
            for name, value in columns.implied().items():
                if present and name not in known:
                    params.write(name, 0, [value] * present)
        for start in range(0, added, _PARAM_ROWS):
            stop = min(start + _PARAM_ROWS, added)
            names = np.empty(stop - start, dtype=object)
            names[:] = [str(row) for row in range(present + start, present + stop)]
            hdf5.write_rows(file["task_id"], present + start, names)
            self._tasks.write("submitted", present + start, np.full(stop - start, head.opened))
            if columns is not None:
                kinds = columns.kinds()
                for name, values in columns.columns(start, stop).items():
                    params.write_array(name, kinds[name], present + start, values)
        params.settle()
        hdf5.set_text(file, "sweep_name", hdf5.clean_text(head.sweep_name))
        texts = {
            "spec": head.spec.decode("utf-8", "replace"),
            "sweep_text": head.sweep_text,
            "provenance": msgspec.json.encode(head.provenance).decode(),
            "fingerprint": msgspec.json.encode(head.fingerprint).decode(),
        }
        for name, text in texts.items():
            hdf5.write_text(file, name, text, schema.TEXTS[name])

    def apply(self, tail: Tail) -> int:
        """Add a batch; return the number of new rows in /attempts."""
        self._add_tasks(tail)
        self._apply_workers(tail)
        first = len(self._attempts)
        update = task_update(tail.ended)
        self._append_attempts(tail.ended, first)
        self._apply_tasks(tail, update, first)
        return len(tail.ended)

    def _add_tasks(self, tail: Tail) -> None:
        """Add the rows of tasks that a program submitted."""
        if tail.recipes:
            spec = with_recipes(hdf5.read_text(self.file, "spec").encode(), tail.recipes)
            hdf5.write_text(self.file, "spec", spec.decode(), schema.TEXTS["spec"])
        if not tail.added:
            return
        file, tasks = self.file, [task for task, _ in tail.added]
        first = int(file["task"].shape[0])
        count = first + len(tasks)
        hdf5.resize_dimension(file["task"], count)
        file["task_id"].resize(count, axis=0)
        names = np.empty(len(tasks), dtype=object)
        names[:] = [str(row) for row in range(first, count)]
        hdf5.write_rows(file["task_id"], first, names)
        params = ValueGroup(file, "params", file["task"])
        for part in (self._tasks, self._results, self._arrays, params):
            part.resize(count)
        self._tasks.ensure(schema.REQUEST_COLUMN)
        self._tasks.write("submitted", first, np.array([at for _, at in tail.added], "f8"))
        self._tasks.write_texts("request", first, [write_request(task) for task in tasks])
        for name in dict.fromkeys(name for task in tasks for name in task.params):
            params.write(name, first, [task.params.get(name) for task in tasks])

    def settle(self) -> None:
        """Tidy up a finished run's file."""
        self._results.settle()
        ValueGroup(self.file, "params", self.file["task"]).settle()
        if "in_flight" in self.file:
            for name in [n for n in self.file["in_flight"] if n != "flight"]:
                hdf5.remove_variable(self.file["in_flight"], name)
            del self.file["in_flight"]

    def write_in_flight(self, tail: Tail) -> None:
        """Replace /in_flight."""
        if not tail.in_flight and "in_flight" not in self.file:
            return
        table = TableFile(self.file, schema.IN_FLIGHT, chunk=256)
        table.resize(len(tail.in_flight))
        keys, flights = list(tail.in_flight), list(tail.in_flight.values())
        table.write("task_index", 0, np.array([key[0] for key in keys], "i8"))
        table.write("number", 0, np.array([key[1] for key in keys], "i4"))
        table.write("worker", 0, np.array([flight.worker for flight in flights], "i4"))
        table.write("assigned", 0, np.array([flight.assigned for flight in flights], "f8"))
        table.write("started", 0, np.array([flight.started for flight in flights], "f8"))

    def close_output(self) -> None:
        """Write pending output bytes."""
        self._output.close()

    def all_final(self) -> bool:
        """Tell whether every task has a final state."""
        return bool((self._tasks.whole("state") >= 2).all())

    # ------------------------------------------------------------------ parts

    def _known_workers(self) -> dict[int, int]:
        """Return worker identity -> row, of this epoch."""
        ids, epochs = self._workers.whole("id"), self._workers.whole("epoch")
        rows = np.flatnonzero(epochs == self._head.epoch)
        return dict(zip(ids[rows].tolist(), rows.tolist(), strict=True))

    def _apply_workers(self, tail: Tail) -> None:
        joined = tail.joined
        if joined:
            start = len(self._workers)
            self._workers.resize(start + len(joined))
            self._worker_rows |= {worker.worker: start + k for k, worker in enumerate(joined)}
            numbers: dict[str, list[Any]] = {
                "id": [worker.worker for worker in joined],
                "epoch": [self._head.epoch] * len(joined),
                "rank": [worker.rank for worker in joined],
                "slots": [worker.slots for worker in joined],
                "memory_bytes": [worker.memory_bytes for worker in joined],
                "pid": [worker.pid for worker in joined],
                "joined": [worker.at for worker in joined],
            }
            for name, values in numbers.items():
                self._workers.write(name, start, np.array(values, schema.WORKERS.column(name).dtype))
            self._workers.write_texts("host", start, [worker.host for worker in joined])
        for worker in tail.left:
            row = self._worker_rows.get(worker.worker)
            if row is not None:
                self._workers.write("left", row, np.array([worker.at]))
                self._workers.write_texts("why_left", row, [worker.why])

    def _append_attempts(self, ended: list[AttemptEnded], first: int) -> None:
        if not ended:
            return
        count = len(ended)
        table = self._attempts
        table.resize(first + count)
        reports = [entry.report for entry in ended]
        rows = self._worker_rows
        table.write("worker", first, _column((rows.get(e.worker, -1) for e in ended), "i4", count))
        table.write("epoch", first, np.full(count, self._head.epoch, "i4"))
        table.write("recorded", first, plausible_times(_column((e.recorded for e in ended), "f8", count)))
        for name, dtype, values in _numbers(reports):
            array = _column(values, dtype, count)
            table.write(name, first, plausible_times(array) if name in ("started", "finished") else array)
        for name, texts in _texts(reports):
            table.write_texts(name, first, texts)
        self._keep_output(reports, first)

    def _keep_output(self, reports: list[AttemptReport], first: int) -> None:
        for stream in STREAMS:
            key = f"@{stream}"
            kept = [(k, r) for k, r in enumerate(reports) if key in r.packed or key in r.large]
            if not kept:
                continue
            for column in schema.KEPT_COLUMNS:
                self._attempts.ensure(column)
            places = []
            for _k, report in kept:
                packed = report.packed.get(key)
                if packed is None:
                    packed = self._shards.read(report.large[key]) or b""
                places.append(self._output.append(stream, packed))
            rows = np.array([first + k for k, _report in kept])
            self._attempts.write(f"{stream}_kept_offset", rows, np.array([p[0] for p in places], "i8"))
            self._attempts.write(f"{stream}_kept_bytes", rows, np.array([p[1] for p in places], "i8"))

    def _apply_tasks(self, tail: Tail, update: TaskUpdate, first: int) -> None:
        table = self._tasks
        if tail.forgiven:
            put_back = np.array(sorted(tail.forgiven), "i8")
            batch = tail.forgiven_attempts()
            newly = np.array([batch[row] for row in put_back.tolist()], "i4")
            table.write("forgiven", put_back, np.maximum(table.read("attempts", put_back), newly))
        if tail.changes:
            rows = np.array(sorted(tail.changes), "i8")
            changes = [tail.changes[row] for row in rows.tolist()]
            table.write("state", rows, _column((change.state for change in changes), "i1", len(rows)))
            table.write("why", rows, _column((change.why for change in changes), "i1", len(rows)))
            table.write_texts("error", rows, [change.error for change in changes])
        if not len(update.rows):
            return
        rows = update.rows
        table.write("attempts", rows, np.maximum(table.read("attempts", rows), update.attempts))
        table.write("started", rows, np.fmin(table.read("started", rows), update.first_started))
        table.write("finished", rows, update.finished)
        table.write("duration_s", rows, update.duration_s)
        table.write("last_attempt", rows, update.last + first)
        # Results: the last successful attempt's, else the last one's.
        former = table.read("results_from", rows)
        replaces = update.best_is_success.copy()
        if not replaces.all():
            kept_rows = np.unique(former[~replaces & (former >= 0)])
            kept_outcome = self._attempts.read("outcome", kept_rows)
            successes = kept_rows[kept_outcome == Outcome.SUCCESS]
            replaces |= ~np.isin(former, successes)
        rows, best, former = rows[replaces], update.best[replaces], former[replaces]
        table.write("results_from", rows, best + first)
        if len(best) < len(tail.ended):
            winners = set(best.tolist())
            self._ensure_results(e.report for k, e in enumerate(tail.ended) if k not in winners)
        reports = [tail.ended[position].report for position in best.tolist()]
        self._write_results(rows, reports, rows[former >= 0])

    def _ensure_results(self, reports: Iterable[AttemptReport]) -> None:
        """Make the columns of superseded attempts, so that the file does not depend on when it was folded."""
        for report in reports:
            for name, value in report.scalars.items():
                self._results.ensure_for(name, [value])
            for name, item in self._array_items(report.index, report):
                if item.shape:
                    self._arrays.write(name, [item], values=False)

    def _write_results(self, rows: Rows, reports: list[AttemptReport], rewritten: Rows) -> None:
        """Write the results of one attempt per row; `rewritten` rows hold an earlier attempt's."""
        scalars: dict[str, tuple[list[int], list[Any]]] = {}
        arrays: dict[str, list[ArrayItem]] = {}
        for row, report in zip(rows.tolist(), reports, strict=True):
            for name, value in report.scalars.items():
                column = scalars.get(name)
                if column is None:
                    column = scalars[name] = ([], [])
                column[0].append(row)
                column[1].append(value)
            if report.arrays or report.large:
                for name, item in self._array_items(row, report):
                    if item.shape:
                        arrays.setdefault(name, []).append(item)
                    else:
                        at, values = scalars.setdefault(name, ([], []))
                        loaded = item.load()
                        at.append(row)
                        values.append(None if loaded is None else _plain(loaded.item()))
        if len(rewritten):
            self._arrays.clear(rewritten)
            for name in self._results.names:
                at, values = scalars.setdefault(name, ([], []))
                absent = np.setdiff1d(rewritten, np.array(at, "i8"))
                at.extend(absent.tolist())
                values.extend([None] * len(absent))
                if len(absent):
                    order = np.argsort(np.array(at, "i8"), kind="stable").tolist()
                    scalars[name] = ([at[k] for k in order], [values[k] for k in order])
        for name, (at, values) in scalars.items():
            self._results.write(name, np.array(at, "i8"), values)
        for name, items in arrays.items():
            self._arrays.write(name, items)

    def _array_items(self, row: int, report: AttemptReport) -> Iterable[tuple[str, ArrayItem]]:
        values: dict[str, ArrayValue | ShardValue] = {**report.arrays, **report.large}
        for name, value in values.items():
            if name.startswith("@") or name in report.scalars:
                continue
            shape = tuple(value.shape)
            dtype = storable(value.dtype, shape)
            if dtype is not None:
                yield name, ArrayItem(row, dtype, shape, self._loader(value, dtype, shape))

    def _loader(
        self, value: ArrayValue | ShardValue, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> Callable[[], NDArray[Any] | None]:
        def load() -> NDArray[Any] | None:
            data = value.data if isinstance(value, ArrayValue) else self._shards.read(value)
            if data is None:
                return None
            try:
                return np.frombuffer(data, dtype).reshape(shape)
            except ValueError:  # its bytes and its shape disagree
                return None

        return load


def _column(values: Iterable[Any], dtype: str, count: int) -> NDArray[Any]:
    return np.fromiter(values, dtype, count)


def _numbers(reports: list[AttemptReport]) -> Iterable[tuple[str, str, Iterable[Any]]]:
    yield "task_index", "i8", (r.index for r in reports)
    yield "number", "i4", (r.attempt for r in reports)
    yield "outcome", "i1", (r.outcome for r in reports)
    yield "why", "i1", (r.why for r in reports)
    yield "started", "f8", (r.started for r in reports)
    yield "finished", "f8", (r.finished for r in reports)
    yield "duration_s", "f8", (r.duration_s for r in reports)
    yield "exit_code", "i4", (r.exit_code for r in reports)
    yield "signal", "i4", (r.signal for r in reports)
    yield "user_s", "f8", (r.user_s for r in reports)
    yield "system_s", "f8", (r.system_s for r in reports)
    yield "max_rss_bytes", "i8", (r.max_rss_bytes for r in reports)
    yield "cores", "i4", (len(r.cpus) for r in reports)
    yield "stdout_bytes", "i8", (r.stdout_bytes for r in reports)
    yield "stderr_bytes", "i8", (r.stderr_bytes for r in reports)


def _texts(reports: list[AttemptReport]) -> Iterable[tuple[str, list[str]]]:
    yield "cpus", [",".join(map(str, r.cpus)) for r in reports]
    yield "stdout_tail", [r.stdout_tail for r in reports]
    yield "stderr_tail", [r.stderr_tail for r in reports]
    yield "error", [r.error for r in reports]
    yield "command", [r.command for r in reports]
    yield "work_path", [r.work_path for r in reports]
    yield "artifacts", ["\n".join(r.artifacts) for r in reports]


def _plain(value: Any) -> Any:
    """Turn what a 0-d array holds into a scalar that a column can hold."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, bool | int | float | str) else str(value)
