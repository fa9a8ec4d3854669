"""Plays a worker rank: starts a launcher and a few solvers, says so, and waits to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

from execution_support import Bench

from keystone_mpi.execution.launcher_client import AttemptStarted
from keystone_mpi.tools.recipe import Recipe


def main() -> None:
    folder, run_id, script = sys.argv[1:]
    bench = Bench(Path(folder), (Recipe(grace_s=30.0),), run_id=run_id)
    bench.client.submit(0, [bench.shell(script), bench.order("sleep", "1000")])
    bench.client.submit(1, [bench.shell(script)])
    for slot in (0, 1):
        bench.wait_for(lambda event, slot=slot: isinstance(event, AttemptStarted) and event.slot == slot)
    print(bench.client.launcher_pid, bench.client.scratch_path, flush=True)
    while True:
        bench.client.read_events(1000.0)


if __name__ == "__main__":
    main()
