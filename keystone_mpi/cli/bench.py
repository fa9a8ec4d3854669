"""`keystone-mpi bench`: how fast the runner is on this machine, side by side with what else does the work.

Rule: it runs in a temporary folder that it removes, measures whole commands as
users start them, and says medians. On a busy machine its figures mean little:
compare the ratios, and run it again.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from keystone_mpi.cli import wording
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.core.errors import ClusterError

if TYPE_CHECKING:
    from keystone_mpi.bench.core_speed import CoreTiming
    from keystone_mpi.bench.functions import CallRate
    from keystone_mpi.bench.measure import Timing
    from keystone_mpi.bench.overhead import IdleProcess, Startup

PARTS = ("true", "sleep", "functions", "core", "startup", "idle")
SLEEP_S = 0.1
SLEEP_SLOTS = 8
TRUE_SLOTS = 2

Result = TypeVar("Result")


@click.command("bench")
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--quick", is_flag=True, help="Smaller sizes and fewer rounds: about a minute.")
@click.option("--rounds", type=click.IntRange(1, 99), help="How often each contender runs (5; quick: 2).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(parts: tuple[str, ...], quick: bool, rounds: int | None, as_json: bool) -> int:
    """Measure how fast the runner is on this machine.

    \b
    true       2,000 x /bin/true on 2 slots, beside the C posix_spawn floor and others
    sleep      200 x sleep 0.1 on 8 slots: how much of the wall time is the solvers' own
    functions  10,000 no-op Python calls on 2 workers, and a dependent loop, beside mpi4py.futures
    core       the scheduler alone, 1,000,000 tasks over 10,000 imaginary workers
    startup    mpiexec -n 2 keystone-mpi run on one task, beside bare mpi4py
    idle       processor time of the runner's processes while solvers run
    """
    wanted = parts or PARTS
    report: dict[str, Any] = {"machine": _machine()}
    scratch = Path(tempfile.mkdtemp(prefix="keystone-bench-"))
    try:
        for part in PARTS:
            if part in wanted:
                measured = _measure(part, quick, rounds or (2 if quick else 5), scratch)
                report[part] = measured
                if not as_json:
                    _print_part(part, measured)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
    return EXIT_OK


def _measure(part: str, quick: bool, rounds: int, scratch: Path) -> Any:
    """Measure one part."""
    from keystone_mpi.bench.contenders import all_contenders
    from keystone_mpi.bench.measure import time_side_by_side
    from keystone_mpi.bench.overhead import measure_idle, measure_startup

    match part:
        case "true":
            small, large = (100, 600) if quick else (200, 2200)
            contenders = all_contenders(scratch, ["/bin/true"], TRUE_SLOTS, numbered=True)
            return time_side_by_side(
                contenders, small=small, large=large, rounds=rounds, scratch=scratch, say=_say
            )
        case "sleep":
            small, large = (16, 96) if quick else (80, 280)
            contenders = all_contenders(scratch, ["/bin/sleep", str(SLEEP_S)], SLEEP_SLOTS, numbered=False)
            return time_side_by_side(
                contenders, small=small, large=large, rounds=min(rounds, 3), scratch=scratch, say=_say
            )
        case "functions":
            from keystone_mpi.bench.functions import measure_functions

            return _or_problem(
                lambda: measure_functions(
                    calls=2000 if quick else 10_000, rounds=min(rounds, 3), scratch=scratch, say=_say
                )
            )
        case "core":
            from keystone_mpi.bench.core_speed import measure_core

            _say("the scheduler alone")
            return measure_core(quick=quick)
        case "startup":
            return _or_problem(lambda: measure_startup(rounds + 2, scratch, _say))
        case "idle":
            return _or_problem(lambda: measure_idle(5.0 if quick else 20.0, scratch, _say))
        case _:
            raise AssertionError(part)


def _or_problem(measure: Callable[[], Result]) -> Result | str:
    """Return why something cannot be measured here instead of giving up on the rest."""
    try:
        return measure()
    except ClusterError as error:
        return str(error)


def _say(text: str) -> None:
    """Tell a person who waits what is being done; nothing into a log."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text} ...", err=True, nl=False)


