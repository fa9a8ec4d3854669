"""`keystone-mpi diff`: which results changed between two runs, such as of two versions of a solver.

Rule: tasks are matched by their parameters. Exit code 0: nothing changed beyond
the tolerance; 1: something did, or a task or a result is in one run only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from keystone_mpi.cli import wording
from keystone_mpi.cli.analysing import SELECT_HELP, open_for_analysis
from keystone_mpi.cli.main import EXIT_OK

if TYPE_CHECKING:
    from keystone_mpi.analysis.comparing import Change, Comparison
    from keystone_mpi.analysis.run import Run

EXIT_DIFFERENT = 1
STATES_SHOWN = 10


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--rtol", type=click.FloatRange(0), default=1e-9, help="Relative tolerance  [1e-9]")
@click.option("--atol", type=click.FloatRange(0), default=0.0, help="Absolute tolerance  [0]")
@click.option("--result", "names", multiple=True, help="Compare only this result; may be given again.")
@click.option("--ignore", "ignored", multiple=True, help="Leave this result out, such as a timing.")
@click.option("--select", "conditions", multiple=True, metavar="NAME=VALUE", help=SELECT_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    a: Path,
    b: Path,
    rtol: float,
    atol: float,
    names: tuple[str, ...],
    ignored: tuple[str, ...],
    conditions: tuple[str, ...],
    as_json: bool,
) -> int:
    """Say which results of B differ from those of A by more than atol + rtol * |A|."""
    from keystone_mpi.analysis.comparing import compare

    with open_for_analysis(a, conditions) as run_a, open_for_analysis(b, conditions) as run_b:
        wanted = list(names)
        if ignored:
            for name in ignored:
                if name not in run_a.results and name not in run_b.results:
                    run_a.contents.result(name)  # raises, with the near match
            every = names or dict.fromkeys([*run_a.results, *run_b.results])
            wanted = [name for name in every if name not in ignored]
        found = compare(run_a, run_b, rtol=rtol, atol=atol, names=wanted)
        if as_json:
            facts = {"changed": found.changed, "differs": found.differs, **msgspec.structs.asdict(found)}
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")
        else:
            for line in _lines(run_a, run_b, found, rtol, atol):
                click.echo(line)
    return EXIT_DIFFERENT if found.differs else EXIT_OK


def _lines(a: Run, b: Run, found: Comparison, rtol: float, atol: float) -> list[str]:
    """Say it for a person."""
    names = f"{wording.path(a.path)} -> {wording.path(b.path)}"
    lines = [f"{names}: {wording.count(found.matched, 'task')} compared (rtol {rtol:g}, atol {atol:g})"]
    for only, run in ((found.only_a, a), (found.only_b, b)):
        if only:
            first = ", ".join(map(str, only[:4])) + (", ..." if len(only) > 4 else "")
            lines.append(f"  {wording.count(len(only), 'task')} only in {wording.path(run.path)} ({first})")
    for results, run in ((found.results_only_a, a), (found.results_only_b, b)):
        if results:
            lines.append(f"  only in {wording.path(run.path)}: {', '.join(results)}")
    if found.states:
        lines.append(f"  state: {len(found.states):,} changed")
        lines += [f"    {_said(change)}" for change in found.states[:STATES_SHOWN]]
    for result in found.results:
        if result.changed:
            lines.append(
                f"  {result.name}: {result.changed:,} of {result.compared:,} changed, the worst first"
            )
            lines += [f"    {_said(change)}" for change in result.worst]
    same = [result.name for result in found.results if not result.changed]
    if same:
        lines.append(f"  unchanged: {', '.join(same)}")
    if not found.differs:
        lines.append("nothing changed")
    return lines


def _said(change: Change) -> str:
    """Say one change."""
    by = []
    if change.difference is not None:
        by.append(f"by {change.difference:.3g}")
    if change.relative is not None:
        by.append(f"{change.relative:.2e} relative")
    how = f" ({', '.join(by)})" if by else ""
    number = f"task {change.task_a}" + (f" / {change.task_b}" if change.task_a != change.task_b else "")
    params = wording.assignments(change.params)
    return f"{number} {params}: {_value(change.a)} -> {_value(change.b)}{how}"


def _value(value: Any) -> str:
    return "missing" if value is None or value == "" else wording.value(value)
