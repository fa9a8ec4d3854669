"""The program's first instructions: decide what this process is before anything heavy is imported.

Rule: a rank other than 0 never loads the command line (no click, rich, h5py),
never prints, and always exits with 0; rank 0 speaks for the run.

    environment --> no launcher, or rank 0 --> cli.main --> exit code
                --> another rank, "run"    --> engine.serving.serve_as_worker --> 0
                --> another rank, else     --> 0
"""

from __future__ import annotations

import os
import signal
import sys

NO_RUN = frozenset({"--help", "-h", "--dry-run"})
"""Arguments of ``run`` after which nothing runs."""


def main() -> None:
    """Run ``keystone-mpi``."""
    from keystone_mpi.execution.environment import launcher_environment

    promised = launcher_environment()
    runs = sys.argv[1:2] == ["run"]
    if promised.rank > 0:
        if runs:
            _serve()
        sys.exit(0)
    code = _run_command_line(early_store=runs and not NO_RUN.intersection(sys.argv))
    if runs and promised.launcher is not None and "keystone_mpi.transport.mpi" not in sys.modules:
        # The other ranks wait for work that will not come: a usage error, --help, --dry-run.
        from keystone_mpi.core.errors import LauncherMismatchError
        from keystone_mpi.engine.ranks import send_workers_home

        try:
            send_workers_home(promised)
        except LauncherMismatchError:
            sys.exit(code)  # there are no ranks that could be sent home
    sys.exit(code)


def _run_command_line(*, early_store: bool) -> int:
    """Be the command line; for a run the store process, slowest to start, is started first of all."""
    if not early_store:
        from keystone_mpi.cli.main import main as run_command_line

        return run_command_line()
    from keystone_mpi.engine.store_process import StoreClient

    store = StoreClient()
    try:
        from keystone_mpi.cli.main import main as run_command_line

        return run_command_line(store=store)
    finally:
        store.close()


def _serve() -> None:
    """Be a worker rank."""
    from keystone_mpi.core.errors import LauncherMismatchError
    from keystone_mpi.engine.serving import serve_as_worker
    from keystone_mpi.execution.environment import launcher_environment

    # The master decides what a signal to the whole job means.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    try:
        serve_as_worker(launcher_environment())
    except LauncherMismatchError:
        sys.exit(0)  # rank 0 has the same trouble and tells it
    except Exception:
        # Finalize would hang and the others would wait: print, and let mpiexec end the job.
        import socket
        import traceback

        rank = launcher_environment().rank
        sys.stderr.write(
            f"keystone-mpi: worker rank {rank} on {socket.gethostname()}:\n{traceback.format_exc()}"
        )
        sys.stderr.flush()
        os._exit(70)


if __name__ == "__main__":
    main()
