"""What failures have in common: the endings, the last words, the host, the parameters."""

from __future__ import annotations

from collections import Counter

import pytest

from keystone_mpi.analysis.failures import (
    FailedTask,
    common_traits,
    ending,
    group_failures,
    last_line,
    without_particulars,
)
from keystone_mpi.core.model import Outcome, Why


def failed(task: int, **fields: object) -> FailedTask:
    values = {"outcome": Outcome.FAILED, "why": Why.EXIT_CODE, "exit_code": 1, "host": "node1"} | fields
    return FailedTask(task=task, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("singular at row 12, pivot -1.5e-08", "singular at row …, pivot …"),
        ("segfault at 0x7ffe12ab in /scratch/me/run12/a.out", "segfault at … in …"),
        ("CUDA error 719: device3", "CUDA error …: device3"),
        ("k2 is not v3", "k2 is not v3"),
        ("no number", "no number"),
        ("a/b/c 1/2", "a/b/c …/…"),
    ],
)
def test_particulars_are_cut_out(line: str, left: str) -> None:
    assert without_particulars(line) == left


def test_the_last_line_is_the_last_that_says_something() -> None:
    assert last_line("one\ntwo\n\n   \n") == "two"
    assert last_line("") == ""
    assert last_line("a  b\tc\r\n") == "a b c"
    assert len(last_line("x" * 1000)) == 201


def test_groups() -> None:
    def row(number: int) -> str:
        return f"singular at row {number}"

    segmentation = "killed by signal 11"
    tasks = [
        *(
            failed(i, exit_code=3, stderr_tail=f"...\n{row(i)}\n", error=f"exit code 3: {row(i)}")
            for i in range(5)
        ),
        *(failed(10 + i, signal=11, exit_code=-1, why=Why.SIGNAL, error=segmentation) for i in range(3)),
        failed(20, outcome=Outcome.TIMEOUT, error="timed out after 1 s", stderr_tail="step 7"),
        failed(21, outcome=Outcome.TIMEOUT, error="timed out after 1 s", stderr_tail="step 9", host="node2"),
        failed(30, outcome=None, why=Why.DEPENDENCY),
        failed(31, exit_code=4, stderr_tail="singular at row 3"),
    ]  # fmt: skip
    groups = group_failures(tasks)
    assert [(group.count, group.ending) for group in groups] == [
        (5, "exit code 3"),
        (3, "signal SIGSEGV"),
        (2, "a timeout"),
        (1, "a task that it depends on did not succeed"),
        (1, "exit code 4"),
    ]
    assert groups[0].error == "exit code 3: singular at row …"
    assert groups[0].tasks == ["0", "1", "2", "3"]
    assert groups[1].error == "killed by signal 11"
    assert groups[2].hosts == {"node1": 1, "node2": 1}
    assert group_failures([]) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"exit_code": 2}, "exit code 2"),
        ({"signal": 9}, "signal SIGKILL"),
        ({"signal": 99}, "signal 99"),
        ({"outcome": Outcome.OUT_OF_MEMORY}, "too little memory"),
        ({"outcome": Outcome.WORKER_LOST}, "a lost worker"),
        ({"why": Why.CONDITION, "exit_code": 0}, "an unmet success condition"),
        ({"outcome": None, "why": Why.BY_USER}, "cancelled on request"),
    ],
)
def test_endings(fields: dict[str, object], said: str) -> None:
    assert ending(failed(0, **fields)) == said


def test_214_of_230_are_on_node7() -> None:
    tasks = [failed(i, host="node7") for i in range(214)] + [
        failed(300 + i, host=f"n{i % 4}") for i in range(16)
    ]
    everything = Counter({"node7": 1000, "n0": 1000, "n1": 1000, "n2": 1000, "n3": 1000})
    (trait,) = common_traits(tasks, everything)
    assert trait.sentence() == "214 of 230 failures are on node7"


def test_a_host_that_ran_everything_is_no_cause() -> None:
    tasks = [failed(i, host="only") for i in range(50)]
    assert common_traits(tasks, {"only": 100}) == []
    assert common_traits(tasks, {"only": 900, "other": 100}) == []
    assert common_traits(tasks[:1], {"only": 1, "other": 100}) == []


def test_a_parameter_value_may_be_the_cause() -> None:
    tasks = [failed(i) for i in range(10)]
    found = common_traits(
        tasks, {},
        params={"mesh": [128] * 9 + [64], "seed": list(range(10)), "same": [1] * 10},
        params_of_all={"mesh": {64: 50, 128: 50}, "seed": dict.fromkeys(range(100), 1), "same": {1: 100}},
    )  # fmt: skip
    assert [trait.sentence() for trait in found] == ["9 of 10 failures have mesh = 128"]
    whole = common_traits(tasks, {}, params={"k": [0.5] * 10}, params_of_all={"k": {0.5: 10, 1.0: 10}})
    assert whole[0].sentence() == "all 10 failures have k = 0.5"
