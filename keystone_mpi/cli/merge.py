"""``keystone-mpi merge``: the files of a job array's elements become one.

Rule: it may be run at any time and again; what is missing is said, and the
exit code tells a script whether anything is.

    NAME.shard-*-of-N.h5 --merge--> NAME.h5, 0 (every task has ended) | 75 (something is missing yet)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from keystone_mpi.cli import wording
from keystone_mpi.cli.main import EXIT_AGAIN, EXIT_OK

if TYPE_CHECKING:
    from keystone_mpi.slurm.merging import Merged

SHARDS_SHOWN = 10


@click.command("merge")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Results file  [default: NAME.h5 here]")
@click.option("--shards", type=click.IntRange(1), metavar="N", help="Of the array of N elements.")
@click.option("--accept-changed", is_flag=True, help="Also merge what another command or script has run.")
@click.option("--clean", is_flag=True, help="Then remove the shards' files.")
def command(file: Path, output: Path | None, shards: int | None, accept_changed: bool, clean: bool) -> int:
    """Merge the shards of FILE: a results file (NAME.h5), or the sweep file.

    Works while some shards are missing; run it again when they are there.
    """
    from keystone_mpi.slurm import merging
    from keystone_mpi.sweeps.load import load_sweep

    sweep = None
    if file.suffix == ".h5":
        path = Path.cwd() / (output or file)
    else:
        sweep = load_sweep(file, start_dir=Path.cwd(), check_programs=False)
        path = Path.cwd() / (output or f"{sweep.name}.h5")
    if not path.parent.is_dir():
        raise click.UsageError(f"{path.parent}: no such folder")
    result = merging.merge(
        path, sweep, count=shards, accept_changed=accept_changed, command_line=list(sys.argv)
    )
    for line in merged_lines(wording.path(path), result):
        click.echo(line)
    if clean:
        removed = merging.clean(path, result)
        click.echo(f"removed {wording.count(len(removed), 'file')} of the array")
    return EXIT_OK if result.complete else EXIT_AGAIN


def merged_lines(path: str, result: Merged) -> list[str]:
    """Say what was merged and what is missing."""
    shards = f"{len(result.gathered)} of {wording.count(result.count, 'shard')}"
    if result.changed:
        lines = [f"{path}: merged {shards}: {wording.count(result.added, 'attempt')} added"]
    else:
        lines = [f"{path}: nothing to do: it holds all that {shards} have"]
    for numbers, what in ((result.missing, "missing"), (result.running, "still being written, left out")):
        if numbers:
            shown = ", ".join(map(str, numbers[:SHARDS_SHOWN]))
            more = f" and {len(numbers) - SHARDS_SHOWN} more" if len(numbers) > SHARDS_SHOWN else ""
            lines.append(f"  {what}: {'shard' if len(numbers) == 1 else 'shards'} {shown}{more}")
    if result.unfinished:
        left = sum(result.unfinished.values())
        shown = ", ".join(map(str, list(result.unfinished)[:SHARDS_SHOWN]))
        lines.append(f"  not finished: {wording.count(left, 'task')} of shards {shown}")
    total = wording.count(result.total, "task")
    lines.append(f"  {result.ended:,} of {total} have ended, {result.succeeded:,} succeeded")
    if result.problem:
        lines.append(f"  the file does not hold all of them yet ({result.problem}); run the merge again")
    elif not result.complete:
        lines.append(
            "  next: submit the array again (elements that are done have nothing to do), then merge again; "
            "or `keystone-mpi run` the sweep, which runs what is left"
        )
    return lines