def _machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "at": wording.local_time(time.time()),
    }


def _print_part(part: str, measured: Any) -> None:
    """Print the table of one part."""
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)
    if isinstance(measured, str):
        click.echo(f"\n{part}: not measured: {measured}")
        return
    match part:
        case "true":
            _print_true(measured)
        case "sleep":
            _print_sleep(measured)
        case "functions":
            _print_functions(measured)
        case "core":
            _print_core(measured)
        case "startup":
            _print_startup(measured)
        case "idle":
            _print_idle(measured)
        case _:
            raise AssertionError(part)


def _print_functions(rates: list[CallRate]) -> None:
    rows = [
        (
            rate.name,
            rate.problem or f"{rate.submit_per_s:,.0f}",
            "" if rate.problem else f"{rate.dependent_per_s:,.0f}",
        )
        for rate in rates
    ]
    _print_table("no-op Python calls, 2 workers", ("", "calls/s", "one after the other/s"), rows)


def _print_true(timings: list[Timing]) -> None:
    floor = timings[0].tasks_per_s
    rows = [
        (
            timing.name,
            f"{timing.tasks_per_s:,.0f}",
            f"{timing.tasks_per_s / floor:.2f}" if floor else "",
            wording.duration(timing.startup_s),
        )
        if not timing.problem
        else (timing.name, "-", "-", "-")
        for timing in timings
    ]
    _print_table(f"/bin/true, {TRUE_SLOTS} slots", ("", "tasks/s", "of the floor", "start-up"), rows)
    _print_problems(timings)


def _print_sleep(timings: list[Timing]) -> None:
    ideal_per_s = SLEEP_SLOTS / SLEEP_S
    rows = [
        (timing.name, f"{timing.wall_s:.2f} s", f"{timing.tasks_per_s / ideal_per_s:.3f}")
        if not timing.problem
        else (timing.name, "-", "-")
        for timing in timings
    ]
    _print_table(f"sleep {SLEEP_S}, {SLEEP_SLOTS} slots", ("", "wall", "ideal/wall"), rows)
    _print_problems(timings)


def _print_problems(timings: list[Timing]) -> None:
    for timing in timings:
        if timing.problem:
            click.echo(f"  {timing.name}: not measured: {timing.problem}")


def _print_core(timings: list[CoreTiming]) -> None:
    rows = [
        (
            f"{timing.tasks:,}",
            f"{timing.workers:,}",
            f"{timing.tasks_per_s:,.0f}",
            f"{1e6 / timing.tasks_per_s:.1f}",
        )
        for timing in timings
    ]
    _print_table(
        "the scheduler alone (one slot a worker)", ("tasks", "workers", "tasks/s", "us per task"), rows
    )


def _print_startup(startup: Startup) -> None:
    rows = [
        (name, wording.duration(wall_s), f"{wall_s / startup.mpi4py_s:.2f}")
        for name, wall_s in (
            ("mpiexec -n 2 keystone-mpi run", startup.keystone_s),
            ('mpiexec -n 2 python -c "import mpi4py.MPI"', startup.mpi4py_s),
            ("the same, with numpy and h5py on rank 0", startup.h5py_s),
            ("keystone-mpi run", startup.local_s),
        )
    ]
    _print_table("one trivial task, from nothing to done", ("", "wall", "of mpi4py's"), rows)


def _print_idle(processes: list[IdleProcess]) -> None:
    rows = [(process.name, f"{process.percent:.2f}%") for process in processes]
    ours = sum(process.percent for process in processes if "not ours" not in process.name)
    rows.append(("all of the runner's", f"{ours:.2f}%"))
    _print_table("while every slot sleeps, 3 ranks", ("process", "of a core"), rows)


def _print_table(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table under its title."""
    click.echo(f"\n{title}")
    for line in wording.table(heads, rows):
        click.echo(f"  {line}")
