"""One results file, held open: columns as numpy arrays, read when asked for.

Rule: everything comes from one generation of one file, so columns belong
together. A run whose journal is not in the file yet is read from a private
copy into which the journal was folded, as its next batch would do; the run
itself is not touched.

    finished:      OUT -----------------------------------------> Contents
    going on/died: OUT, OUT.journal --copy, fold--> private file --> Contents (unlinked at once)
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from keystone_mpi.core.errors import ClusterError, OutputError, UserError
from keystone_mpi.core.model import TaskState
from keystone_mpi.engine.columns import columns_from_spec
from keystone_mpi.records.journal import journal_path, read_head
from keystone_mpi.records.store import fold
from keystone_mpi.records.store.inspecting import inspect
from keystone_mpi.records.store.reading import Snapshot, ValueColumn, open_snapshot
from keystone_mpi.records.store.shards import shards_path
from keystone_mpi.records.store.values import BOOL_MISSING, INT_MISSING
from keystone_mpi.records.view import open_view

Array = NDArray[Any]

_RETRIES = 20
_RETRY_PAUSE_S = 0.05


class Contents:
    """The columns of one results file.

    Attributes
    ----------
    path : Path
        The file as it was asked for.
    phase : str
        ``running``, ``complete``, ``interrupted`` or ``died``.
    """

    def __init__(self, path: Path, phase: str, snapshot: Snapshot) -> None:
        self.path = path
        self.phase = phase
        self._snapshot = snapshot
        self.task_count: int = snapshot.present.task_count
        self.run_id: str = snapshot.present.run_id
        self.starts: int = snapshot.present.journal_epoch
        self.created: float = snapshot.created
        self.name: str = snapshot.attribute("sweep_name")
        self.reason: str = snapshot.attribute("state_reason")

    def close(self) -> None:
        """Let go of the file."""
        self._snapshot.close()

    def text(self, name: str) -> str:
        """Return a text of the root group: ``sweep_text``, ``spec``, ``provenance``, ``fingerprint``."""
        return self._snapshot.text(name)

    @property
    def snapshot(self) -> Snapshot:
        """The generation of the file that all columns come from."""
        return self._snapshot

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Versions, hosts and settings of the run."""
        return msgspec.json.decode(self.text("provenance") or "{}", type=dict[str, Any])

    @cached_property
    def states(self) -> NDArray[np.int8]:
        """State of every task; RUNNING only while the run is going on."""
        states: NDArray[np.int8] = self._snapshot.column("tasks", "state").astype(np.int8)
        if self.phase == "running":
            for index, _ in self._snapshot.in_flight():
                if states[index] == TaskState.PENDING:
                    states[index] = TaskState.RUNNING
        return states

    def in_flight(self) -> list[tuple[int, int, float]]:
        """Return (task, worker identity in the present epoch, started or handed out) of what runs now."""
        if self.phase != "running":
            return []
        return [
            (index, flight.worker, flight.started if flight.started == flight.started else flight.assigned)
            for (index, _), flight in self._snapshot.in_flight().items()
        ]

    # --------------------------------------------------------------- columns

    def has(self, group: str, name: str) -> bool:
        """Tell whether ``/group/name`` exists."""
        return self._snapshot.has(group, name)

    def fixed(self, group: str, name: str) -> Array:
        """Read a column of /tasks, /attempts or /workers."""
        if (group, name) == ("tasks", "state"):
            return self.states
        return self._snapshot.column(group, name)

    def fixed_rows(self, group: str, name: str, rows: NDArray[np.int64]) -> Array:
        """Read ascending rows of such a column."""
        return self._snapshot.rows(group, name, rows)

    @cached_property
    def params(self) -> dict[str, ValueColumn]:
        """Columns of /params by name, in the order of the sweep file where it is known."""
        found = {column.key: column for column in self._snapshot.value_columns("params")}
        order = [name for name in self._spec_names if name in found]
        return {name: found[name] for name in [*order, *(name for name in found if name not in order)]}

    @cached_property
    def results(self) -> dict[str, ValueColumn]:
        """Columns of /results by name."""
        return {column.key: column for column in self._snapshot.value_columns("results")}

    @cached_property
    def scalars(self) -> list[str]:
        """Names of the results that are one value per task."""
        return [name for name, column in self.results.items() if column.rank == 0]

    def param(self, name: str) -> Array:
        """Read a parameter of all tasks."""
        return self._value("params", self.params[self._known(name, self.params, "parameter")])

    def param_at(self, name: str, row: int) -> Any:
        """Read a parameter of one task."""
        return self._snapshot.value("params", self.params[name], row)

    def result(self, name: str) -> Array:
        """Read a result of all tasks; missing values are NaN (numbers, booleans) or empty (texts)."""
        return self._value("results", self.results[self._known(name, self.results, "result")])

    def dimensions(self, name: str) -> list[str]:
        """Return the names of an array result's own dimensions."""
        return self._snapshot.dimension_names("results", self.results[name])

    def value(self, name: str) -> Array:
        """Read a parameter, a result or a column of /tasks, whichever has that name."""
        if name in self.params:
            return self.param(name)
        if name in self.results:
            return self.result(name)
        if name != "state" and not self.has("tasks", name):
            known = [*self.params, *self.results, "duration_s", "attempts", "state"]
            self._known(name, known, "parameter or result")
        return self.fixed("tasks", name)

    def _known(self, name: str, known: Any, what: str) -> str:
        if name in known:
            return name
        import difflib

        near = difflib.get_close_matches(name, list(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known) or 'none'}"
        raise UserError(f"{self.path}: no {what} {name!r}{hint}")

    def _value(self, group: str, column: ValueColumn) -> Array:
        array = self._snapshot.value_array(group, column)
        match column.kind:
            case "int" | "bool":
                # An array result may be of unsigned or small integers without a missing value.
                missing = INT_MISSING if column.kind == "int" else BOOL_MISSING
                absent = array == missing if array.dtype.kind == "i" else None
                if absent is not None and absent.any():
                    filled = array.astype(np.float64)
                    filled[absent] = np.nan
                    return filled
                return array.astype(bool) if column.kind == "bool" else array
            case "float" | "str":
                return array
            case _:
                raise AssertionError(column.kind)

    # ------------------------------------------------------------- the sweep

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The normalised sweep as plain data; empty when there is none."""
        try:
            found = msgspec.json.decode(self.text("spec") or "{}")
        except msgspec.DecodeError:
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def space(self) -> dict[str, Any]:
        """The parameter space of the sweep as plain data; empty when there is none."""
        found = self.spec.get("space", {})
        return found if isinstance(found, dict) else {}

    @cached_property
    def _spec_names(self) -> list[str]:
        names = [axis["name"] for axis in self.space.get("params", [])]
        for rows in self.space.get("rows", []):
            names += rows["names"]
        sample = self.space.get("sample")
        if sample:
            names += [ranges["name"] for ranges in sample["ranges"]]
        return [*names, *self.space.get("derived", {}), "replicate"]


def open_contents(path: Path) -> Contents:
    """Open a results file and, where there is one, its journal.

    Raises
    ------
    OutputError
        There is no such file, or it is not ours.
    ClusterError
        It cannot be read.
    """
    for attempt in range(_RETRIES):
        with open_view(path, columns_from_spec) as view:
            phase = view.phase
            folded = not view.generation or journal_path(path).exists()
        try:
            if not folded:
                snapshot = open_snapshot(path)
                if snapshot is not None and (snapshot.present.state != "running" or phase == "died"):
                    return Contents(path, phase, snapshot)
                if snapshot is not None:
                    snapshot.close()
            else:
                with _folded_copy(path) as copy:
                    snapshot = open_snapshot(copy)
                if snapshot is not None:
                    return Contents(path, phase, snapshot)
        except (FileNotFoundError, OutputError):
            # A batch, the end or a new start of the run came between.
            if attempt == _RETRIES - 1:
                raise
        except OSError as error:
            raise ClusterError(
                f"{path}: its journal cannot be read through a private copy in {tempfile.gettempdir()}: "
                f"{error.strerror or error} (set TMPDIR to a folder with more space)"
            ) from error
        time.sleep(_RETRY_PAUSE_S)
    raise ClusterError(f"{path}: changes faster than it can be read; try again")


@contextmanager
def _folded_copy(path: Path) -> Iterator[Path]:
    """Make a private file that holds the journal too; gone after the block, while open handles live on."""
    with tempfile.TemporaryDirectory(prefix="keystone-analysis-") as folder:
        copy = Path(folder, path.name)
        if path.exists():
            shutil.copyfile(path, copy)
        # After the file: a journal only grows, so it holds whatever the file lacks.
        shutil.copyfile(journal_path(path), journal_path(copy))
        if shards_path(path).is_dir():
            shards_path(copy).symlink_to(shards_path(path).absolute())
        head = read_head(journal_path(copy))
        present = inspect(copy)
        lacks_rows = head is not None and (present is None or present.journal_epoch < head.epoch)
        source = columns_from_spec(head.spec, head.added_points) if head is not None and lacks_rows else None
        fold(copy, journal_path(copy), source, final=False)
        yield copy
