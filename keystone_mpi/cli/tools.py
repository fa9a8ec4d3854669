"""`keystone-mpi tools`: which solvers are here, how each is used, how to install the others.

Rule: it starts nothing but the solvers' own version questions and changes nothing.

    tools.table --Tool.find--> table or JSON
    --solver-file --> path of keystone_solver.py, to be copied beside a script
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from keystone_mpi.cli.main import EXIT_OK


@click.command("tools")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--solver-file",
    is_flag=True,
    help="Print the path of keystone_solver.py (report_result, report_progress).",
)
def command(as_json: bool, solver_file: bool) -> int:
    """Say which solvers are found here, how each is used, and how to install what is missing."""
    if solver_file:
        click.echo(str(solver_file_path()))
        return EXIT_OK
    from keystone_mpi.tools.table import TOOLS

    found = [(tool, tool.find(version=True)) for tool in TOOLS.values()]
    if as_json:
        facts = [
            {
                "tool": tool.name,
                "summary": tool.summary,
                "found": finding.found,
                "where": finding.where,
                "detail": finding.detail,
                "install": "" if finding.found else finding.install,
                "parameters": tool.parameters,
                "results": tool.results,
                "keys": tool.keys,
            }
            for tool, finding in found
        ]
        sys.stdout.write(msgspec.json.format(msgspec.json.encode({"tools": facts}), indent=2).decode() + "\n")
        return EXIT_OK
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for tool, finding in found:
        style = "green" if finding.found else "yellow"
        where = f" ({finding.where})" if finding.where else ""
        said = f"{finding.detail}{where}" if finding.found else f"not found: {finding.detail}"
        console.print(Text.assemble((f"{tool.name:<10}", "bold"), (said, style)))
        console.print(Text(f"          in:  {tool.parameters}"))
        console.print(Text(f"          out: {tool.results}"))
        if not finding.found:
            console.print(Text(f"       -> {finding.install}"))
    console.print(Text("A tool of your own: [tools.NAME] in the sweep file. Examples: jobscripts/solvers/"))
    return EXIT_OK


def solver_file_path() -> Path:
    """Return the file that any Python solver can copy."""
    import keystone_mpi.for_solvers

    return Path(str(keystone_mpi.for_solvers.__file__)).with_name("keystone_solver.py")
