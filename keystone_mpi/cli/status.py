"""`keystone-mpi status`: how far a run is, from any shell, while it runs or after.

Rule: it takes no lock and disturbs nothing. Of a run that died it says so, and
puts what the journal holds into the file, as the next start would; unless the
master, on another machine, is only silent: it may go on.

    open_recovered --> RunView --collect_facts--> table or one JSON object
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from keystone_mpi.cli import wording
from keystone_mpi.cli.failure_lines import (
    GROUPS,
    common_of_view,
    failed_tasks_of_view,
    failure_lines,
)
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.cli.opening import open_recovered
from keystone_mpi.core.errors import UserError

if TYPE_CHECKING:
    from keystone_mpi.records.view import RunView

SENTENCES = {
    "running": "is running",
    "complete": "is complete",
    "interrupted": "was stopped with work left; the same run command continues it",
    "died": "died; nothing that was reported is lost, and the same run command continues it",
    "silent": "is silent; if it is dead, the same run command takes over and continues it",
}


@click.command("status")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-w", "--watch", is_flag=True, help="Keep looking until the run ends; Ctrl-C leaves it alone.")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, help="Seconds between two looks  [1]")
def command(file: Path, as_json: bool, watch: bool, interval: float) -> int:
    """Say how far the run that writes FILE is.

    Works while it runs, after it ended and after it died; takes no lock.
    """
    if watch:
        if as_json:
            raise UserError("--watch and --json exclude each other; for programs: --json, again and again")
        from keystone_mpi.cli.watch import watch_run

        return watch_run(file, interval)
    view, phase, recovery = open_recovered(file)
    with view:
        facts = collect_facts(view, phase, recovery)
        if as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")
        else:
            _print_facts(facts, view)
    return EXIT_OK


def collect_facts(view: RunView, phase: str, recovery: str = "") -> dict[str, Any]:
    """Return what there is to say of a run, ready for JSON.

    Parameters
    ----------
    view : RunView
        The run as it is now.
    phase : str
        What it was before a recovery.
    recovery : str
        What was done; empty: nothing.
    """
    from keystone_mpi.analysis.failures import group_failures

    counts = view.counts()
    lease = view.lease if phase == "running" else None
    said: dict[str, Any] = lease.status if lease is not None else {}
    done = counts.completed + counts.failed
    failed = failed_tasks_of_view(view) if counts.failed else []
    return {
        "name": view.sweep_name,
        "path": str(view.path.absolute()),
        "run_id": view.run_id,
        "state": phase,
        "reason": view.reason if phase != "running" else "",
        "total": counts.total,
        "completed": counts.completed,
        "failed": counts.failed,
        "running": counts.running,
        "pending": counts.pending,
        "timed_out": counts.timed_out,
        "out_of_memory": counts.out_of_memory,
        "cancelled": counts.cancelled,
        "all_complete": done == counts.total,
        "all_succeeded": counts.completed == counts.total,
        "starts": view.epoch,
        "created": view.created,
        "rate_per_s": said.get("rate_per_s"),
        "eta_s": said.get("eta_s"),
        "workers": said.get("workers"),
        "slots": said.get("slots"),
        "waiting": said.get("waiting") or [],
        "task_progress": said.get("task_progress") or {},
        "problem": "; ".join(text for text in (said.get("problem") or "", *view.lost) if text),
        "master": lease.holder() if lease is not None else "",
        "draining": lease is not None and Path(f"{view.path}.drain").exists(),
        "recovery": recovery,
        "failures": group_failures(failed)[:GROUPS],
        "common": common_of_view(view, failed),
    }


def _print_facts(facts: dict[str, Any], view: RunView) -> None:
    """Print them for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    path = wording.path(facts["path"])
    style = {"running": "cyan", "complete": "green"}.get(facts["state"], "yellow")
    console.print(Text.assemble((facts["name"], "bold"), f" ({path}) ", (SENTENCES[facts["state"]], style)))
    if facts["state"] == "interrupted" and facts["reason"]:
        console.print(Text(f"  stopped by: {facts['reason']}"))
    if facts["recovery"]:
        console.print(Text(f"  {facts['recovery']}"))

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    total = facts["total"]
    for name in ("total", "completed", "failed", "running", "pending"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{facts[name]:,}" for name in ("total", "completed", "failed", "running", "pending")))
    shares = ["", *(_share(facts[name], total) for name in ("completed", "failed", "running", "pending"))]
    table.add_row(*shares, style="dim")
    console.print(table)

    console.print(Text(_pace_line(facts, view)))
    if facts["problem"]:
        console.print(Text(f"problem: {facts['problem']}", style="yellow"))
    if facts["draining"]:
        console.print(Text("asked to drain: what runs is finished, nothing more is started", style="yellow"))
    if facts["task_progress"]:
        console.print(Text(f"running: {wording.task_progress(facts['task_progress'], 8)}"))
    for waiting in facts["waiting"]:
        console.print(Text(f"waiting: {waiting['text']}"))
    if facts["failures"]:
        _print_failures(facts, path, console)


def _print_failures(facts: dict[str, Any], path: str, console: Any) -> None:
    """Print the kinds of failure and how to look into one."""
    from rich.text import Text

    for line in failure_lines(facts["failures"], facts["common"], facts["failed"], causes=_causes(facts)):
        console.print(Text(line))
    example = facts["failures"][0].tasks[0]
    console.print(Text(f"look at one: {wording.command('keystone-mpi', 'show', path, example)}"))
    if facts["state"] != "running":
        console.print(Text("run them again: the same run command with --retry-failed"))


def _causes(facts: dict[str, Any]) -> str:
    """Say which of the failures have a cause of their own."""
    return wording.joined(
        f"{facts[name]:,} {said}"
        for name, said in (
            ("timed_out", "timed out"),
            ("out_of_memory", "out of memory"),
            ("cancelled", "cancelled"),
        )
        if facts[name]
    )


def _share(number: int, total: int) -> str:
    """Say a share, never rounded up to all nor down to nothing."""
    if not total or not number:
        return "0%" if total else ""
    percent = 100.0 * number / total
    if percent < 1:
        return "<1%"
    return f"{int(percent)}%"


def _pace_line(facts: dict[str, Any], view: RunView) -> str:
    """Say how fast it is, or when it was."""
    started = wording.local_time(facts["created"])
    starts = wording.count(facts["starts"], "start")
    if facts["state"] == "running":
        eta_s = facts["eta_s"]
        lease = view.lease
        age = f"heard of {wording.duration(max(0.0, time.time() - lease.stamp))} ago" if lease else ""
        return wording.joined(
            (
                wording.rate(facts["rate_per_s"] or 0.0),
                f"about {wording.duration(eta_s)} left" if eta_s is not None else "",
                wording.count(facts["workers"], "worker") if facts["workers"] else "",
                wording.count(facts["slots"], "slot") if facts["slots"] else "",
                f"first started {started} ({starts})",
                f"{facts['master']}, {age}",
            )
        )
    first, last = view.first_started, view.last_finished
    return wording.joined(
        (
            f"first started {started} ({starts})",
            f"last task ended {wording.local_time(last)}" if last == last else "",
            f"{wording.duration(last - first)} from first to last" if last >= first else "",
        )
    )
