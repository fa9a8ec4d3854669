"""Programs as users start them: alone, under mpiexec, and by python -m keystone_mpi."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from programs_support import WAYS

pytestmark = pytest.mark.multirank

EXAMPLES = Path(__file__).parents[2] / "jobscripts" / "examples"

SWEEP = """
from keystone_mpi import TaskPipeline
pipeline = TaskPipeline("out.h5", resume=True)
ids = pipeline.parameter_sweep("python", "solve.py", {"x": range(6)})
"""


def states(path: Path) -> list[int]:
    with h5py.File(path) as file:
        return file["tasks/state"][:].tolist()


@pytest.mark.parametrize("way", WAYS)
def test_forgetting_to_close_loses_nothing(run: Callable[..., Any], folder: Path, way: str) -> None:
    done = run(SWEEP + "print('submitted', len(ids))\n", way).check()
    assert done.stdout == "submitted 6\n"
    assert done.stderr == ""
    assert states(folder / "out.h5") == [2] * 6
    assert sorted(p.name for p in folder.iterdir()) == ["out.h5", "program.py", "solve.py"]
    again = run(SWEEP + "print([pipeline.get_task_status(i)['attempts'] for i in ids])\n", way).check()
    assert again.stdout == "[1, 1, 1, 1, 1, 1]\n"


@pytest.mark.parametrize("way", WAYS)
def test_an_exception_ends_all_ranks_within_seconds(run: Callable[..., Any], folder: Path, way: str) -> None:
    began = time.monotonic()
    done = run(
        SWEEP
        + "pipeline.wait_for_workflow(ids)\n"
        + "long = [pipeline.submit_task('command', ['sleep', '100']) for _ in range(5)]\n"
        + "import time; time.sleep(0.5)\n"
        + "raise LookupError('the program is wrong')\n",
        way,
    )
    assert time.monotonic() - began < 20
    assert done.returncode != 0
    assert "LookupError: the program is wrong" in done.stderr
    assert "program.py" in done.stderr
    assert states(folder / "out.h5")[:6] == [2] * 6
    with h5py.File(folder / "out.h5") as file:
        assert file.attrs["state"] == "interrupted"
        assert file["tasks/state"][6:].tolist() == [0] * 5


@pytest.mark.parametrize("way", WAYS)
def test_exit_codes_survive(run: Callable[..., Any], way: str) -> None:
    done = run(SWEEP + "pipeline.wait_for_workflow(ids)\nimport sys\nsys.exit(3)\n", way)
    assert done.returncode == 3, done.output
    assert "Traceback" not in done.stderr


def test_workers_never_run_the_program(run: Callable[..., Any], folder: Path) -> None:
    first = "import os, sys\nopen(f'ran-{os.getpid()}', 'w').close()\n"
    source = first + SWEEP + "print(sys.argv[1:], __name__)\n"
    done = run(source, "module", args=("a", "b")).check()
    assert len(list(folder.glob("ran-*"))) == 1
    assert done.stdout == "['a', 'b'] __main__\n"


def test_a_program_that_never_uses_the_workers_ends(run: Callable[..., Any]) -> None:
    assert run("print('hello')\n", "module").check().stdout == "hello\n"
    assert run("raise SystemExit(5)\n", "module").returncode == 5
    assert "no such program" in run(Path("nowhere.py"), "module").check(2).stderr


FUNCTIONS = """
import os, sys
import numpy as np
from concurrent.futures import BrokenExecutor
from keystone_mpi import KeystoneExecutor

FACTOR = 3
class Local:
    def __init__(self, x): self.x = x
def scale(x): return FACTOR * x
def whereabouts(_):
    import time; time.sleep(0.05)
    return os.getpid()

with KeystoneExecutor() as pool:
    assert list(pool.map(scale, range(2000))) == [3 * k for k in range(2000)]
    assert len(set(pool.map(whereabouts, range(8)))) == pool.max_workers == 2
    assert pool.submit(lambda l: Local(l.x + 1), Local(1)).result().x == 2
    array = np.arange(1_000_000.0)
    back = pool.submit(lambda a: a * 2, array).result()
    assert (back == 2 * array).all()
    try:
        pool.submit(lambda: 1 / 0).result()
    except ZeroDivisionError as error:
        print(str(error.__cause__).split(":")[0].strip().strip('"').strip())
    futures = [pool.submit(lambda k: os._exit(1) if k == 50 else k, k) for k in range(100)]
    lost = [k for k, f in enumerate(futures) if isinstance(f.exception(), BrokenExecutor)]
    print(lost, sum(f.result() for k, f in enumerate(futures) if k not in lost))
    print("mpi4py" in sys.modules, pool.submit(lambda: "PMI_RANK" in os.environ).result())
