"""Runs that several tests of this folder look at; not to be written."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from made_runs import EVIL, EVIL_SWEEP, FIXTURES, T0, task_end, write_run

from keystone_mpi.core.model import Outcome, TaskState, Why


@pytest.fixture(scope="session")
def first_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of format version 1: 12 tasks of a real run, 2 of which failed twice."""
    path = tmp_path_factory.mktemp("versions") / "v1.h5"
    path.write_bytes(gzip.decompress((FIXTURES / "v1.h5.gz").read_bytes()))
    return path


@pytest.fixture(scope="session")
def evil_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 9 tasks: 6 succeeded, 2 failed on node2, one timed out; its texts try to be markup."""
    entries = [
        task_end(
            index,
            worker=1 + index % 2,
            start=index * 0.5,
            took=1.0 + index * 0.1,
            scalars={"energy": 1.0 / (index + 1), "note": EVIL, "solver_version": "solve <2.1>"},
            stdout_tail=f"{EVIL}\n",
        )
        for index in range(6)
    ]
    for index in (6, 7):
        entries.append(
            task_end(
                index,
                worker=2,
                start=4.0 + (index - 6) * 2,
                took=0.5,
                state=TaskState.FAILURE,
                exit_code=3,
                error=f"exit code 3: {EVIL}",
                stderr_tail=f"{EVIL}\n",
                stdout_tail="step 1\n",
                command=f"solve '{EVIL}'",
            )
        )
    entries.append(
        task_end(
            8, worker=1, start=5.0, took=3.0, state=TaskState.TIMEOUT, outcome=Outcome.TIMEOUT,
            why=Why.NONE, exit_code=-1, error="timed out after 3 s",
        )
    )  # fmt: skip
    return write_run(
        tmp_path_factory.mktemp("evil"),
        EVIL_SWEEP,
        entries,
        hosts=("node1", "node2"),
        slots=2,
        provenance={
            "keystone_mpi": "0.1.0",
            "python": "3.11",
            "command_line": ["keystone-mpi", "run", EVIL],
            "git": {"commit": "abc123", "branch": "main", "dirty": True},
            "created": T0,
        },
    )
