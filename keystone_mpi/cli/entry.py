"""The program's first instructions: decide what this process is before anything heavy is imported.

Rule: a rank other than 0 never loads the command line (no click, rich, h5py),
never prints, and always exits with 0; rank 0 speaks for the run.

    environment --> no launcher, or rank 0 --> cli.main --> exit code
                --> another rank, "run"    --> engine.serving.serve_as_worker --> 0
                --> another rank, else     --> 0
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from keystone_mpi.execution.environment import Promised

EXIT_AGAIN = 75
"""Stopped with work left: run the same command again."""
NO_RUN = frozenset({"--help", "-h", "--dry-run"})
"""Arguments of ``run`` after which nothing runs, so that nothing need be started."""


def main() -> None:
    """Run ``keystone-mpi``."""
    from keystone_mpi.execution.environment import launcher_environment

    promised = launcher_environment()
    runs = sys.argv[1:2] == ["run"]
    if runs:
        gc.disable()  # what imports make lives as long as the process; `settle_collector` enables it
    if promised.rank > 0:
        if runs:
            _serve()
        _leave(0)
    if not runs or (promised.launcher is None and NO_RUN.intersection(sys.argv)):
        from keystone_mpi.cli.main import main as run_command_line

        _leave(run_command_line())
    _leave(_run(promised))


def _leave(code: int) -> NoReturn:
    """Exit; the interpreter's end need not look for cycles in what goes away as a whole.

    Not by os._exit: MPICH takes leave of mpiexec when C's exit handlers run, and mpiexec kills
    all ranks when one ends without.
    """
    gc.freeze()
    sys.exit(code)


def _run(promised: Promised) -> int:
    """Be the master of a run: MPI comes up before the command line is read."""
    from keystone_mpi.core.errors import ClusterError
    from keystone_mpi.deferred_numpy import want_one_blas_thread
    from keystone_mpi.engine.bringing_up import bring_up

    try:
        ranks = bring_up(promised, fresh=True)
    except ClusterError as error:
        from keystone_mpi.cli.main import report_error

        return report_error(str(error))
    try:
        want_one_blas_thread()
        from keystone_mpi.cli.main import main as run_command_line

        return run_command_line(ranks=ranks)
    finally:
        # After a usage error or --dry-run the workers still wait for work that will not come.
        ranks.close()


def _serve() -> None:
    """Be a worker rank."""
    from keystone_mpi.core.errors import LauncherMismatchError, MasterSilentError
    from keystone_mpi.engine.serving import serve_as_worker
    from keystone_mpi.execution.environment import launcher_environment

    # The master decides what a signal to the whole job means.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    try:
        serve_as_worker(launcher_environment(), fresh=True)
    except LauncherMismatchError:
        sys.exit(0)  # rank 0 has the same trouble and tells it
    except MasterSilentError as error:
        sys.stderr.write(f"keystone-mpi: worker rank {launcher_environment().rank}: {error}\n")
        sys.stderr.flush()
        os._exit(EXIT_AGAIN)  # MPI_Finalize would wait for the rank that is gone
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
