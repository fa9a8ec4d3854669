"""TaskPipeline in this process, with local slots."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from keystone_mpi import TaskPipeline, TaskStatus, open_run
from keystone_mpi.core.errors import ClosedError, OutputError, RequestError, UnknownTaskError

SOLVE = ("python", "solve.py")


def test_a_task_runs_and_its_result_says_all(pipeline: TaskPipeline) -> None:
    task_id = pipeline.submit_task(*SOLVE, {"x": 3})
    result = pipeline.wait_for_task(task_id, timeout=30)
    assert result["status"] == "success"
    assert result["outputs"] == {"square": 9.0}
    assert result["params"] == {"x": 3}
    assert result["duration_seconds"] > 0
    assert result["artifacts"] == []
    status = pipeline.get_task_status(task_id)
    assert (status["task_id"], status["state"]) == (task_id, TaskStatus.SUCCESS)
    assert status["state"] == "SUCCESS"
    assert status["ready"]
    assert status["successful"]
    assert not status["failed"]
    assert status["error"] is None
    assert status["result"] == result


def test_arrays_come_back_small_and_large(pipeline: TaskPipeline) -> None:
    ids = [pipeline.submit_task(*SOLVE, {"x": 2, "array": size}) for size in (5, 300_000)]
    for task_id, size in zip(ids, (5, 300_000), strict=True):
        outputs = pipeline.wait_for_task(task_id, timeout=30)["outputs"]
        assert outputs["field"].shape == (size,)
        assert (outputs["field"] == 2.0).all()


def test_failures_and_timeouts_are_told_apart(pipeline: TaskPipeline) -> None:
    bad = pipeline.submit_task(*SOLVE, {"fail": True}, retries=1)
    slow = pipeline.submit_task(*SOLVE, {"sleep": 30}, timeout=0.5)
    status = pipeline.wait_for_workflow([bad, slow], timeout=30)
    assert (status["total"], status["failed"], status["completed"]) == (2, 2, 0)
    assert status["all_complete"]
    failed, timed_out = status["tasks"][bad], status["tasks"][slow]
    assert failed["state"] == TaskStatus.FAILURE
    assert failed["attempts"] == 2
    assert "out of luck" in failed["error"]
    assert failed["result"]["exit_code"] == 1
    assert timed_out["state"] == TaskStatus.TIMEOUT
    assert timed_out["result"]["status"] == "timeout"


def test_sequential_tasks_run_one_after_the_other_whatever_happens(pipeline: TaskPipeline) -> None:
    params = [{"sleep": 0.2}, {"fail": True}, {"sleep": 0.2}]
    ids = pipeline.submit_workflow([{"tool": "python", "script": "solve.py", "params": p} for p in params])
    assert list(pipeline.as_completed(ids, timeout=30)) == ids
    tasks = pipeline.get_workflow_status(ids)["tasks"]
    assert [tasks[i]["state"] for i in ids] == ["SUCCESS", "FAILURE", "SUCCESS"]
    for before, after in itertools.pairwise(ids):
        assert tasks[after]["started"] >= tasks[before]["finished"]


def test_dependencies(pipeline: TaskPipeline) -> None:
    mesh = pipeline.submit_task(*SOLVE, {"sleep": 0.2})
    broken = pipeline.submit_task(*SOLVE, {"fail": True})
    solve = pipeline.submit_task(*SOLVE, {"x": 1}, depends_on=[mesh])
    never = pipeline.submit_task(*SOLVE, {"x": 2}, depends_on=[mesh, broken])
    status = pipeline.wait_for_workflow([solve, never], timeout=30)
    assert status["tasks"][solve]["state"] == "SUCCESS"
    assert status["tasks"][never]["state"] == "CANCELLED"
    assert f"task {broken}" in status["tasks"][never]["error"]
    late = pipeline.submit_task(*SOLVE, {"x": 3}, depends_on=mesh)
    assert pipeline.wait_for_task(late, timeout=30)["status"] == "success"


def test_batches_and_grids(pipeline: TaskPipeline) -> None:
    told: list[dict] = []
    tasks = [{"tool": "python", "script": "solve.py", "params": {"x": x}} for x in range(5)]
    ids = pipeline.submit_batch_workflow(tasks, batch_size=2, callback=told.append)
    assert [(b["batch_num"], b["batch_size"], b["submitted"], b["total"]) for b in told] == [
        (1, 2, 2, 5), (2, 2, 4, 5), (3, 1, 5, 5)
    ]  # fmt: skip
    grid = pipeline.parameter_sweep(*SOLVE, {"x": np.linspace(0, 1, 2), "sleep": range(1)})
    status = pipeline.wait_for_workflow([*ids, *grid], timeout=30)
    assert [status["tasks"][i]["params"] for i in grid] == [{"x": 0.0, "sleep": 0}, {"x": 1.0, "sleep": 0}]
    assert status["completed"] == 7


def test_wait_for_any_and_cancel(pipeline: TaskPipeline) -> None:
    ids = [pipeline.submit_task(*SOLVE, {"sleep": seconds}) for seconds in (30, 0.1, 30, 30)]
    first = pipeline.wait_for_any(ids, timeout=30)
    assert first["task_id"] == ids[1]
    assert first["status"]["state"] == "SUCCESS"
    assert [pipeline.cancel_task(task_id) for task_id in ids] == [True, False, True, True]
    began = time.monotonic()
    status = pipeline.wait_for_workflow(ids, timeout=30)
    assert time.monotonic() - began < 10
    assert [status["tasks"][i]["state"] for i in ids] == ["CANCELLED", "SUCCESS", "CANCELLED", "CANCELLED"]
    assert status["failed"] == 3
    assert pipeline.get_task_status(ids[3])["attempts"] == 0, "it waited, and never started"


def test_a_wait_ends_soon_after_the_task(pipeline: TaskPipeline) -> None:
    delays = []
    for _ in range(5):
        task_id = pipeline.submit_task(*SOLVE, {"sleep": 0.2})
        pipeline.wait_for_any([task_id], timeout=30)
        delays.append(time.time() - pipeline.get_task_status(task_id)["finished"])
    assert min(delays) < 0.05, delays


def test_timeouts_change_nothing(pipeline: TaskPipeline) -> None:
    task_id = pipeline.submit_task(*SOLVE, {"sleep": 1, "x": 2})
    for wait in (pipeline.wait_for_task, lambda i, timeout: pipeline.wait_for_any([i], timeout),
                 lambda i, timeout: pipeline.wait_for_workflow([i], timeout)):  # fmt: skip
        with pytest.raises(TimeoutError, match=r"1 of 1 task had not ended after 0\.05 s"):
            wait(task_id, timeout=0.05)
    with pytest.raises(TimeoutError):
        list(pipeline.as_completed([task_id], timeout=0.05))
    assert pipeline.wait_for_task(task_id, timeout=30)["outputs"] == {"square": 4.0}


def test_callbacks_run_on_one_named_thread_and_their_errors_surface(pipeline: TaskPipeline) -> None:
    threads: set[str] = set()
    counts: list[int] = []

    def watch(status: dict) -> None:
        threads.add(threading.current_thread().name)
        counts.append(status["completed"])

    ids = pipeline.parameter_sweep(*SOLVE, {"x": range(3)})
    pipeline.wait_for_workflow(ids, timeout=30, callback=watch, poll_interval=0.1)
    assert threads == {"keystone-callbacks"}
    assert counts[-1] == 3
    states: list[str] = []
    slow = pipeline.submit_task(*SOLVE, {"sleep": 0.5})
    final = pipeline.monitor_task(slow, callback=lambda s: states.append(s["state"]), poll_interval=0.1)
    assert states[-1] == final["state"] == "SUCCESS"
    assert "RUNNING" in states

    def break_down(_status: dict) -> None:
        raise ZeroDivisionError("in a callback")

    again = pipeline.parameter_sweep(*SOLVE, {"x": [7]}, callback=break_down)
    with pytest.raises(ZeroDivisionError, match="in a callback"):
        pipeline.wait_for_workflow(again, timeout=30)
    assert pipeline.wait_for_workflow(again, timeout=30)["completed"] == 1


def test_progress_of_a_solver_is_seen(pipeline: TaskPipeline, folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import time\nfrom keystone_solver import report_progress\nreport_progress(0.25)\ntime.sleep(3)\n"
    )
    task_id = pipeline.submit_task("python", "slow.py")
    seen: list[float | None] = []

    def look(status: dict) -> None:
        seen.append(status["progress"])
        if status["progress"] == 0.25:
            pipeline.cancel_task(task_id)

    pipeline.monitor_task(task_id, callback=look, poll_interval=0.1)
    assert 0.25 in seen


def test_statistics_are_honest(pipeline: TaskPipeline) -> None:
    ids = [pipeline.submit_task("command", ["sleep", "{s}"], {"s": 0.4}) for _ in range(4)]
    pipeline.wait_for_workflow(ids, timeout=30)
    stats = pipeline.get_parallel_execution_stats(ids)
    assert stats["total_tasks"] == stats["completed"] == 4
    assert stats["failed"] == stats["running"] == stats["pending"] == 0
    assert stats["total_duration"] == pytest.approx(1.6, abs=0.3)
    assert stats["avg_duration"] == pytest.approx(0.4, abs=0.1)
    assert stats["max_duration"] >= stats["avg_duration"]
    assert stats["speedup"] == pytest.approx(stats["total_duration"] / stats["elapsed_s"])
    assert stats["efficiency"] == pytest.approx(stats["speedup"] / stats["usable_slots"])
    assert 1.4 < stats["speedup"] <= 2.001
    assert set(stats["denominators"]) == {"speedup", "efficiency"}
    empty = pipeline.get_parallel_execution_stats([])
    assert (empty["total_tasks"], empty["speedup"], empty["efficiency"]) == (0, 0.0, 0.0)


def test_health_and_tools(pipeline: TaskPipeline) -> None:
    health = pipeline.health_check()
    assert health["status"] == "healthy"
    assert health["slots"] == 2
    tools = pipeline.list_available_simulations()
    assert {"command", "python", "fenicsx", "lammps", "openfoam"} <= set(tools)
    assert tools["python"]["available"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pythn", "solve.py"), 'tool: found "pythn"; the tools are .*python.*did you mean "python"'),
        (("python", "nothing.py"), 'script: the script "nothing.py" does not exist'),
        (("python", ""), "script must be a path"),
        (("python", "solve.py", [1]), "params must be a dict"),
        (("python", "solve.py", {"x": {1, 2}}), r"params\['x'\]: .*cannot be written as JSON"),
        (("python", "solve.py", {"x": float("nan")}), "nan cannot be written as JSON"),
        (("python", "solve.py", {"x y": 1}), "is not a parameter name"),
        (("python", "solve.py", {3: 1}), "is no text"),
    ],
)
def test_a_wrong_task_is_refused_at_the_call(pipeline: TaskPipeline, arguments: tuple, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipeline.submit_task(*arguments)
    assert pipeline.submit_task(*SOLVE) == "0", "nothing was half-submitted"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": "soon"}, "timeout"),
        ({"cores": 0}, "cores"),
        ({"memory": "2 apples"}, "memory"),
        ({"retries": -1}, "retries"),
        ({"priority": "high"}, "priority"),
        ({"depends_on": [7]}, "depends_on: 7 is no task id"),
    ],
)
def test_wrong_options_are_refused_at_the_call(pipeline: TaskPipeline, options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipeline.submit_task(*SOLVE, {"x": 1}, **options)


def test_a_wrong_task_among_many_submits_none(pipeline: TaskPipeline) -> None:
    good = {"tool": "python", "script": "solve.py"}
    for bad, message in (
        ({"script": "solve.py"}, "task 1: the key 'tool' is missing"),
        ({"tool": "python"}, "task 1: the key 'script' is missing"),
        ({**good, "parms": {}}, "task 1: no such key 'parms'.*params"),
        ({**good, "tool": "fenics"}, "task 1: tool: .*fenicsx"),
        ("solve.py", "task 1: must be a dict"),
    ):
        for submit in (pipeline.submit_workflow, pipeline.submit_batch_workflow):
            with pytest.raises(RequestError, match=message):
                submit([good, bad])
    with pytest.raises(RequestError, match="values of 'x' are empty"):
        pipeline.parameter_sweep(*SOLVE, {"y": [1], "x": []})
    with pytest.raises(RequestError, match="must be a list"):
        pipeline.parameter_sweep(*SOLVE, {"x": 3})
    with pytest.raises(UnknownTaskError, match="unknown task id '5'"):
        pipeline.submit_task(*SOLVE, depends_on=["5"])
    assert pipeline.submit_task(*SOLVE) == "0"


def test_a_callback_that_cannot_be_called_is_refused_at_the_call(pipeline: TaskPipeline) -> None:
    with pytest.raises(RequestError, match="callback must be callable, not 3"):
        pipeline.parameter_sweep(*SOLVE, {"x": [1]}, callback=3)
    assert pipeline.submit_task(*SOLVE) == "0", "nothing was half-submitted"
    for wait in (
        lambda: pipeline.wait_for_workflow(["0"], callback="x"),
        lambda: pipeline.monitor_task("0", 3),
    ):
        with pytest.raises(RequestError, match="callback must be callable"):
            wait()


def test_unknown_ids_are_key_errors_that_say_so(pipeline: TaskPipeline) -> None:
    pipeline.submit_task(*SOLVE)
    asks = (pipeline.get_task_status, pipeline.wait_for_task, pipeline.cancel_task, pipeline.monitor_task)
    for ask in asks:
        with pytest.raises(KeyError, match="unknown task id 'x'") as caught:
            ask("x")
        assert "ids are '0' to '0'" in str(caught.value)
    with pytest.raises(RequestError, match="must be a list of ids"):
        pipeline.wait_for_workflow("0")
    with pytest.raises(RequestError, match="no task to wait for"):
        pipeline.wait_for_any([])


def test_nothing_after_close(pipeline: TaskPipeline) -> None:
    task_id = pipeline.submit_task(*SOLVE, {"x": 2})
    pipeline.cleanup()
    with pytest.raises(ClosedError, match="is closed"):
        pipeline.submit_task(*SOLVE)
    assert pipeline.get_task_status(task_id)["state"] == "SUCCESS"
    assert pipeline.health_check()["status"] == "unhealthy"
    pipeline.cleanup()


def test_the_file_is_like_any_other(folder: Path) -> None:
    with TaskPipeline("out.h5") as pipeline:
        pipeline.parameter_sweep(*SOLVE, {"x": [1, 2.5], "fail": [False, True]})
        pipeline.submit_task("command", ["echo", "{word}"], {"word": "hi", "more": {"a": [1, None]}})
    assert sorted(p.name for p in folder.iterdir()) == ["out.h5", "solve.py"]
    with h5py.File("out.h5") as file:
        assert file.attrs["state"] == "complete"
        assert file["task_id"].asstr()[:].tolist() == ["0", "1", "2", "3", "4"]
        assert file["params/x"][:4].tolist() == [1.0, 1.0, 2.5, 2.5]
        assert file["params/word"].asstr()[4] == "hi"
        assert file["params/more"].asstr()[4] == '{"a":[1,null]}'
        assert file["results/square"][:3:2].tolist() == [1.0, 6.25]
        assert "recipe" in file["tasks/request"].asstr()[0]
    with open_run("out.h5") as run:
        assert len(run) == 5
        assert run.stats()["completed"] == 3


def test_an_interrupted_block_stops_what_runs(folder: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), TaskPipeline("out.h5") as pipeline:  # noqa: PT012
        ids = [pipeline.submit_task(*SOLVE, {"sleep": 30}) for _ in range(4)]
        time.sleep(0.5)
        _ = 1 / 0
    assert time.monotonic() - began < 15
    assert {pipeline.get_task_status(i)["state"] for i in ids} == {"CANCELLED"}
    with h5py.File("out.h5") as file:
        assert file.attrs["state"] == "interrupted"


def test_ids_survive_and_what_succeeded_is_not_run_again(folder: Path) -> None:
    with TaskPipeline("out.h5") as pipeline:
        ids = pipeline.parameter_sweep(*SOLVE, {"x": [1, 2]})
        bad = pipeline.submit_task(*SOLVE, {"fail": True})
        twice = [pipeline.submit_task(*SOLVE, {"x": 9, "array": 4}) for _ in range(2)]
    with TaskPipeline("out.h5", resume=True) as pipeline:
        assert pipeline.get_task_status(ids[1])["result"]["outputs"] == {"square": 4.0}
        assert pipeline.get_task_status(bad)["state"] == "FAILURE"
        again = pipeline.parameter_sweep(*SOLVE, {"x": [2.0, 1, 3]})
        assert again == [ids[1], ids[0], "5"]
        assert pipeline.submit_task(*SOLVE, {"fail": True}) == bad
        assert [pipeline.submit_task(*SOLVE, {"x": 9, "array": 4}) for _ in range(3)] == [*twice, "6"]
        after = pipeline.submit_task(*SOLVE, {"x": 5}, depends_on=[ids[0]])
        status = pipeline.wait_for_workflow([*again, bad, after], timeout=30)
        assert [status["tasks"][i]["attempts"] for i in again] == [1, 1, 1]
        assert status["tasks"][bad]["attempts"] == 2
        assert status["completed"] == 4
        field = pipeline.wait_for_task(twice[0])["outputs"]["field"]
        assert field.tolist() == [9.0] * 4
    with h5py.File("out.h5") as file:
        assert len(file["task_id"]) == 8
        assert sorted(file["attempts/task_index"][:].tolist()) == [0, 1, 2, 2, 3, 4, 5, 6, 7]
        assert file["attempts/epoch"][:].tolist().count(2) == 4


def test_a_changed_script_is_refused_unless_accepted(folder: Path) -> None:
    with TaskPipeline("out.h5") as pipeline:
        pipeline.submit_task(*SOLVE, {"x": 1})
    with (folder / "solve.py").open("a") as file:
        file.write("# changed\n")
    with TaskPipeline("out.h5", resume=True) as pipeline:
        with pytest.raises(OutputError, match=r"has changed since: script solve\.py changed"):
            pipeline.submit_task(*SOLVE, {"x": 1})
        assert pipeline.submit_task(*SOLVE, {"x": 2}) == "1"
    with TaskPipeline("out.h5", resume=True, accept_changed=True) as pipeline:
        assert pipeline.submit_task(*SOLVE, {"x": 1}) == "0"
        assert pipeline.get_task_status("0")["attempts"] == 1


def test_an_existing_file_is_never_written_over(folder: Path) -> None:
    with TaskPipeline("out.h5") as pipeline:
        pipeline.submit_task(*SOLVE, {"x": 1})
        with pytest.raises(OutputError, match="resume=True continues it"):
            TaskPipeline("out.h5")
    before = Path("out.h5").read_bytes()
    with pytest.raises(OutputError, match="resume=True continues it"):
        TaskPipeline("out.h5")
    assert Path("out.h5").read_bytes() == before
    with TaskPipeline("out.h5", fresh=True) as pipeline:
        assert pipeline.submit_task(*SOLVE, {"x": 1}) == "0"
    assert len(list(folder.glob("out.*.h5"))) == 1
    (folder / "other.txt").write_text("not ours")
    with pytest.raises(OutputError):
        TaskPipeline("other.txt", resume=True)


def test_several_pipelines_share_the_engine(folder: Path) -> None:
    with TaskPipeline("a.h5") as a, TaskPipeline("b.h5") as b:
        first = a.parameter_sweep(*SOLVE, {"x": [1, 2]})
        second = b.parameter_sweep(*SOLVE, {"x": [3], "array": [200_000]})
        assert first == ["0", "1"]
        assert second == ["0"]
        assert b.wait_for_task("0", timeout=30)["outputs"]["square"] == 9.0
        assert a.wait_for_workflow(first, timeout=30)["completed"] == 2
    for name, count in (("a.h5", 2), ("b.h5", 1)):
        with h5py.File(name) as file:
            assert file["tasks/state"][:].tolist() == [2] * count


def test_output_is_named_after_program_and_time(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with TaskPipeline() as pipeline:
        pipeline.submit_task(*SOLVE)
        pipeline.submit_task(*SOLVE)
    assert capfd.readouterr().err.count(pipeline.path.name) == 1
    assert pipeline.path.exists()


def test_settings_are_those_of_a_sweep_file(folder: Path) -> None:
    settings = {
        "task": {"workdir": "task", "keep": ["*.txt"]},
        "collect": {"answer": {"regex": r"answer = (\d+)", "type": "int"}},
    }
    with TaskPipeline("out.h5", settings=settings) as pipeline:
        command = ["/bin/sh", "-c", "echo answer = {n}; echo hi > a.txt"]
        task_id = pipeline.submit_task("command", command, {"n": 42})
        result = pipeline.wait_for_task(task_id, timeout=30)
    assert result["outputs"] == {"answer": 42}
    assert [Path(name).read_text() for name in result["artifacts"]] == ["hi\n"]
    with pytest.raises(RequestError, match="settings: tasks: no such table"):
        TaskPipeline("other.h5", settings={"tasks": {}})
    assert not Path("other.h5").exists()
