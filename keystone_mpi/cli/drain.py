"""`keystone-mpi drain`: ask a run to finish what runs and start nothing more.

Rule: the request is a file beside the output, so that it needs no network, no
signal and no access to the run's node. The master looks for it about once a
second and removes it when it has stopped.

    drain FILE  -->  FILE.drain  -->  master: exit code 75  -->  the same run command continues
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from keystone_mpi.cli import wording
from keystone_mpi.cli.main import EXIT_OK
from keystone_mpi.cli.opening import find_output
from keystone_mpi.core.errors import UserError


@click.command("drain")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cancel", is_flag=True, help="Take the request back, if the run has not met it yet.")
def command(file: Path, cancel: bool) -> int:
    """Let the run that writes FILE finish what runs and start nothing more.

    The run then ends with exit code 75; the same command again continues it.
    """
    from keystone_mpi.records.lease import read_lease

    output = find_output(file)
    request = output.with_name(f"{output.name}.drain")
    name = wording.path(output)
    lease = read_lease(output)
    if cancel:
        if not request.exists():
            click.echo(f"{name}: nobody asked it to drain")
            return EXIT_OK
        request.unlink(missing_ok=True)
        click.echo(f"{name}: the request is taken back")
        return EXIT_OK
    if lease is None or not lease.is_alive():
        # A request that nobody meets would stop the next start at once.
        raise UserError(
            f"{name}: no run is writing it, so there is nothing to drain; "
            f"`{wording.command('keystone-mpi', 'status', name)}` says how far it is"
        )
    try:
        descriptor = os.open(request, os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"{request}: cannot be written ({error.strerror}); send SIGUSR1 to {lease.holder()} instead"
        ) from error
    os.close(descriptor)
    click.echo(
        f"{name}: {lease.holder()} will finish what runs and start nothing more; "
        f"watch it with `{wording.command('keystone-mpi', 'status', name)}`, "
        f"take it back with `{wording.command('keystone-mpi', 'drain', '--cancel', name)}`"
    )
    return EXIT_OK
