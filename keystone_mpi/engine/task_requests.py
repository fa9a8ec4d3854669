"""What a program asks for, checked: tools, scripts, parameters and options of its tasks.

Rule: pure but for looking scripts up; everything that is wrong is found here,
before anything of a call is done, and is one `RequestError`.

    submit_task(tool, script, params, ...) --check--> CheckedTask (recipe, launch parameters, options)
    {name: values, ...} --grid_points--> parameters of every point
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from keystone_mpi.core.errors import RequestError, SweepFileError
from keystone_mpi.core.model import TaskRequest
from keystone_mpi.records.programs import StoredRecipe
from keystone_mpi.sweeps.single import read_single
from keystone_mpi.sweeps.sweep import Sweep
from keystone_mpi.sweeps.values import near_match

TASK_KEYS = (
    "tool", "script", "params", "priority", "timeout", "retries", "cores", "memory", "depends_on",
)  # fmt: skip
_SPOKEN = {
    "sweep.tool": "tool", "sweep.script": "script", "sweep.command": "script", "sweep.case": "script",
    "task.timeout": "timeout", "task.retries": "retries", "task.cores": "cores",
    "task.memory": "memory", "task.priority": "priority",
}  # fmt: skip
"""Keys of a sweep file -> names of arguments."""

_encoder = msgspec.json.Encoder(order="sorted")


class CheckedTask(msgspec.Struct, frozen=True):
    """A task that can be run as far as can be seen from here."""

    tool: str
    script: str
    params: dict[str, Any]
    """Plain JSON-able data."""
    launch_params: dict[str, Any]
    """Scalars only: what templates and solvers get."""
    recipe: StoredRecipe
    request: TaskRequest
    """Cores, memory, timeout, priority and budget; its index means nothing."""
    options: dict[str, Any]
    """As given, for the record."""
    depends_on: tuple[str, ...]

    @property
    def identity(self) -> bytes:
        """What makes it the same task as one of an earlier start."""
        return task_identity(self.tool, self.script, self.params)


def task_identity(tool: str, script: str, params: Mapping[str, Any]) -> bytes:
    """Return the canonical form of a task; ``1.0`` is ``1``."""
    return _encoder.encode([tool, script, _canonical(params)])


def _canonical(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < 2.0**53:
            return int(value)
        case dict():
            return {name: _canonical(item) for name, item in value.items()}
        case list():
            return [_canonical(item) for item in value]
        case _:
            return value


class TaskChecker:
    """Checks the tasks of one pipeline.

    Parameters
    ----------
    tables : mapping
        What holds for all its tasks, as in a sweep file.
    start_dir : Path
        Folder that relative paths start from.
    """

    def __init__(self, tables: Mapping[str, Any], start_dir: Path) -> None:
        self._tables = dict(tables)
        self._start_dir = start_dir
        self._known: dict[bytes, tuple[Sweep, StoredRecipe]] = {}
        """What was asked before, but for the parameters' values."""

    def check(
        self,
        tool: Any,
        script: Any,
        params: Any,
        *,
        where: str = "",
        depends_on: Any = (),
        **options: Any,
    ) -> CheckedTask:
        """Check one task.

        Parameters
        ----------
        where : str
            Said before the message, such as ``task 3``.
        **options
            ``priority, timeout, retries, cores, memory``; None: the default.

        Raises
        ------
        RequestError
            Something of it cannot be.
        """
        try:
            return self._check(tool, script, params, depends_on, options)
        except SweepFileError as error:
            name = _spoken(error.where)
            hint = f" ({error.hint})" if error.hint else ""
            raise RequestError(f"{where}{': ' if where else ''}{name}: {error.problem}{hint}") from None
        except RequestError as error:
            raise RequestError(f"{where}: {error}" if where else str(error)) from None

    def _check(
        self, tool: Any, script: Any, params: Any, depends_on: Any, options: dict[str, Any]
    ) -> CheckedTask:
        if not isinstance(tool, str):
            raise RequestError(f"tool must be a text, not {tool!r}")
        if isinstance(script, os.PathLike):
            script = os.fspath(script)
        if isinstance(script, Sequence) and not isinstance(script, str | bytes) and tool == "command":
            script = [str(word) for word in script]
        elif not isinstance(script, str) or not script:
            raise RequestError(f"script must be a path, not {script!r}")
        plain = plain_params(params)
        launch = launch_params(plain)
        given = {name: _plain(value, name) for name, value in options.items() if value is not None}
        sweep, recipe = self._sweep(tool, script, launch, given)
        request = sweep.request(0) if sweep.uniform else self._read(tool, script, launch, given).request(0)
        return CheckedTask(
            tool=tool,
            script=recipe.script,
            params=plain,
            launch_params=launch,
            recipe=recipe,
            request=request,
            options=given,
            depends_on=_ids(depends_on),
        )

    def _sweep(
        self, tool: str, script: str | list[str], launch: dict[str, Any], given: dict[str, Any]
    ) -> tuple[Sweep, StoredRecipe]:
        kinds = [(name, type(value).__name__) for name, value in launch.items()]
        key = msgspec.json.encode([tool, script, kinds, given])
        known = self._known.get(key)
        if known is None:
            sweep = self._read(tool, script, launch, given)
            spoken = script if isinstance(script, str) else msgspec.json.encode(script).decode()
            recipe = StoredRecipe(
                tool=tool,
                script=sweep.recipe.script or spoken,
                names=tuple(launch),
                recipe=msgspec.Raw(msgspec.json.encode(sweep.recipe)),
                fingerprint=sweep.fingerprint,
            )
            known = self._known[key] = (sweep, recipe)
        return known

    def _read(
        self, tool: str, script: str | list[str], launch: dict[str, Any], given: dict[str, Any]
    ) -> Sweep:
        tables = {**self._tables, "task": {**self._tables.get("task", {}), **given}}
        return read_single(tool, script, launch, tables, self._start_dir)


