"""`keystone-mpi report`: a run explained in one HTML file.

Rule: the page needs no network, no server and no library; it can be mailed.
"""

from __future__ import annotations

from pathlib import Path

import click

from keystone_mpi.cli import wording
from keystone_mpi.cli.analysing import SELECT_HELP, open_for_analysis, output_beside
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.core.errors import UserError


@click.command("report")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write  [RUN.html]")
@click.option("--select", "conditions", multiple=True, metavar="NAME=VALUE", help=SELECT_HELP)
def command(file: Path, output: Path | None, conditions: tuple[str, ...]) -> int:
    """Write a page that explains the run of FILE: timeline, statistics, results, failures."""
    from keystone_mpi.analysis.exporting import beside
    from keystone_mpi.analysis.report import render_report

    target = output or output_beside(file, ".html")
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name a file")
    with open_for_analysis(file, conditions) as run:
        if target.exists() and target.samefile(run.path):
            raise UserError(f"{target}: is the results file itself; choose another output")
        page = render_report(run)
    with beside(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    click.echo(f"{wording.path(target)}: {wording.size(target.stat().st_size)}, open it in any browser")
    return EXIT_OK
