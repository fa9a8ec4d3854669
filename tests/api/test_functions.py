"""Functions by value, arrays, crashes, callbacks; in local function processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, as_completed, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keystone_mpi import BatchProcessor, KeystoneExecutor, ParallelExecutor, TaskPipeline, TaskResult
from keystone_mpi.core.errors import RequestError

FACTOR = 3


def scale(x: float) -> float:
    return FACTOR * x


def fail_at(bad: int, x: int) -> int:
    if x == bad:
        raise LookupError(f"no {x}")
    return x


class Awkward(Exception):
    """Pickles, and cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


# --- by value -------------------------------------------------------------------------------------


def test_lambdas_closures_and_rebound_names(executor: KeystoneExecutor) -> None:
    offset = 5
    assert executor.submit(lambda x: x + offset, 1).result(30) == 6
    offset = 7
    assert executor.submit(lambda x: x + offset, 1).result(30) == 8
    add = lambda x: x + offset  # noqa: E731
    futures = []
    for offset in range(4):  # noqa: B007 - the closure sees it
        futures.append(executor.submit(add, 10))
    assert [f.result(30) for f in futures] == [10, 11, 12, 13]


def test_a_mutable_capture_is_seen_as_it_was_when_submitted(executor: KeystoneExecutor) -> None:
    seen: list[int] = []
    futures = []
    for k in range(4):
        seen.append(k)
        futures.append(executor.submit(lambda: len(seen)))
    assert [f.result(30) for f in futures] == [1, 2, 3, 4]


def test_arguments_are_taken_when_submitted(executor: KeystoneExecutor) -> None:
    small, large = np.zeros(10), np.zeros(100_000)
    futures = []
    for k in range(4):
        small[:] = large[:] = k
        futures.append((executor.submit(np.max, small), executor.submit(np.max, large)))
    assert [(a.result(30), b.result(30)) for a, b in futures] == [(k, k) for k in range(4)]


def test_large_arrays_there_and_back_and_writable(executor: KeystoneExecutor) -> None:
    def work(array: np.ndarray, *, add: float) -> dict[str, Any]:
        array += add
        return {"array": array, "halves": np.array_split(array, 2), "note": "x" * 200_000}

    array = np.arange(500_000.0).reshape(1000, 500)
    result = executor.submit(work, array, add=1.0).result(30)
    assert (array[0, 0], result["array"].shape) == (0.0, (1000, 500))
    np.testing.assert_array_equal(result["array"], array + 1)
    result["array"][0, 0] = 7
    assert len(result["note"]) == 200_000
    fortran = np.asfortranarray(array)[::2]
    np.testing.assert_array_equal(executor.submit(lambda a: a, fortran).result(30), fortran)


def test_many_large_arrays_at_once(executor: KeystoneExecutor) -> None:
    arrays = [np.full(50_000, k, float) for k in range(400)]
    assert [a[-1] for a in executor.map(lambda a: a + 1, arrays)] == [k + 1 for k in range(400)]


def test_the_function_process_imports_what_the_program_can(executor: KeystoneExecutor) -> None:
    assert executor.submit(scale, 2).result(30) == 6
    assert executor.submit(os.getcwd).result(30)
    assert executor.submit(lambda: sys.path).result(30)[1:] == [p or os.getcwd() for p in sys.path][1:]
    assert executor.submit(lambda: "mpi4py" in sys.modules).result(30) is False


def test_what_cannot_travel_fails_its_own_future(executor: KeystoneExecutor) -> None:
    future = executor.submit(len, threading.Lock())
    with pytest.raises(TypeError, match=r"len \(call \d+\) cannot be sent to another process: .*lock"):
        future.result(30)
    with pytest.raises(TypeError, match="cannot be sent"):
        executor.submit(threading.Lock).result(30)
    assert executor.submit(len, [1]).result(30) == 1


# --- what goes wrong ------------------------------------------------------------------------------


def test_exceptions_bring_their_remote_traceback(executor: KeystoneExecutor) -> None:
    with pytest.raises(LookupError, match="no 3") as caught:
        executor.submit(fail_at, 3, 3).result(30)
    text = str(caught.value.__cause__)
    assert os.uname().nodename in text
    assert "in fail_at" in text
    assert "function_server" not in text
    with pytest.raises(RuntimeError, match="Awkward: 1 2"):
        executor.submit(lambda: (_ for _ in ()).throw(Awkward(1, 2))).result(30)
    with pytest.raises(SystemExit):
        executor.submit(sys.exit, 4).result(30)


