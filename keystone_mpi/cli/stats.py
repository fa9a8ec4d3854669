"""`keystone-mpi stats`: how well a run used its slots, and what its failures have in common.

Rule: the same numbers as ``get_parallel_execution_stats`` of the Python API;
each ratio is said with what it is divided by.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from keystone_mpi.cli import wording
from keystone_mpi.cli.analysing import SELECT_HELP, open_for_analysis
from keystone_mpi.cli.failure_lines import failure_lines
from keystone_mpi.cli.main import EXIT_OK

if TYPE_CHECKING:
    from keystone_mpi.analysis.run import Run

WORKERS_SHOWN = 12


@click.command("stats")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--select", "conditions", multiple=True, metavar="NAME=VALUE", help=SELECT_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, conditions: tuple[str, ...], as_json: bool) -> int:
    """Say how well the run of FILE used its slots."""
    with open_for_analysis(file, conditions) as run:
        stats = run.stats()
        if as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(stats), indent=2).decode() + "\n")
        else:
            for line in _lines(run, stats):
                click.echo(line)
    return EXIT_OK


def _lines(run: Run, stats: dict[str, Any]) -> list[str]:
    """Say it for a person."""
    counts = wording.joined(
        f"{stats[name]:,} {name}" for name in ("completed", "failed", "running", "pending") if stats[name]
    )
    lines = [
        f"{run.name} ({wording.path(run.path)}): {wording.count(stats['total_tasks'], 'task')}, {counts}"
    ]
    if stats["elapsed_s"] <= 0:
        return [*lines, "no attempt has ended yet"]
    say = wording.duration
    overhead, wait = stats["dispatch_overhead_s"], stats["queue_wait_s"]
    starts = f", summed over {stats['starts']} starts" if stats["starts"] > 1 else ""
    again = f"; {say(stats['retry_duration'])} more went into repeated attempts"
    rows = [
        ("elapsed", f"{say(stats['elapsed_s'])}, first start to last end{starts}"),
        ("task time", f"{say(stats['total_duration'])}{again if stats['retry_duration'] > 0 else ''}"),
        (
            "per task",
            f"mean {say(stats['avg_duration'])}, median {say(stats['median_duration'])}, "
            f"shortest {say(stats['min_duration'])}, longest {say(stats['max_duration'])}",
        ),
        ("speedup", f"{stats['speedup']:.3g} (task time / elapsed)"),
        ("efficiency", f"{stats['efficiency']:.1%} (speedup / {stats['usable_slots']:.3g} usable slots)"),
        ("utilisation", f"{stats['utilisation']:.1%} of the time of {stats['slots']:.3g} slots"),
        (
            "overhead",
            f"{say(overhead['median'])} median, {say(overhead['max'])} longest between two tasks of a slot",
        ),
        ("queue wait", f"{say(wait['median'])} median, {say(wait['max'])} longest from submission to start"),
        (
            "tail",
            f"{say(stats['tail_s'])} from the first idle slot to the end, "
            f"{say(stats['tail_idle_slot_s'])} of slot time idle in it",
        ),
    ]
    lines += [f"  {name:<12} {text}" for name, text in rows]
    lines += _worker_lines(stats)
    lines += failure_lines(stats["failures"], stats["common"], stats["failed"])
    return lines


def _worker_lines(stats: dict[str, Any]) -> list[str]:
    """Return the table of workers, the least used first."""
    workers = [worker for worker in stats["workers"] if worker["present_s"] > 0 or worker["attempts"]]
    workers.sort(key=lambda worker: worker["utilisation"])
    rows = [
        (
            worker["host"], str(worker["rank"]), str(worker["slots"]), f"{worker['attempts']:,}",
            wording.duration(worker["busy_s"]), f"{worker['utilisation']:.0%}",
        )
        for worker in workers[:WORKERS_SHOWN]
    ]  # fmt: skip
    if not rows:
        return []
    table = wording.table(("host", "rank", "slots", "attempts", "busy", "utilisation"), rows)
    more = len(workers) - len(rows)
    return [
        "",
        "workers, the least used first:",
        *(f"  {line}" for line in table),
        *([f"  and {more:,} more (--json has all)"] if more else []),
    ]
