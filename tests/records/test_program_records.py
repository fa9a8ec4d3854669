"""Results of Python programs: tasks and recipes that come one by one, in journal and file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from keystone_mpi.core.model import AttemptReport, Outcome, TaskState, Why
from keystone_mpi.records import entries
from keystone_mpi.records.journal import JournalWriter, journal_path
from keystone_mpi.records.programs import (
    StoredRecipe,
    is_program,
    program_spec,
    read_program,
    with_recipes,
)
from keystone_mpi.records.store import finish, fold
from keystone_mpi.records.view import open_view

RAW = msgspec.Raw(b'{"tool":"python"}')
RECIPE = StoredRecipe("python", "/w/solve.py", ("x",), RAW, {"script": "abc"})


def opened(
    epoch: int = 1, count: int = 0, generation: str = "", recipes: tuple[StoredRecipe, ...] = ()
) -> Any:
    return entries.RunOpened(
        entries.JOURNAL_FORMAT, "r1", epoch, 100.0, 100.0, count, generation, count, [],
        program_spec("demo", recipes), "print()", "demo", {}, {},
    )  # fmt: skip


def added(*params: dict[str, Any]) -> entries.TasksAdded:
    return entries.TasksAdded([entries.AddedTask(0, p, {"retries": 1}) for p in params], 101.0)


def done(row: int, **scalars: Any) -> entries.AttemptEnded:
    report = AttemptReport(row, 1, Outcome.SUCCESS, 102.0, 103.0, 1.0, 0, scalars=scalars)
    return entries.AttemptEnded(1, report, TaskState.SUCCESS, 103.0)


STORY = [
    opened(),
    entries.RecipeAdded(msgspec.json.encode(RECIPE)),
    added({"x": 1}, {"x": 2.5, "name": "b"}),
    done(0, y=1.0),
    added({"x": 3, "deep": {"a": [1, None]}}),
    entries.TaskEnded(2, TaskState.CANCELLED, Why.BY_USER, "cancelled by the user", 104.0),
]


def write(path: Path, story: list[Any], *, create: bool = True) -> None:
    writer = JournalWriter(journal_path(path), create=create)
    for entry in story:
        writer.append(entry)
    writer.flush()
    writer.close()


def picture(path: Path) -> dict[str, Any]:
    with open_view(path) as view:
        return {
            "states": view.states.tolist(),
            "params": [view.task(k).params for k in range(view.task_count)],
            "requests": view.requests(),
            "results": [view.task(k).results for k in range(view.task_count)],
            "recipes": [(r.tool, r.script, bytes(r.recipe)) for r in read_program(view.spec).recipes],
            "x": view.param_columns()["x"].tolist() if view.task_count else None,
        }


@pytest.mark.parametrize("folds_after", range(1, len(STORY) + 1))
def test_a_view_is_the_same_whenever_the_journal_is_folded(tmp_path: Path, folds_after: int) -> None:
    path = tmp_path / "out.h5"
    write(path, STORY)
    expected = picture(path)
    assert expected["states"] == [2, 0, 5]
    assert expected["params"] == [{"x": 1}, {"x": 2.5, "name": "b"}, {"x": 3, "deep": {"a": [1, None]}}]
    assert expected["results"] == [{"y": 1.0}, {}, {}]
    assert expected["recipes"] == [("python", "/w/solve.py", b'{"tool":"python"}')]
    assert expected["x"] == [1.0, 2.5, 3.0]
    cut = tmp_path / "cut.h5"
    write(cut, STORY[:folds_after])
    fold(cut, journal_path(cut), None, final=False)
    write(cut, STORY[folds_after:], create=False)
    assert picture(cut) == expected
    fold(cut, journal_path(cut), None, final=False)
    assert picture(cut) == expected


def test_a_later_start_goes_on_behind_the_rows_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    write(path, [*STORY, entries.RunClosed("interrupted", "", 105.0)])
    fold(path, journal_path(path), None, final=True)
    finish(path)
    with open_view(path) as view:
        generation = view.generation
        assert is_program(view.spec)
    again = [
        opened(2, 3, generation, (RECIPE,)),
        entries.TaskEnded(2, TaskState.PENDING, Why.NONE, "", 106.0),
        added({"x": 4}),
        done(2, y=9.0),
        done(3, y=16.0),
        entries.RunClosed("complete", "", 107.0),
    ]
    write(path, again)
    assert picture(path)["states"] == [2, 0, 2, 2]
    fold(path, journal_path(path), None, final=True)
    finish(path)
    assert picture(path)["states"] == [2, 0, 2, 2]
    with h5py.File(path) as file:
        assert file["task_id"].asstr()[:].tolist() == ["0", "1", "2", "3"]
        assert file["params/x"][:].tolist() == [1.0, 2.5, 3.0, 4.0]
        assert file["params/deep"].asstr()[2] == '{"a":[1,null]}'
        np.testing.assert_array_equal(file["results/y"][:], [1.0, np.nan, 9.0, 16.0])
        assert file["tasks/submitted"][:].tolist() == [101.0] * 4


def test_recipes_are_added_to_a_spec() -> None:
    spec = program_spec("demo", ())
    assert with_recipes(spec, []) is spec
    longer = with_recipes(spec, [msgspec.json.encode(RECIPE)] * 2)
    assert [recipe.names for recipe in read_program(longer).recipes] == [("x",), ("x",)]
    assert not is_program(b'{"format":1}')