@pytest.mark.parametrize(
    ("death", "said"),
    [
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
    ],
    ids=["exit", "kill", "segfault"],
)
def test_a_crash_costs_its_own_future(executor: KeystoneExecutor, death: Any, said: str) -> None:
    before = [executor.submit(scale, k) for k in range(20)]
    doomed = executor.submit(death)
    after = [executor.submit(scale, k) for k in range(20)]
    with pytest.raises(BrokenExecutor, match=said) as caught:
        doomed.result(30)
    assert "call" in str(caught.value)
    assert [f.result(30) for f in before + after] == [3 * k for k in range(20)] * 2


def test_a_batch_that_crashes_in_the_middle_charges_one_call(executor: KeystoneExecutor) -> None:
    list(executor.map(scale, range(200)))  # quick calls travel in batches from now on

    def maybe(k: int) -> int:
        if k in (100, 300):
            os._exit(1)
        return k

    futures = [executor.submit(maybe, k) for k in range(400)]
    wait(futures, 60)
    died = [k for k, f in enumerate(futures) if f.exception() is not None]
    assert died == [100, 300]
    alive = [k for k in range(400) if k not in died]
    assert [futures[k].result() for k in alive] == alive


def test_a_process_that_always_dies_at_birth_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from keystone_mpi.engine import program

    PROGRAM = program.PROGRAM
    PROGRAM.end()
    PROGRAM.hub = None
    recipe = program._function_recipe()
    import msgspec

    broken = msgspec.structs.replace(recipe, argv=("/bin/sh", "-c", "echo no luck >&2; exit 9"))
    monkeypatch.setattr(program, "_function_recipe", lambda: broken)
    executor = KeystoneExecutor()
    with pytest.raises(Exception, match=r"(?s)function processes do not start: exit code 9.*no luck"):
        executor.submit(abs, -1).result(60)
    executor.shutdown()
    PROGRAM.end()
    PROGRAM.hub = None


def test_a_long_call_holds_nothing_up(executor: KeystoneExecutor) -> None:
    list(executor.map(scale, range(500)))  # quick so far: many are given in advance

    def nap(k: int) -> int:
        if k == 10:
            time.sleep(1.5)
        return k

    began = time.monotonic()
    futures = [executor.submit(nap, k) for k in range(300)]
    done = [future for k, future in enumerate(futures) if k != 10]
    wait(done, 30)
    assert time.monotonic() - began < 1.2, "what waited behind the long call went to the other process"
    assert [f.result(30) for f in futures] == list(range(300))


def test_two_long_calls_run_side_by_side(executor: KeystoneExecutor) -> None:
    list(executor.map(scale, range(100)))
    began = time.monotonic()
    list(executor.map(time.sleep, [0.5, 0.5]))
    assert time.monotonic() - began < 0.95


# --- the standard interface -----------------------------------------------------------------------


def test_futures_work_with_asyncio(executor: KeystoneExecutor) -> None:
    async def gather() -> list[float]:
        loop = asyncio.get_running_loop()
        wrapped = [asyncio.wrap_future(executor.submit(scale, k)) for k in range(5)]
        wrapped.append(loop.run_in_executor(executor, scale, 5))
        return await asyncio.gather(*wrapped)

    assert asyncio.run(gather()) == [3 * k for k in range(6)]


def test_done_callbacks_run_on_the_named_thread(executor: KeystoneExecutor) -> None:
    names: list[str] = []
    told = threading.Event()

    def note(_future: Any) -> None:
        names.append(threading.current_thread().name)
        told.set()

    future = executor.submit(time.sleep, 0.1)
    future.add_done_callback(note)
    future.result(30)
    assert told.wait(10)
    assert names == ["keystone-callbacks"]


def test_map_takes_chunks_and_keeps_order(executor: KeystoneExecutor) -> None:
    assert list(executor.map(scale, range(1000), chunksize=64)) == [3 * k for k in range(1000)]
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(scale, [1], chunksize=0)


