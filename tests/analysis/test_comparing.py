"""diff: tasks matched by their parameters, results by a tolerance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import SMALL, task_end, write_run

import keystone_mpi
from keystone_mpi.analysis.comparing import Comparison, compare
from keystone_mpi.cli.main import main
from keystone_mpi.core.errors import UserError
from keystone_mpi.core.model import ArrayValue, TaskState

REORDERED = SMALL.replace("x = [0, 1]", "x = [1, 0]").replace("y = [0.5, 1.5]", "y = [1.5, 0.5]")
GROWN = SMALL.replace("x = [0, 1]", "x = [0, 2]")


def array(*values: float) -> dict[str, ArrayValue]:
    data = np.array(values, "<f8")
    return {"field": ArrayValue("<f8", data.shape, data.tobytes())}


def write(folder: Path, name: str, sweep: str, values: list[dict[str, Any]], **states: TaskState) -> Path:
    entries = [
        task_end(i, scalars=row, arrays=array(float(i), 1.0), state=states.get(f"t{i}", TaskState.SUCCESS))
        for i, row in enumerate(values)
    ]
    return write_run(folder, sweep, entries, name=name)


def compared(a: Path, b: Path, **options: Any) -> Comparison:
    with keystone_mpi.open_run(a) as run_a, keystone_mpi.open_run(b) as run_b:
        return compare(run_a, run_b, **options)


BASE = [
    {"v": 1.0, "n": 10, "s": "a"},
    {"v": 2.0, "n": 11, "s": "b"},
    {"v": 3.0, "n": 12},
    {"v": 4.0, "n": 13},
]


def test_the_same_is_the_same_in_any_order(tmp_path: Path) -> None:
    a = write(tmp_path, "a.h5", SMALL, BASE)
    entries = [task_end(i, scalars=BASE[3 - i], arrays=array(3.0 - i, 1.0)) for i in range(4)]
    b = write_run(tmp_path, REORDERED, entries, name="b.h5")
    found = compared(a, b)
    assert found.matched == 4
    assert not found.differs
    assert {result.name for result in found.results} == {"v", "n", "s", "field"}


def test_what_changed_is_named_with_the_worst_first(tmp_path: Path) -> None:
    a = write(tmp_path, "a.h5", SMALL, BASE)
    changed = [{**BASE[0], "v": 1.001}, {**BASE[1], "v": 3.0}, {**BASE[2], "s": "new"}, BASE[3]]
    b = write(tmp_path, "b.h5", SMALL, changed, t3=TaskState.FAILURE)
    found = compared(a, b)
    by_name = {result.name: result for result in found.results}
    assert by_name["v"].changed == 2
    worst = by_name["v"].worst[0]
    assert (worst.task_a, worst.a, worst.b, worst.difference, worst.relative) == (1, 2.0, 3.0, 1.0, 0.5)
    assert worst.params == {"x": 0, "y": 1.5}
    assert by_name["s"].changed == 1
    assert by_name["n"].changed == 0
    assert [(change.a, change.b) for change in found.states] == [("SUCCESS", "FAILURE")]
    assert {result.name: result.changed for result in compared(a, b, rtol=0.01).results}["v"] == 1
    assert {result.name: result.changed for result in compared(a, b, atol=2.0).results}["v"] == 0


def test_arrays_missing_values_and_other_tasks(tmp_path: Path) -> None:
    a = write(tmp_path, "a.h5", SMALL, [{"v": 1.0, "old": 1}, {}, {"v": 3.0}, {"v": float("inf")}])
    entries = [
        task_end(0, scalars={"v": 1.0, "new": 1}, arrays=array(0.0, 1.5)),
        task_end(1, scalars={"v": 2.0}, arrays=array(1.0, 1.0)),
        task_end(2, scalars={"v": 9.0}, arrays=array(2.0, 1.0)),
    ]
    found = compared(a, write_run(tmp_path, GROWN, entries, name="b.h5", closed="interrupted"))
    assert (found.matched, found.only_a, found.only_b) == (2, [2, 3], [2, 3])
    by_name = {result.name: result for result in found.results}
    assert by_name["v"].changed == 1  # it was missing
    assert by_name["v"].worst[0].a is None
    assert by_name["field"].changed == 1
    assert by_name["field"].worst[0].difference == 0.5
    assert (found.results_only_a, found.results_only_b) == (["old"], ["new"])


def test_nothing_in_common_is_told(tmp_path: Path) -> None:
    other = (
        SMALL.replace("x = [0, 1]", "p = [0, 1]")
        .replace("y = ", "q = ")
        .replace("{x}", "{p}")
        .replace("{y}", "{q}")
    )
    a, b = write(tmp_path, "a.h5", SMALL, BASE), write(tmp_path, "b.h5", other, BASE)
    with pytest.raises(UserError, match="no parameter in common"):
        compared(a, b)
    with pytest.raises(UserError, match="did you mean 'field'"):
        compared(a, a, names=["fied"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path, "a.h5", SMALL, BASE)
    b = write(tmp_path, "b.h5", SMALL, [{**row, "v": row["v"] * (1 + 1e-6)} for row in BASE])
    assert main(["diff", str(a), str(a)]) == 0
    assert "nothing changed" in capsys.readouterr().out
    assert main(["diff", str(a), str(b)]) == 1
    said = capsys.readouterr().out
    assert "v: 4 of 4 changed" in said
    assert "1.00e-06 relative" in said
    assert "unchanged: field, n, s" in said
    assert main(["diff", str(a), str(b), "--rtol", "1e-5"]) == 0
    assert main(["diff", str(a), str(b), "--ignore", "v"]) == 0
    assert main(["diff", str(a), str(b), "--result", "n"]) == 0
    capsys.readouterr()
    assert main(["diff", str(a), str(b), "--json"]) == 1
    assert '"changed": true' in capsys.readouterr().out
    assert main(["diff", str(a), str(b), "--ignore", "w"]) == 2
