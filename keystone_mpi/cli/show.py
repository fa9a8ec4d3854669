"""`keystone-mpi show`: everything known of one task.

Rule: what a person needs to understand a failure, in the order in which they
ask: what was run, how it ended, what it said, and how to run it again.
"""

from __future__ import annotations

import math
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from keystone_mpi.cli import wording
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.cli.opening import open_recovered
from keystone_mpi.cli.spelling import index_in_whole, spell_out
from keystone_mpi.core.errors import UserError
from keystone_mpi.core.model import Outcome, TaskState, Why

if TYPE_CHECKING:
    from keystone_mpi.records.view import AttemptView, RunView, TaskView

TAIL_LINES = 20
LONGEST_VALUES = 8
"""Elements of an array that are shown."""

STATE_STYLES = {
    TaskState.SUCCESS: "green",
    TaskState.RUNNING: "cyan",
    TaskState.PENDING: "",
    TaskState.CANCELLED: "yellow",
}
"""Any other state is red."""


@click.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("task")
@click.option("--lines", type=click.IntRange(0), default=TAIL_LINES, help="Lines of output shown  [20]")
@click.option("--stdout", "stream", flag_value="stdout", help="Print its standard output, nothing else.")
@click.option("--stderr", "stream", flag_value="stderr", help="Print its standard error, nothing else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, task: str, lines: int, stream: str | None, as_json: bool) -> int:
    """Show everything known of TASK of FILE."""
    view, phase, recovery = open_recovered(file)
    if phase == "silent":
        click.echo(f"{file}: {recovery}", err=True)
    with view:
        shown = view.task(view.index_of_id(task))
        if stream is not None:
            _print_stream(view, shown, stream)
        elif as_json:
            _print_json(view, shown)
        else:
            _print_task(view, shown, lines)
    return EXIT_OK


def command_line(view: RunView, task: TaskView) -> str:
    """Return the task's command as it can be pasted into a shell."""
    recorded = next((attempt.command for attempt in reversed(task.attempts) if attempt.command), "")
    if recorded:
        return recorded
    try:
        _, launch = spell_out(view, task.index, Path(tempfile.gettempdir()))
    except UserError as error:
        return f"(cannot be spelled out: {error})"
    return wording.command(*launch.argv)


def ending(attempt: AttemptView) -> str:
    """Say how an attempt ended: ``exit code 3``, ``signal SEGV``, or nothing when its outcome says it all."""
    if attempt.signal:
        try:
            return f"signal {signal.Signals(attempt.signal).name.removeprefix('SIG')}"
        except ValueError:
            return f"signal {attempt.signal}"
    return f"exit code {attempt.exit_code}" if attempt.exit_code >= 0 else ""


def _print_stream(view: RunView, task: TaskView, stream: str) -> None:
    """Print what the last attempt that ended wrote, whole if it was kept."""
    ended = [attempt for attempt in task.attempts if attempt.outcome is not None]
    if not ended:
        raise UserError(f"{view.path}: task {task.task_id} has no attempt that ended")
    attempt = ended[-1]
    whole = view.output(task.index, attempt.number, stream)
    tail = attempt.stdout_tail if stream == "stdout" else attempt.stderr_tail
    sys.stdout.buffer.write(tail.encode(errors="surrogateescape") if whole is None else whole)
    sys.stdout.buffer.flush()


def _print_json(view: RunView, task: TaskView) -> None:
    """Print all of it for a program."""
    facts = {
        "path": str(view.path.absolute()),
        "task": task.task_id,
        "index": task.index,
        "state": task.state.name,
        "why": task.why.name,
        "error": task.error,
        "command": command_line(view, task),
        "params": task.params,
        "results": task.results,
        "attempts": [_attempt_facts(attempt) for attempt in task.attempts],
    }
    encoded = msgspec.json.encode(facts, enc_hook=_plain)
    sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")


def _attempt_facts(attempt: AttemptView) -> dict[str, Any]:
    """Return an attempt with its enums by name."""
    names = [name for name in attempt.__dataclass_fields__ if name not in ("worker", "index")]
    return {
        **{name: getattr(attempt, name) for name in names},
        "outcome": attempt.outcome.name if attempt.outcome is not None else "RUNNING",
        "why": attempt.why.name,
    }


def _plain(value: Any) -> Any:
    """Turn numpy's values into JSON's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(type(value).__name__)


def _print_task(view: RunView, task: TaskView, lines: int) -> None:
    """Print all of it for a person."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    path = wording.path(view.path)
    why = "" if task.why == Why.NONE else f" ({task.why.name.lower().replace('_', ' ')})"
    console.print(
        Text.assemble(
            (f"task {task.task_id}", "bold"),
            f" of {view.sweep_name} ({path}): ",
            (task.state.name, STATE_STYLES.get(task.state, "red")),
            why,
        )
    )
    whole = index_in_whole(view, task.index)
    if whole is not None:
        console.print(Text(f"in the whole sweep, and to its solver, it is task {whole}"))
    if task.error:
        console.print(Text(f"error:    {task.error}"))
    console.print(Text(f"params:   {wording.assignments(_in_order(view, task.params)) or 'none'}"))
    console.print(Text(f"command:  {command_line(view, task)}"))
    if task.results:
        console.print(Text("results:"))
        width = max(map(len, task.results))
        for name, item in task.results.items():
            console.print(Text(f"  {name:<{width}}  {_value(item)}"))
    if task.attempts:
        _print_attempts(task, console)
        _print_tails(task, lines, console)
    else:
        console.print(
            Text("it has not been started yet" if task.state == TaskState.PENDING else "no attempt")
        )
    console.print(Text(f"run it here: {wording.command('keystone-mpi', 'rerun', path, task.task_id)}"))


def _in_order(view: RunView, params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters in the order of the sweep file; the file's own order is the alphabet's."""
    from keystone_mpi.records.programs import is_program
    from keystone_mpi.sweeps.load import sweep_from_spec

    if is_program(view.spec):
        return params  # as the program gave them
    names = [name for name in sweep_from_spec(view.spec).space.names if name in params]
    return {name: params[name] for name in [*names, *(set(params) - set(names))]}


def _print_attempts(task: TaskView, console: Any) -> None:
    """Print the table of attempts."""
    heads = ("", "outcome", "ended by", "host", "cpus", "started", "took", "cpu time", "max RSS")
    rows = []
    for attempt in task.attempts:
        running = attempt.outcome is None
        rows.append(
            (
                str(attempt.number),
                "running" if attempt.outcome is None else attempt.outcome.name.lower().replace("_", " "),
                "" if running else ending(attempt),
                attempt.host or "-",
                ",".join(map(str, attempt.cpus)) or "any",
                wording.local_time(attempt.started if math.isfinite(attempt.started) else attempt.assigned),
                wording.duration(attempt.duration_s),
                "" if running else wording.duration(attempt.user_s + attempt.system_s),
                "" if running or not attempt.max_rss_bytes else wording.size(attempt.max_rss_bytes),
            )
        )
    console.print("attempts:")
    for line in wording.table(heads, rows, left=6):
        console.print(f"  {line}", markup=False)
    for attempt in task.attempts:
        if attempt.error and attempt.error != task.error:
            console.print(f"  attempt {attempt.number}: {attempt.error}", markup=False)
        if attempt.work_path:
            kept = wording.count(len(attempt.artifacts), "kept file") if attempt.artifacts else "kept whole"
            console.print(f"  attempt {attempt.number}: {attempt.work_path} ({kept})", markup=False)


def _print_tails(task: TaskView, lines: int, console: Any) -> None:
    """Print the end of what the last attempt that ended wrote."""
    ended = [attempt for attempt in task.attempts if attempt.outcome not in (None, Outcome.INTERRUPTED)]
    if not ended or not lines:
        return
    attempt = ended[-1]
    for name, tail, size_bytes in (
        ("stdout", attempt.stdout_tail, attempt.stdout_bytes),
        ("stderr", attempt.stderr_tail, attempt.stderr_bytes),
    ):
        if not tail.strip():
            continue
        shown = tail.rstrip("\n").split("\n")
        whole = len(shown) <= lines and len(tail.encode(errors="surrogateescape")) >= size_bytes
        part = "" if whole else f", the last {wording.count(min(lines, len(shown)), 'line')}"
        console.print(f"{name} of attempt {attempt.number}{part} ({wording.size(size_bytes)}):", markup=False)
        for line in shown[-lines:]:
            console.print(f"  | {line}", markup=False)


def _value(item: Any) -> str:
    """Say a result: a scalar, or the beginning of an array with its shape."""
    shape = getattr(item, "shape", ())
    if not shape:
        return wording.value(item.item() if hasattr(item, "item") else item)
    flat = item.ravel()
    first = ", ".join(wording.value(value) for value in flat[:LONGEST_VALUES].tolist())
    more = ", ..." if flat.size > LONGEST_VALUES else ""
    return f"{item.dtype} array {' x '.join(map(str, shape))}: {first}{more}"