def test_ten_thousand_calls_from_two_threads(executor: KeystoneExecutor) -> None:
    sums: list[int] = []

    def submit_many() -> None:
        sums.append(sum(f.result(60) for f in [executor.submit(scale, k) for k in range(5000)]))

    threads = [threading.Thread(target=submit_many) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [3 * 4999 * 2500] * 2


def test_executors_have_their_own_limits_and_share_processes() -> None:
    with KeystoneExecutor(1) as one, KeystoneExecutor(2) as two:
        assert one.max_workers == 1
        pids = set(one.map(lambda _: (time.sleep(0.05), os.getpid())[1], range(4)))
        assert len(pids) == 1
        assert len(set(two.map(lambda _: (time.sleep(0.2), os.getpid())[1], range(4)))) == 2
        assert {f.result() for f in as_completed([one.submit(os.getpid), two.submit(os.getpid)])}


# --- ParallelExecutor and BatchProcessor ----------------------------------------------------------


@pytest.mark.parametrize("use_processes", [True, False])
def test_execute_parallel(use_processes: bool) -> None:
    told: list[TaskResult] = []
    tasks = [
        {"id": "slow", "func": time.sleep, "args": (0.4,)},
        {"id": "bad", "func": fail_at, "args": (1, 1)},
        {"id": "good", "func": pow, "args": [2, 8]},
        {"func": dict, "kwargs": {"a": 1}},
    ]
    with ParallelExecutor(2, use_processes=use_processes) as executor:
        results = executor.execute_parallel(tasks, callback=told.append)
    assert [r.task_id for r in results] == ["slow", "bad", "good", "3"]
    assert [r.status for r in results] == ["success", "failed", "success", "success"]
    assert [r.result for r in results] == [None, None, 256, {"a": 1}]
    assert results[1].error == "LookupError: no 1"
    assert isinstance(results[1].exception, LookupError)
    assert results[0].duration is not None
    assert results[0].duration >= 0.39
    assert results[0].end_time - results[0].start_time == pytest.approx(results[0].duration)
    assert sorted(r.task_id for r in told) == ["3", "bad", "good", "slow"]
    assert told[0].task_id != "slow"


def test_execute_map_and_timeouts() -> None:
    told: list[tuple[int, int]] = []
    with ParallelExecutor(2) as executor:
        squares = executor.execute_map(lambda x: x * x, range(5), callback=lambda i, r: told.append((i, r)))
        assert squares == [0, 1, 4, 9, 16]
        assert sorted(told) == list(enumerate(squares))
        assert executor.execute_map(abs, []) == []
        with pytest.raises(LookupError):
            executor.execute_map(lambda k: fail_at(2, k), range(4))
        with pytest.raises(TimeoutError, match=r"1 of 1 calls were not done after 0\.1 s"):
            executor.execute_map(time.sleep, [0.6], timeout=0.1)
        with pytest.raises(ZeroDivisionError):
            executor.execute_map(abs, [1], callback=lambda i, r: 1 / 0)


def test_wrong_function_tasks_are_refused_before_any_runs() -> None:
    with ParallelExecutor(1) as executor:
        for bad, message in (
            ({"id": 1}, "task 1: 'func' must be callable, found None"),
            ({"func": abs, "arg": 1}, "task 1: no such key 'arg'"),
            ({"func": abs, "args": 3}, "task 1: 'args' must be a list"),
            ({"func": abs, "kwargs": [1]}, "task 1: 'kwargs' must be a dict"),
            (abs, "task 1: must be a dict"),
        ):
            with pytest.raises(RequestError, match=message):
                executor.execute_parallel([{"func": abs, "args": [1]}, bad])
    for workers in (0, -1, 1.5, True):
        with pytest.raises(RequestError, match="max_workers"):
            ParallelExecutor(workers)


def test_batch_processor() -> None:
    def area(width: float, height: float) -> float:
        if height > 2:
            raise ValueError("too high")
        return width * height

    told: list[Any] = []
    with BatchProcessor(2) as processor:
        rows = processor.parameter_sweep(
            area, {"width": np.array([1.0, 2.0]), "height": range(1, 4)}, lambda p, r: told.append((p, r))
        )
        assert [row["params"] for row in rows[:3]] == [{"width": 1.0, "height": h} for h in (1, 2, 3)]
        assert [row["status"] for row in rows] == ["success", "success", "failed"] * 2
        assert [row["result"] for row in rows] == [1.0, 2.0, None, 2.0, 4.0, None]
        assert rows[2]["error"] == "ValueError: too high"
        assert all(row["duration"] >= 0 for row in rows)
        assert len(told) == 4
        assert all(result == p["width"] * p["height"] for p, result in told)
        with pytest.raises(RequestError, match="values of 'height' are empty"):
            processor.parameter_sweep(area, {"width": [1], "height": []})
        seen: list[Any] = []
        doubled = processor.batch_execute(
            lambda x: 2 * x, range(10), lambda i, r: seen.append((i, r)), chunk_size=3
        )
        assert doubled == [2 * k for k in range(10)]
        assert sorted(seen) == list(enumerate(doubled))
        assert processor.batch_execute(abs, [-1, 2]) == [1, 2]


def test_functions_and_solver_tasks_share_the_slots(folder: Any) -> None:
    with KeystoneExecutor() as executor, TaskPipeline("out.h5") as pipeline:
        list(executor.map(scale, range(10)))
        # The function processes sit on every core; the tasks get room all the same.
        ids = pipeline.parameter_sweep("python", "solve.py", {"x": range(4)})
        busy = [executor.submit(time.sleep, 0.05) for _ in range(60)]
        assert pipeline.wait_for_workflow(ids, timeout=30)["completed"] == 4
        assert all(f.result(30) is None for f in busy)


def test_prints_of_functions_are_seen(capfd: pytest.CaptureFixture[str]) -> None:
    def speak(k: int) -> None:
        print("hello", k)
        print("trouble", k, file=sys.stderr)

    with ParallelExecutor(2) as executor:
        executor.execute_map(speak, range(3), callback=lambda i, r: None)
    seen = capfd.readouterr()
    assert sorted(seen.out.split("\n")) == ["", "hello 0", "hello 1", "hello 2"]
    assert sorted(seen.err.split("\n")) == ["", "trouble 0", "trouble 1", "trouble 2"]


# --- as the pool of real libraries ----------------------------------------------------------------


def rosenbrock(x: np.ndarray) -> float:
    return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def test_scipy_differential_evolution(executor: KeystoneExecutor) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    options = {"bounds": [(-2, 2)] * 3, "seed": 3, "maxiter": 60, "popsize": 8, "updating": "deferred"}
    parallel = optimize.differential_evolution(rosenbrock, workers=executor.map, **options)
    serial = optimize.differential_evolution(rosenbrock, **options)
    np.testing.assert_array_equal(parallel.x, serial.x)
    assert parallel.fun < 1e-3


def log_probability(theta: np.ndarray, width: float) -> float:
    return float(-0.5 * np.sum((theta / width) ** 2))


def test_emcee(executor: KeystoneExecutor) -> None:
    emcee = pytest.importorskip("emcee")
    start = np.random.default_rng(1).normal(size=(12, 2))

    def sample(pool: Any) -> np.ndarray:
        sampler = emcee.EnsembleSampler(12, 2, log_probability, args=(0.5,), pool=pool)
        sampler.random_state = np.random.RandomState(5).get_state()
        sampler.run_mcmc(start, 60)
        return sampler.get_chain()

    np.testing.assert_array_equal(sample(executor), sample(None))


def test_a_killed_launcher_costs_the_running_calls(executor: KeystoneExecutor) -> None:
    from keystone_mpi.execution.forking import LAUNCHER_NAME
    from keystone_mpi.execution.processes import descendants

    list(executor.map(scale, range(50)))
    futures = [executor.submit(time.sleep, 0.6) for _ in range(6)]
    time.sleep(0.3)
    launchers = [
        pid
        for pid in descendants(os.getpid())
        if Path(f"/proc/{pid}/comm").read_text().rstrip() == LAUNCHER_NAME
    ]
    os.kill(launchers[0], signal.SIGKILL)
    wait(futures, 30)
    lost = [future for future in futures if future.exception() is not None]
    assert 1 <= len(lost) <= 2
    assert all(isinstance(future.exception(), BrokenExecutor) for future in lost)
    assert executor.submit(scale, 2).result(30) == 6


def test_a_signal_to_all_of_a_job_ends_no_engine(executor: KeystoneExecutor, folder: Path) -> None:
    """Function processes ignore INT; one that lived through it and is closed later is not started again."""
    from keystone_mpi.execution.forking import SLOT_NAME
    from keystone_mpi.execution.processes import descendants

    assert list(executor.map(scale, range(8))) == [scale(x) for x in range(8)]
    for pid in reversed(descendants(os.getpid())):
        name = Path(f"/proc/{pid}/comm").read_text().rstrip()
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        above = Path(f"/proc/{parent}/comm").read_text().rstrip()
        if SLOT_NAME in (name, above):
            os.kill(pid, signal.SIGINT)
    executor.shutdown()
    with TaskPipeline("out.h5") as pipeline:
        task = pipeline.submit_task("command", ["true"])
        assert pipeline.wait_for_task(task, timeout=30)["status"] == "success"
    with KeystoneExecutor(2) as another:
        assert another.submit(scale, 5).result(30) == scale(5)
