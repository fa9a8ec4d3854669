"""`keystone-mpi plot`: a picture of a run as PNG, SVG or PDF.

Rule: the format is the suffix of the output; by default a PNG in the present
folder, named after the run and the kind of picture.
"""

from __future__ import annotations

from pathlib import Path

import click

from keystone_mpi.cli import wording
from keystone_mpi.cli.analysing import SELECT_HELP, open_for_analysis, output_beside
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.core.errors import UserError

KINDS = ("timeline", "durations", "scaling", "response")


@click.command("plot")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A .png, .svg or .pdf  [RUN-KIND.png]")
@click.option("-x", "--param", help="response: what is on the horizontal axis; the first parameter.")
@click.option("-y", "--result", help="response: what is on the vertical axis; the first result.")
@click.option("-c", "--colour", "--color", "colour", help="response: what tells the points apart.")
@click.option("--log-x/--linear-x", default=None, help="response: where it is not clear from the values.")
@click.option("--log-y/--linear-y", default=None)
@click.option("--select", "conditions", multiple=True, metavar="NAME=VALUE", help=SELECT_HELP)
def command(
    kind: str,
    files: tuple[Path, ...],
    output: Path | None,
    param: str | None,
    result: str | None,
    colour: str | None,
    log_x: bool | None,
    log_y: bool | None,
    conditions: tuple[str, ...],
) -> int:
    """Draw a picture of a run.

    \b
    timeline   what every worker did when
    durations  the wall times of the attempts, by how they ended
    scaling    the speedup of one or more runs beside the ideal and what is possible
    response   any result against any parameter
    """
    from keystone_mpi.analysis import plots

    if len(files) > 1 and kind != "scaling":
        raise UserError(
            f"plot {kind} draws one run; found {len(files)} files (plot scaling compares several)"
        )
    target = output or output_beside(files[0], f"-{kind}.png")
    if target.suffix.lower().removeprefix(".") not in plots.FORMATS:
        raise UserError(f"{target}: pictures are written as {', '.join(plots.FORMATS)}; name the file so")
    runs = [open_for_analysis(file, conditions) for file in files]
    try:
        match kind:
            case "timeline":
                figure = plots.plot_timeline(runs[0])
            case "durations":
                figure = plots.plot_durations(runs[0])
            case "scaling":
                figure = plots.plot_scaling(runs)
            case "response":
                run = runs[0]
                if not run.params and param is None:
                    raise UserError(
                        f"{run.path}: has no parameters: name what is on the horizontal axis with -x"
                    )
                shown = result or next(
                    (name for name in run.contents.scalars if run.values(name).dtype.kind in "ifb"),
                    "duration_s",
                )
                figure = plots.plot_response(
                    run, shown, param or run.params[0], colour=colour, log_x=log_x, log_y=log_y
                )
            case _:
                raise AssertionError(kind)
        plots.save(figure, target)
    finally:
        for run in runs:
            run.close()
    click.echo(wording.path(target))
    return EXIT_OK