"""


@pytest.mark.parametrize("way", ["mpiexec", "module"])
def test_functions_run_on_the_worker_ranks(run: Callable[..., Any], way: str) -> None:
    done = run(FUNCTIONS, way).check()
    place, lost, modules = done.stdout.splitlines()
    assert place.startswith("on rank ")
    assert lost == "[50] 4900"
    assert modules == "True False"


@pytest.mark.parametrize("way", ["mpiexec"])
def test_mpi_before_us_works_and_is_told_once(run: Callable[..., Any], folder: Path, way: str) -> None:
    source = "from mpi4py import MPI\nrank = MPI.COMM_WORLD.Get_rank()\n" + SWEEP + (
        "from keystone_mpi import ParallelExecutor\n"
        "with ParallelExecutor() as ex: print(rank, ex.execute_map(abs, [-1, -2]))\n"
        "pipeline.close()\n"
    )  # fmt: skip
    done = run(source, way).check()
    assert done.stdout == "0 [1, 2]\n"
    assert done.stderr.count("MPI was initialised before keystone_mpi") == 1
    assert "python -m keystone_mpi" in done.stderr
    assert states(folder / "out.h5") == [2] * 6


def test_a_killed_program_is_resumed(run: Callable[..., Any], folder: Path) -> None:
    """Kill -9 of rank 0: what was told as finished is there, and only the rest runs again."""
    first = SWEEP + (
        "pipeline.wait_for_workflow(ids)\n"
        "slow = pipeline.submit_task('python', 'solve.py', {'sleep': 60, 'x': 1})\n"
        "import os, signal, time\ntime.sleep(0.5)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )  # fmt: skip
    assert run(first, "module").returncode != 0
    again = SWEEP + (
        "print([pipeline.get_task_status(i)['attempts'] for i in ids])\n"
        "print(pipeline.get_task_status('6')['state'])\n"
    )
    done = run(again, "module").check()
    assert done.stdout == "[1, 1, 1, 1, 1, 1]\nPENDING\n"
    assert "took over from" in done.stderr


WATCHED = """
import json, subprocess, sys, time
from pathlib import Path
from keystone_mpi import TaskPipeline

def shell(*args):
    program = str(Path(sys.executable).parent / "keystone-mpi")
    return subprocess.run([program, *args], capture_output=True, text=True)

pipeline = TaskPipeline("out.h5", slots=2)
first = pipeline.submit_task("python", "solve.py", {"x": 2})
pipeline.wait_for_task(first)
rest = [pipeline.submit_task("command", ["sleep", "2"]) for _ in range(6)]
time.sleep(0.5)
status = json.loads(shell("status", "out.h5", "--json").stdout)
print(status["state"], status["completed"], status["running"], status["pending"], status["total"])
print("square" in shell("show", "out.h5", first).stdout)
shell("drain", "out.h5")
try:
    pipeline.wait_for_workflow(rest)
except Exception as error:
    print(type(error).__name__, str(error).split(":")[0])
states = [str(task["state"]) for task in pipeline.get_workflow_status(rest)["tasks"].values()]
print(states.count("SUCCESS") in (2, 3, 4), states.count("PENDING") >= 2)
"""


def test_status_show_and_drain_from_another_shell(run: Callable[..., Any], folder: Path) -> None:
    done = run(WATCHED).check()
    assert done.stdout.splitlines() == [
        "running 1 2 4 7", "True", "RunInterruptedError stopped (keystone-mpi drain out.h5)", "True True"
    ], done.output  # fmt: skip
    assert "stopping (keystone-mpi drain out.h5)" in done.stderr
    with h5py.File(folder / "out.h5") as file:
        assert file.attrs["state"] == "interrupted"


EXAMPLE_OUTPUT = {
    "parallel_orchestration": "cancelled: 2, states: ['CANCELLED', 'CANCELLED', 'SUCCESS']",
    "parameter_sweep": "observed order of convergence: 2.01, 2.00",
    "adaptive_sweep": "gives u_max = 0.500",
    "hierarchical_workflow": "analysis: success, 6 solutions",
    "dynamic_submission": "24 tasks, at most 4 in flight",
    "monitoring": "task 7 failed after 2 attempts: exit code 1",
    "function_tasks": "norm of 3 * ones: 3000",
}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(EXAMPLE_OUTPUT)


@pytest.mark.parametrize("way", ["plain", "module"])
@pytest.mark.parametrize("name", EXAMPLE_OUTPUT)
def test_an_example(run: Callable[..., Any], name: str, way: str) -> None:
    done = run(EXAMPLES / f"{name}.py", way).check()
    assert EXAMPLE_OUTPUT[name] in done.stdout, done.output
    assert done.stderr == "", done.output
