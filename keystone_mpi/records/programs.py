"""Results files of Python programs: tasks that came one by one, each with its own recipe.

Rule: such a run has no parameter space. What runs its tasks are the recipes in
its spec, which grows; what a task is, its own request says, word for word.

    RunOpened.spec = program_spec(...)    RecipeAdded, TasksAdded --> spec, /params, /tasks/request
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from keystone_mpi.deferred_numpy import np
from keystone_mpi.records.entries import AddedTask

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROGRAM_FORMAT = 1
_MARK = b'{"program":'


class StoredRecipe(msgspec.Struct, frozen=True):
    """How some tasks of a program are run."""

    tool: str
    script: str
    """Absolute path."""
    names: tuple[str, ...]
    """Parameters that its command uses."""
    recipe: msgspec.Raw
    """A `tools.recipe.Recipe`."""
    fingerprint: dict[str, str]
    """Part -> digest of what runs the tasks."""


class ProgramSpec(msgspec.Struct, frozen=True):
    """The spec of a program's results file."""

    program: int
    """Format version."""
    name: str
    recipes: list[StoredRecipe] = []


def is_program(spec: bytes) -> bool:
    """Tell a program's spec from a sweep's."""
    return spec.startswith(_MARK)


def read_program(spec: bytes) -> ProgramSpec:
    """Read a program's spec."""
    return msgspec.json.decode(spec, type=ProgramSpec)


def program_spec(name: str, recipes: Sequence[StoredRecipe]) -> bytes:
    """Write a program's spec."""
    return msgspec.json.encode(ProgramSpec(PROGRAM_FORMAT, name, list(recipes)))


def with_recipes(spec: bytes, added: Sequence[bytes]) -> bytes:
    """Return a program's spec with further recipes (`StoredRecipe` as JSON)."""
    if not added:
        return spec
    known = read_program(spec)
    more = [msgspec.json.decode(recipe, type=StoredRecipe) for recipe in added]
    return program_spec(known.name, [*known.recipes, *more])


def read_request(text: str) -> AddedTask | None:
    """Read a row of /tasks/request; None for a row without one."""
    return msgspec.json.decode(text, type=AddedTask) if text else None


def write_request(task: AddedTask) -> str:
    """Write a row of /tasks/request."""
    return msgspec.json.encode(task).decode()


def with_added_params(
    columns: dict[str, NDArray[Any]], base_count: int, added: Sequence[AddedTask]
) -> dict[str, NDArray[Any]]:
    """Lengthen parameter columns by tasks that the file does not hold yet."""
    if not added:
        return columns
    names = dict.fromkeys([*columns, *(name for task in added for name in task.params)])
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        base = columns[name].tolist() if name in columns else [None] * base_count
        found[name] = _array([*base, *(task.params.get(name) for task in added)])
    return found


def _array(values: list[Any]) -> NDArray[Any]:
    kinds = {type(value) for value in values}
    if kinds <= {bool}:
        return np.array(values, bool)
    if kinds <= {bool, int}:
        return np.array(values, np.int64)
    if kinds <= {bool, int, float, type(None)}:
        return np.array([math.nan if value is None else float(value) for value in values])
    texts = np.empty(len(values), dtype=object)
    texts[:] = [
        "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for value in values
    ]
    return texts
