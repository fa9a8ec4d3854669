"""What the tests of the Python API share: an engine in this process, and programs as users start them."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keystone_mpi import KeystoneExecutor, TaskPipeline
from keystone_mpi.engine.program import PROGRAM

SOLVER = """
import argparse, json, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float, default=0.0)
parser.add_argument("--sleep", type=float, default=0.0)
parser.add_argument("--fail", default="false")
parser.add_argument("--array", type=int, default=0)
options = parser.parse_args()
time.sleep(options.sleep)
if options.fail == "true":
    sys.exit("out of luck")
if options.array:
    import os
    import numpy
    numpy.savez(os.environ["KEYSTONE_RESULT"], field=numpy.full(options.array, options.x))
print(json.dumps({"square": options.x**2}))
"""


@pytest.fixture(scope="module", autouse=True)
def _engine_ends() -> Iterator[None]:
    """End this process's engine with the module that used it: its processes are not to outlive it."""
    yield
    PROGRAM.end()
    PROGRAM.hub = None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a fresh folder that holds solve.py."""
    (tmp_path / "solve.py").write_text(SOLVER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pipeline(folder: Path) -> Iterator[TaskPipeline]:
    """Make a pipeline that writes out.h5."""
    made = TaskPipeline("out.h5", slots=2)
    try:
        yield made
    finally:
        made.close(wait=False)


@pytest.fixture
def executor() -> Iterator[KeystoneExecutor]:
    """Make an executor with two workers."""
    made = KeystoneExecutor(2)
    yield made
    made.shutdown(cancel_futures=True)


@pytest.fixture
def run(request: pytest.FixtureRequest, folder: Path) -> Callable[..., Any]:
    """Run a program: ``run(source or path, way, n=3)``; this process's own engine ends first."""
    PROGRAM.end()
    PROGRAM.hub = None

    def run_program(
        program: str | Path, way: str = "plain", *, n: int = 3, args: tuple[str, ...] = (), **kwargs: Any
    ) -> Any:
        if isinstance(program, str):
            path = folder / "program.py"
            path.write_text(textwrap.dedent(program))
        else:
            path = program
        python = [sys.executable, "-W", "error"]
        if way == "plain":
            return request.getfixturevalue("plain")([*python, path, *args], **kwargs)
        mpiexec = request.getfixturevalue("mpiexec")
        module = ["-m", "keystone_mpi"] if way == "module" else []
        return mpiexec([*python, *module, path, *args], n=n, **kwargs)

    return run_program


@pytest.fixture
def plain(keystone: Any) -> Callable[..., Any]:
    """Run a command without a launcher."""
    with contextlib.suppress(AttributeError):
        keystone.prefix = lambda n, mpiexec_args: []
    return keystone
