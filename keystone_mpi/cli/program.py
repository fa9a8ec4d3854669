"""Running a user's program under ``python -m keystone_mpi``.

Rule: the program sees what it would see under ``python PROGRAM.py``: its
arguments, its folder first on the import path, itself as ``__main__``. An
uncaught exception is printed and stops everything within seconds; ``sys.exit``
means what it always means. TERM before the engine's start ends the program;
later it is the engine's (engine/program_stop.py).

    rank 0 --> runpy --> end of the program --> PROGRAM.end --> exit code
    other ranks --> end_worker_rank
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

TERMINATED = 128 + signal.SIGTERM


def run_program(argv: list[str]) -> NoReturn:
    """Run ``argv[0]`` with the arguments that follow."""
    from keystone_mpi.core.errors import RunInterruptedError
    from keystone_mpi.execution.environment import launcher_environment

    promised = launcher_environment()
    if promised.rank > 0:
        from keystone_mpi.engine.worker_exit import end_worker_rank

        end_worker_rank(promised)
    path = argv[0]
    if not os.path.isfile(path):
        from keystone_mpi.cli.main import report_error

        _leave(report_error(f"{path}: no such program"), failed=True)
    from keystone_mpi.engine.program_exit import exit_code_of

    sys.argv[:] = argv
    sys.path[0] = os.path.dirname(os.path.abspath(path))
    signal.signal(signal.SIGTERM, _terminate)
    code, failed = 0, False
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as request:
        code = _code_of(request)
        failed = code != 0
    except (KeyboardInterrupt, RunInterruptedError) as error:
        code, failed = exit_code_of(error), True
    except BaseException as error:  # whatever a program raises ends it as it would end Python
        code, failed = 1, True
        _print(error)
    _leave(code, failed=failed)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _code_of(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code
    sys.stderr.write(f"{request.code}\n")
    return 1


def _print(error: BaseException) -> None:
    """Print a traceback without our own frames at its top."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in (__name__, "runpy"):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _leave(code: int, *, failed: bool) -> NoReturn:
    """End the engine, then the process."""
    from keystone_mpi.engine.program import PROGRAM
    from keystone_mpi.engine.program_exit import exit_code_of

    if failed:
        PROGRAM.failed = True
        sys.stderr.flush()
    try:
        if PROGRAM.hub is None:
            PROGRAM.send_workers_home()
        PROGRAM.end()
    except (KeyboardInterrupt, Exception) as error:  # a task's or the cluster's trouble at the very end
        code = code or exit_code_of(error)
    sys.exit(code)
