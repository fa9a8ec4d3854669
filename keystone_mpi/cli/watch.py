"""`keystone-mpi status --watch`: a run seen live, from another process.

Rule: each look opens file and journal anew, takes no lock and changes nothing,
not even the file of a run that died: it says so. A look that takes long makes
the next one wait longer, so watching a large run costs it nothing.

    open_run --> RunView --look--> Look --render--> a screen (terminal) or lines (elsewhere)
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from keystone_mpi.cli import wording
from keystone_mpi.cli.failure_lines import (
    common_of_view,
    failed_tasks_of_view,
    failure_lines,
)
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.cli.opening import open_run
from keystone_mpi.core.model import FINAL_STATES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from keystone_mpi.records.view import AttemptView, RunView

COST_SHARE = 0.05
"""A look may take this share of the time."""
WORKERS_SHOWN = 12
TASKS_SHOWN = 6
"""Running tasks named per worker."""
FAILURES_SHOWN = 5
STYLES = {"running": "cyan", "complete": "green", "interrupted": "yellow", "died": "red", "silent": "red"}
SENTENCES = {
    "running": "is running",
    "complete": "is complete",
    "interrupted": "was stopped with work left",
    "died": "died; nothing that was recorded is lost",
    "silent": "is silent: dead, suspended, or cut off from the disk",
}


class WorkerLook(msgspec.Struct, frozen=True):
    """One worker at this moment."""

    host: str
    rank: int
    slots: int
    running: list[tuple[int, float]]
    """(task, seconds that it has run), the longest first."""


class Look(msgspec.Struct, frozen=True):
    """What a look at a run saw."""

    name: str
    path: str
    phase: str
    reason: str
    total: int
    completed: int
    failed: int
    running: int
    pending: int
    rate_per_s: float
    eta_s: float
    elapsed_s: float
    workers: list[WorkerLook]
    waiting: list[str]
    problem: str
    draining: bool
    failures: list[str]
    """Lines about what failed."""

    @property
    def done(self) -> int:
        """Tasks that have their final state."""
        return self.completed + self.failed


def watch_run(
    file: Path,
    interval_s: float,
    *,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Show the run of `file` until it ends.

    Parameters
    ----------
    file : Path
    interval_s : float
        Between two looks, at least.
    console : rich.console.Console, optional
        Where to draw; None: standard output.
    sleep : callable, optional
        Waits between two looks.
    """
    from rich.console import Console
    from rich.live import Live

    screen = console or Console(highlight=False)
    if not screen.is_terminal:
        return _watch_in_lines(file, interval_s, sleep)
    with Live(console=screen, auto_refresh=False, transient=False) as live:
        try:
            while True:
                began = time.monotonic()
                seen = look_at(file)
                live.update(render(seen, screen.height), refresh=True)
                if seen.phase != "running":
                    return EXIT_OK
                sleep(max(interval_s, (time.monotonic() - began) / COST_SHARE))
        except KeyboardInterrupt:
            return EXIT_OK  # to stop watching is no failure, and the run goes on


def _watch_in_lines(file: Path, interval_s: float, sleep: Callable[[float], None]) -> int:
    """Write one line per look that saw something new."""
    former = ""
    while True:
        began = time.monotonic()
        seen = look_at(file)
        line = _line(seen)
        if line != former or seen.phase != "running":
            click.echo(line)
        former = line
        if seen.phase != "running":
            for text in seen.failures:
                click.echo(text)
            return EXIT_OK
        sleep(max(interval_s, (time.monotonic() - began) / COST_SHARE))


def look_at(file: Path) -> Look:
    """Look at a run once."""
    with open_run(file) as view:
        return look(view, time.time())


def look(view: RunView, now: float) -> Look:
    """Gather what is shown of a run."""
    counts = view.counts()
    phase = view.phase
    running = phase == "running"
    lease = view.lease if running else None
    said: dict[str, Any] = lease.status if lease is not None else {}
    first, last = view.first_started, view.last_finished
    rate = float(said.get("rate_per_s") or 0.0)
    eta_s = said.get("eta_s")
    failed = failed_tasks_of_view(view) if counts.failed else []
    return Look(
        name=view.sweep_name,
        path=wording.path(view.path),
        phase="silent" if view.is_silent else phase,
        reason=view.reason if not running else "",
        total=counts.total,
        completed=counts.completed,
        failed=counts.failed,
        running=counts.running,
        pending=counts.pending,
        rate_per_s=rate or (_recent_rate(view, now) if running else 0.0),
        eta_s=float(eta_s) if eta_s is not None else math.nan,
        elapsed_s=(now if running else last) - first,
        workers=_workers(view, now) if running else [],
        waiting=[item["text"] for item in said.get("waiting") or []],
        problem=said.get("problem") or "",
        draining=running and Path(f"{view.path}.drain").exists(),
        failures=_failures(view, failed, counts.failed),
    )


def _failures(view: RunView, failed: list[Any], count: int) -> list[str]:
    from keystone_mpi.analysis.failures import group_failures

    groups = group_failures(failed)
    lines = failure_lines(groups, common_of_view(view, failed), count, limit=FAILURES_SHOWN)
    return lines[1:]  # without the empty line before


def _recent_rate(view: RunView, now: float) -> float:
    """Return the tasks per second of the recent past; 0: not known."""
    import numpy as np

    ended = int(np.isin(view.states, [int(state) for state in FINAL_STATES]).sum())
    first = view.first_started
    return ended / (now - first) if ended >= 2 and now > first else 0.0