def _spoken(where: str) -> str:
    """Turn the key of a sweep file into the name of an argument."""
    for key, name in _SPOKEN.items():
        if where == key or where.startswith((f"{key}[", f"{key}.", f"{key}_")):
            return name
    if where.startswith("params."):
        return f"params[{where.removeprefix('params.')!r}]"
    return where


def plain_params(params: Any) -> dict[str, Any]:
    """Turn parameters into plain JSON-able data; numpy scalars and arrays become numbers and lists.

    Raises
    ------
    RequestError
        A name is no text, or a value cannot be written as JSON.
    """
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise RequestError(f"params must be a dict of names and values, not {type(params).__name__}")
    plain: dict[str, Any] = {}
    for name, value in params.items():
        if not isinstance(name, str):
            raise RequestError(f"params: the name {name!r} is no text")
        plain[name] = _plain(value, f"params[{name!r}]")
    return plain


def _plain(value: Any, where: str) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int():
            if not -(2**63) < int(value) < 2**63:
                raise RequestError(f"{where}: {value} does not fit 64 bits")
            return int(value)
        case float():
            if not math.isfinite(value):
                raise RequestError(f"{where}: {value} cannot be written as JSON")
            return float(value)
        case Mapping():
            if any(not isinstance(name, str) for name in value):
                raise RequestError(f"{where}: names in a JSON object are texts")
            return {name: _plain(item, f"{where}[{name!r}]") for name, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{where}[{k}]") for k, item in enumerate(value)]
        case os.PathLike():
            return os.fspath(value)
    convert = getattr(value, "tolist", None)
    if convert is not None and type(value).__module__.partition(".")[0] == "numpy":
        return _plain(convert(), where)
    raise RequestError(
        f"{where}: {value!r} ({type(value).__name__}) cannot be written as JSON; allowed are text, numbers, "
        "true/false, None, and lists and dicts of them"
    )


def launch_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as templates and solvers get them: scalars."""
    return {name: _scalar(value) for name, value in params.items()}


def task_seed(params: Mapping[str, Any], row: int) -> int:
    """Return a task's seed, 1 .. 2**31 - 1: of its parameters and its place in the file."""
    data = _encoder.encode([params, row])
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") % (2**31 - 1) + 1


def _scalar(value: Any) -> Any:
    """Return what a command line gets: lists, objects and None as JSON text."""
    if value is None or isinstance(value, list | dict):
        return msgspec.json.encode(value).decode()
    return value


def _ids(depends_on: Any) -> tuple[str, ...]:
    if isinstance(depends_on, str):
        return (depends_on,)
    if not isinstance(depends_on, Iterable):
        raise RequestError(f"depends_on must be task ids, not {depends_on!r}")
    ids = tuple(depends_on)
    wrong = [item for item in ids if not isinstance(item, str)]
    if wrong:
        raise RequestError(f"depends_on: {wrong[0]!r} is no task id (a text that submit_task returned)")
    return ids


def check_task_dict(task: Any, position: int) -> dict[str, Any]:
    """Check the keys of a task dict and return it.

    Raises
    ------
    RequestError
        It is no dict, lacks 'tool' or 'script', or has a key that means nothing.
    """
    where = f"task {position}"
    if not isinstance(task, Mapping):
        raise RequestError(f"{where}: must be a dict with 'tool', 'script' and 'params', not {task!r}")
    for key in ("tool", "script"):
        if key not in task:
            raise RequestError(
                f"{where}: the key {key!r} is missing; found {', '.join(map(repr, task)) or 'none'}"
            )
    for key in task:
        if key not in TASK_KEYS:
            near = near_match(str(key), TASK_KEYS)
            hint = f" ({near})" if near else ""
            raise RequestError(f"{where}: no such key {key!r}{hint}; allowed are {', '.join(TASK_KEYS)}")
    return dict(task)


def grid_points(param_grid: Any) -> list[dict[str, Any]]:
    """Return the Cartesian product of a grid, the first name varying slowest.

    Raises
    ------
    RequestError
        The grid is no dict, or has a name without values.
    """
    if not isinstance(param_grid, Mapping):
        raise RequestError(
            f"the grid must be a dict of names and their values, not {type(param_grid).__name__}"
        )
    axes: list[list[Any]] = []
    for name, values in param_grid.items():
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise RequestError(f"the values of {name!r} must be a list (or another iterable), not {values!r}")
        axis = list(values)
        if not axis:
            raise RequestError(f"the values of {name!r} are empty; the grid would have no point")
        axes.append(axis)
    return [dict(zip(param_grid, point, strict=True)) for point in itertools.product(*axes)]
