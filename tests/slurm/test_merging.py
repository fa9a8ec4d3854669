"""Elements of an array that need no cluster: retried ones, and what their tasks are called."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import h5py
from runs_support import attempts, command_line_of, shell, states, viewed, write_sweep


def test_what_an_element_was_forgiven_stays_forgiven(keystone, tmp_path: Path) -> None:
    """--retry-failed grants the whole budget again; a merge must not take it back."""
    flag = tmp_path / "works"
    sweep = write_sweep(
        tmp_path,
        shell(f"test -e {flag} || test {{x}} -lt 2 || exit 3; test {{x}} -ne 3 || exit 4"),
        "x = [0, 1, 2, 3]",
        "[task]\nretries = 1\n",
    )
    run = ["run", sweep, "--slots", "2"]
    for shard in ("1/2", "2/2"):
        keystone([*run, "--shard", shard]).check(0, 1)
    keystone(["merge", sweep]).check()
    merged = tmp_path / "demo.h5"
    assert states(merged) == ["SUCCESS", "SUCCESS", "FAILURE", "FAILURE"]
    for shard in ("1/2", "2/2"):
        keystone([*run, "--shard", shard, "--retry-failed"]).check(0, 1)
    said = keystone(["merge", sweep]).check().stdout
    assert "4 attempts added" in said, said
    assert states(merged) == ["SUCCESS", "SUCCESS", "FAILURE", "FAILURE"]
    assert sorted(attempts(merged))[2:] == [(2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3), (3, 4)]
    with h5py.File(merged) as file:
        assert file["tasks/forgiven"][:].tolist() == [0, 0, 2, 2]
    flag.touch()
    for shard in ("1/2", "2/2"):
        keystone([*run, "--shard", shard, "--retry-failed"]).check(0, 1)
    keystone(["merge", sweep]).check()
    with viewed(merged) as view:
        used = view.used_budget.failed.tolist()
        assert [task.why.name for task in map(view.task, range(4))][:3] == ["NONE"] * 3
    assert states(merged) == ["SUCCESS", "SUCCESS", "SUCCESS", "FAILURE"]
    assert used[3] == 2, "only the attempts since it was last put back count"
    before = merged.read_bytes()
    assert "nothing to do" in keystone(["merge", sweep]).check().stdout
    assert merged.read_bytes() == before


def test_a_merge_of_nothing_but_a_retry_that_was_cut_off(keystone, tmp_path: Path, wait_until) -> None:
    """The task failed, was put back and then interrupted: it is pending, with its whole budget."""
    flag = tmp_path / "slow"
    sweep = write_sweep(tmp_path, shell(f"test -e {flag} && sleep 60; exit 3"), "x = [0]", "")
    run = ["run", sweep, "--slots", "1", "--shard", "1/1"]
    keystone(run).check(1)
    flag.touch()
    keystone(["merge", sweep]).check()
    job = keystone.start([*run, "--retry-failed"])
    wait_until(lambda: "sleep 60" in " ".join(map(command_line_of, job.processes())))
    job.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in job.output_so_far())
    time.sleep(0.5)
    job.send_signal(signal.SIGTERM)
    job.wait(30).check(75)
    assert "1 task" in keystone(["merge", sweep]).check(75).stdout
    with viewed(tmp_path / "demo.h5") as view:
        assert view.states.tolist() == [0]
        assert view.used_budget.failed.tolist() == [0]


def test_a_shards_task_is_called_as_in_the_whole_sweep(keystone, tmp_path: Path) -> None:
    """`show` says so, and `rerun` runs it under the number that its solver knows."""
    sweep = write_sweep(
        tmp_path, ["/bin/sh", "-c", "echo {index} $KEYSTONE_TASK_ID $KEYSTONE_SEED"], "x = [0, 1, 2, 3, 4]"
    )
    keystone(["run", sweep, "--slots", "2", "--shard", "2/2"]).check()
    shard = tmp_path / "demo.shard-2-of-2.h5"
    with viewed(shard) as view:
        whole = [int(view.task(row).params["x"]) for row in range(view.task_count)]
        tails = [view.task(row).attempts[-1].stdout_tail for row in range(view.task_count)]
    assert whole != list(range(len(whole)))
    for row, point in enumerate(whole):
        assert tails[row].split()[:2] == [str(point)] * 2
        assert keystone(["rerun", shard, str(row)]).check().stdout == tails[row]
        shown = keystone(["show", shard, str(row)]).check().stdout
        assert f"in the whole sweep, and to its solver, it is task {point}" in shown
        facts = json.loads(keystone(["show", shard, str(row), "--json"]).check().stdout)
        assert f"echo {point} " in facts["command"]
    keystone(["run", sweep, "--slots", "2", "--shard", "1/2"]).check()
    keystone(["merge", sweep]).check()
    assert "whole sweep" not in keystone(["show", "demo.h5", "1"]).check().stdout
    # Rows of the whole file in another order than the points of the sweep: the deal knows.
    sweep.write_text(sweep.read_text().replace("[0, 1, 2, 3, 4]", "[9, 0, 1, 2, 3, 4]"))
    keystone(["merge", sweep, "--clean", "--accept-changed"]).check(0, 75)
    keystone(["run", sweep, "--slots", "2", "--shard", "1/1"]).check()
    shard = tmp_path / "demo.shard-1-of-1.h5"
    assert keystone(["rerun", shard, "0"]).check().stdout.split()[:2] == ["5", "5"]
    assert "it is task 5" in keystone(["show", shard, "0"]).check().stdout
