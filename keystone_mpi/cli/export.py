"""`keystone-mpi export`: a table of a run as CSV, JSON or Parquet.

Rule: the format is the suffix of the output; a table on standard output is CSV
unless --format says otherwise. Nothing half-written is left.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from keystone_mpi.cli import wording
from keystone_mpi.cli.analysing import SELECT_HELP, open_for_analysis
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.core.errors import UserError

FORMATS = ("csv", "json", "parquet")
TABLES = ("tasks", "attempts", "workers")


@click.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to write; standard output if not given."
)
@click.option("--table", type=click.Choice(TABLES), default="tasks", help="Which table  [tasks]")
@click.option("--format", "form", type=click.Choice(FORMATS), help="If the output's suffix does not say it.")
@click.option("--select", "conditions", multiple=True, metavar="NAME=VALUE", help=SELECT_HELP)
def command(
    file: Path, output: Path | None, table: str, form: str | None, conditions: tuple[str, ...]
) -> int:
    """Write a table of FILE: one row per task with its parameters and results.

    Array results have no place in a table; xarray reads them from FILE itself.
    """
    from keystone_mpi.analysis.exporting import TABLES as NAMES
    from keystone_mpi.analysis.exporting import (
        beside,
        table_columns,
        write_csv,
        write_json,
        write_parquet,
    )

    name = next(item for item in NAMES if item == table)
    form = form or _form_of(output)
    if form == "parquet" and output is None:
        raise UserError("Parquet is not text: name a file with -o FILE.parquet")
    with open_for_analysis(file, conditions) as run:
        columns = table_columns(run, name)
        if output is None:
            (write_json if form == "json" else write_csv)(columns, sys.stdout)
            return EXIT_OK
        if output.is_dir():
            raise UserError(f"{output}: is a folder; name a file")
        if output.exists() and output.samefile(run.path):
            raise UserError(f"{output}: is the results file itself; choose another output")
        with beside(output) as temporary:
            if form == "parquet":
                write_parquet(columns, temporary)
            else:
                with open(temporary, "w", encoding="utf-8", newline="", errors="backslashreplace") as text:
                    (write_json if form == "json" else write_csv)(columns, text)
        rows = max(map(len, columns.values()), default=0)
    click.echo(
        f"{wording.path(output)}: {wording.count(rows, 'row')}, {wording.count(len(columns), 'column')}"
    )
    return EXIT_OK


def _form_of(output: Path | None) -> str:
    """Return the format that the output's name says."""
    if output is None:
        return "csv"
    suffix = output.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UserError(
            f"{output}: tables are written as .csv, .json or .parquet; name it so, or say --format"
        )
    return suffix
