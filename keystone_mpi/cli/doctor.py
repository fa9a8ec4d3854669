"""`keystone-mpi doctor`: look at this machine and its MPI, and say what to change.

Rule: it changes nothing. Exit code 0 when nothing failed (warnings are only
said), 1 otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from keystone_mpi.cli.doctor_checks import Check, machine_checks, run_checks
from keystone_mpi.core.errors import UserError

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command("doctor")
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(folder: Path | None, as_json: bool) -> int:
    """Check this machine and the MPI seen from here; say what to change.

    FOLDER is where results will lie; the present folder if not given.
    """
    from keystone_mpi.cli.doctor_mpi import MpiDoctor

    place = (folder or Path.cwd()).absolute()
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; name the one that will hold the results")
    found = []
    for check in run_checks([*machine_checks(place), *MpiDoctor().checks()]):
        found.append(check)
        if not as_json:
            _print_check(check)
    failed = sum(check.level == "fail" for check in found)
    warned = sum(check.level == "warn" for check in found)
    if as_json:
        summary = {"ok": failed == 0, "failed": failed, "warned": warned, "checks": found}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(summary), indent=2).decode() + "\n")
    elif failed:
        click.echo(f"\n{failed} to mend, {warned} to know of")
    else:
        click.echo(f"\nall is well{f', {warned} to know of' if warned else ''}")
    return 1 if failed else 0


def _print_check(check: Check) -> None:
    """Print one line for what was found and one for what to change, as each check ends."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        Text.assemble((f"{check.level:<5}", STYLES[check.level]), (f"{check.name}: ", "bold"), check.found)
    )
    if check.advice:
        console.print(Text(f"     -> {check.advice}"))
