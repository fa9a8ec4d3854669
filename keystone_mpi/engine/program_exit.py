"""How rank 0's program ends when it does not end by itself: exit codes that tell a job script what to do.

Rule: an interruption that the program does not catch is one line and exit code
75, not a traceback; what goes wrong at the very end is told and is never exit
code 0, although Python forgets the exit code of what its exit hooks raise.

    uncaught RunInterruptedError --> excepthook --> SystemExit(75) --> exit hooks
    exit hook: PROGRAM.end raises --> printed, code kept --> last exit hook --> os._exit(code)
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

from keystone_mpi.core.errors import InternalError, KeystoneError, RunInterruptedError

EXIT_FAILED = 1
EXIT_INTERNAL = 70
EXIT_AGAIN = 75
"""The same command again goes on."""


def exit_code_of(error: BaseException) -> int:
    """Print what ended the engine or the program, as people want to see it; return the exit code."""
    match error:
        case RunInterruptedError():
            sys.stderr.write(f"keystone_mpi: {error}\n")
            code = EXIT_AGAIN
        case KeyboardInterrupt():
            sys.stderr.write("keystone_mpi: interrupted; what has ended is in the results file\n")
            code = 128 + signal.SIGINT
        case InternalError():
            traceback.print_exception(error)
            code = EXIT_INTERNAL
        case KeystoneError():
            sys.stderr.write(f"keystone_mpi: {error}\n")
            code = EXIT_FAILED
        case _:
            traceback.print_exception(error)
            code = EXIT_FAILED
    sys.stderr.flush()
    return code


def leave_interrupted(error: RunInterruptedError) -> NoReturn:
    """End the program, from within its excepthook: Python ends with this exit code."""
    raise SystemExit(exit_code_of(error))


def leave_now(code: int) -> NoReturn:
    """End the process with an exit code that Python would forget; the last of all exit hooks."""
    if "logging" in sys.modules:
        sys.modules["logging"].shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # closed, or its reader is gone
    os._exit(code)