def _workers(view: RunView, now: float) -> list[WorkerLook]:
    """Return the present workers with what each runs."""
    flights: dict[int, list[AttemptView]] = {}
    for attempt in view.in_flight:
        flights.setdefault(attempt.worker, []).append(attempt)
    found = []
    for worker in view.workers:
        if worker.epoch != view.epoch or worker.left == worker.left:
            continue
        own = flights.get(worker.worker, [])
        # Handed out ahead of time: they wait on the worker for a slot.
        own.sort(key=lambda item: item.started if item.started == item.started else item.assigned)
        tasks = [
            (item.index, now - (item.started if item.started == item.started else item.assigned))
            for item in own[: worker.slots]
        ]
        found.append(WorkerLook(worker.host, worker.rank, worker.slots, tasks))
    return sorted(found, key=lambda worker: (worker.rank, worker.host))


def _line(seen: Look) -> str:
    """Say a look in one line."""
    counts = wording.joined(
        f"{name} {number:,}"
        for name, number in (
            ("done", seen.completed),
            ("failed", seen.failed),
            ("running", seen.running),
            ("pending", seen.pending),
        )
    )
    pace = wording.joined((wording.rate(seen.rate_per_s), _left(seen))) if seen.phase == "running" else ""
    where = f"{seen.name} {SENTENCES[seen.phase]}: {seen.done:,}/{seen.total:,}"
    return wording.joined((where, counts, pace))


def _left(seen: Look) -> str:
    return f"about {wording.duration(seen.eta_s)} left" if math.isfinite(seen.eta_s) else ""


def render(seen: Look, height: int = 40) -> RenderableType:
    """Draw a look for a terminal of so many lines."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [
        Text.assemble(
            (seen.name, "bold"),
            " ",
            (SENTENCES[seen.phase], STYLES[seen.phase]),
            f" ({seen.reason})" if seen.reason else "",
            (f"   {seen.path}", "dim"),
        )
    ]
    share = 100.0 * seen.done / seen.total if seen.total else 100.0
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(width=4, justify="right")
    bar.add_column(ratio=1)
    style = "red" if seen.failed and not seen.completed else "cyan" if seen.phase == "running" else "green"
    bar.add_row(
        f"{math.floor(share)}%",
        ProgressBar(
            total=max(seen.total, 1), completed=seen.done, complete_style=style, finished_style=style
        ),
    )
    parts.append(bar)
    parts.append(
        Text.assemble(
            f"{seen.done:,} of {wording.count(seen.total, 'task')}   ",
            (f"done {seen.completed:,}", "green"), "   ",
            (f"failed {seen.failed:,}", "bold red" if seen.failed else "dim"), "   ",
            (f"running {seen.running:,}", "cyan"), f"   pending {seen.pending:,}",
        )
    )  # fmt: skip
    pace = wording.joined(
        (
            f"{wording.clock(seen.elapsed_s)} elapsed" if seen.elapsed_s > 0 else "",
            wording.rate(seen.rate_per_s),
            _left(seen) if seen.phase == "running" else "",
        )
    )
    if pace:
        parts.append(Text(pace, style="dim"))
    if seen.problem:
        parts.append(Text(f"problem: {seen.problem}", style="yellow"))
    if seen.draining:
        parts.append(Text("asked to drain: what runs is finished, nothing more is started", style="yellow"))
    parts += [Text(f"waiting: {text}", style="yellow") for text in seen.waiting[:4]]
    room = max(3, height - len(parts) - len(seen.failures) - 5)
    if seen.workers:
        parts += ["", _worker_table(seen.workers, min(WORKERS_SHOWN, room))]
    if seen.failures:
        parts.append("")
        parts += [Text(text, overflow="ellipsis", no_wrap=True) for text in seen.failures]
    if seen.phase == "running":
        parts.append(Text("Ctrl-C leaves the run alone", style="dim"))
    elif seen.phase in ("died", "silent", "interrupted"):
        parts.append(Text("the same run command continues it", style="dim"))
    return Group(*parts)


def _worker_table(workers: list[WorkerLook], limit: int) -> Any:
    """Draw who runs what; of many workers those that have run something longest."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column("worker", header_style="dim", no_wrap=True, max_width=24, overflow="ellipsis")
    table.add_column("rank", justify="right", header_style="dim", no_wrap=True)
    table.add_column("busy", justify="right", header_style="dim", no_wrap=True)
    table.add_column("runs (for how long)", header_style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
    shown = workers
    if len(workers) > limit:
        longest = sorted(workers, key=lambda worker: -max((took for _, took in worker.running), default=0.0))
        shown = sorted(longest[:limit], key=lambda worker: worker.rank)
    for worker in shown:
        tasks = ", ".join(
            f"{task} ({wording.duration(max(0.0, took))})" for task, took in worker.running[:TASKS_SHOWN]
        )
        more = len(worker.running) - TASKS_SHOWN
        # Text, so that nothing in a host's name is taken for markup.
        table.add_row(
            Text(worker.host), str(worker.rank), f"{len(worker.running)}/{worker.slots}",
            Text(f"{tasks}, and {more} more" if more > 0 else tasks or "-"),
        )  # fmt: skip
    if len(workers) > limit:
        rest = Counter(worker.host for worker in workers if worker not in shown)
        table.add_row(Text(f"and {sum(rest.values()):,} more", style="dim"))
    return table
