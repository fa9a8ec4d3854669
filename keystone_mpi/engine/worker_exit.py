"""The end of a worker rank of a program: it serves, and never comes back into the program.

Rule: ranks other than 0 always exit with 0, unless we broke a rule of our own;
rank 0 speaks for the program.

    end_worker_rank --> serve_as_worker --> SystemExit(0)    (os._exit outside of the main thread)
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from typing import NoReturn

from keystone_mpi.core.errors import LauncherMismatchError, MasterSilentError
from keystone_mpi.engine.parting import ABORT_CODE
from keystone_mpi.engine.serving import serve_as_worker
from keystone_mpi.execution.environment import Promised

INTERNAL_CODE = 70


def end_worker_rank(promised: Promised) -> NoReturn:
    """Serve as a worker until rank 0 is done, then end the process."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        # Rank 0 decides what a signal to the whole job means.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    try:
        serve_as_worker(promised)
    except LauncherMismatchError:
        pass  # rank 0 has the same trouble and tells it
    except MasterSilentError as error:
        sys.stderr.write(f"keystone_mpi: worker rank {promised.rank}: {error}\n")
        sys.stderr.flush()
        os._exit(ABORT_CODE)  # MPI_Finalize would wait for the rank that is gone
    except Exception:
        # MPI_Finalize would hang and the others would wait: print, and let mpiexec end the job.
        sys.stderr.write(
            f"keystone_mpi: worker rank {promised.rank} on {socket.gethostname()}:\n{traceback.format_exc()}"
        )
        sys.stderr.flush()
        os._exit(INTERNAL_CODE)
    sys.stdout.flush()
    sys.stderr.flush()
    if not in_main:
        os._exit(0)
    sys.exit(0)
