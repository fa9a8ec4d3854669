"""How a command is timed: whole processes, interleaved, start-up taken out by a difference.

Rule: every contender runs two sizes in every round, in turn, so that a machine
that slows down slows all of them; what is said is the median over the rounds.

    per task = (T(large) - T(small)) / (large - small)
    start-up = T(small) - small * per task
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import ClusterError
from keystone_mpi.execution.environment import scrub

LIMIT_S = 300.0


class Contender(msgspec.Struct, frozen=True):
    """One way of running n tasks."""

    name: str
    command: Callable[[int, Path], list[str]]
    """(number of tasks, fresh folder) -> argv; the folder is where it is started."""


class Timing(msgspec.Struct, frozen=True):
    """What was measured of a contender."""

    name: str
    tasks_per_s: float = 0.0
    startup_s: float = 0.0
    wall_s: float = 0.0
    """Of the tasks in the difference."""
    problem: str = ""
    """Why it could not be measured; empty: it was."""


def environment() -> dict[str, str]:
    """Return this process's environment, fit for starting runs of its own in any MPI."""
    kept = scrub(os.environ)
    kept["PATH"] = f"{Path(sys.prefix) / 'bin'}:{kept.get('PATH', os.defpath)}"
    # More ranks than cores are wanted here, and whoever measures as root has decided to.
    kept["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    kept["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    if os.geteuid() == 0:
        kept["OMPI_ALLOW_RUN_AS_ROOT"] = kept["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    return kept


def time_command(argv: Sequence[str], folder: Path) -> float:
    """Run a command to its end and return its wall time.

    Raises
    ------
    ClusterError
        It is missing, fails or takes longer than `LIMIT_S`.
    """
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        try:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise ClusterError(f"{argv[0]}: {error.strerror}") from error
        try:
            exit_code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{argv[0]}: no end within {LIMIT_S:.0f} s") from None
        finally:
            end_session(process)
        wall_s = time.perf_counter() - began
        if exit_code != 0:
            output.seek(0)
            raise ClusterError(f"{argv[0]}: exit code {exit_code}: {_last_line(output.read())}")
    return wall_s


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs: TERM, so that mpiexec ends its ranks, then KILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            continue


def _last_line(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if re.search(r"\w", line)]
    return lines[-1].strip()[:200] if lines else "it said nothing"


def time_side_by_side(
    contenders: Sequence[Contender],
    *,
    small: int,
    large: int,
    rounds: int,
    scratch: Path,
    say: Callable[[str], None],
) -> list[Timing]:
    """Time all contenders, interleaved.

    Parameters
    ----------
    contenders : sequence of Contender
        Run in this order in every round.
    small, large : int
        The two numbers of tasks.
    rounds : int
        How often; medians are returned.
    scratch : Path
        Every run gets a fresh folder in it.
    say : callable
        Told what is being done.
    """
    samples: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in contenders}
    problems: dict[str, str] = {}
    for number in range(rounds):
        for contender in contenders:
            if contender.name in problems:
                continue
            say(f"round {number + 1} of {rounds}: {contender.name}")
            walls = []
            try:
                for size in (small, large):
                    folder = Path(tempfile.mkdtemp(dir=scratch))
                    walls.append(time_command(contender.command(size, folder), folder))
            except ClusterError as error:
                problems[contender.name] = str(error)
                continue
            samples[contender.name].append((walls[0], walls[1]))
    timings = []
    for contender in contenders:
        if contender.name in problems:
            timings.append(Timing(contender.name, problem=problems[contender.name]))
            continue
        pairs = samples[contender.name]
        wall_s = statistics.median(pair[1] - pair[0] for pair in pairs)
        per_task_s = wall_s / (large - small)
        startup_s = statistics.median(pair[0] for pair in pairs) - small * per_task_s
        timings.append(Timing(contender.name, 1.0 / per_task_s, max(0.0, startup_s), wall_s))
    return timings
