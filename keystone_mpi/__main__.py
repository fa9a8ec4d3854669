"""`python -m keystone_mpi PROGRAM.py`: run a program, its workers ready before MPI; else the command line.

Rule: ranks other than 0 never run the program: they serve. On rank 0 the
program runs as ``__main__``, and its end is the end of all ranks, with its exit
code. What is no Python file is a subcommand of ``keystone-mpi``.

    python -m keystone_mpi my_sweep.py [arguments]    rank 0: the program    others: workers
    python -m keystone_mpi run sweep.toml             the same as keystone-mpi run sweep.toml
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run a program or the command line."""
    if len(sys.argv) > 1 and sys.argv[1].endswith(".py"):
        from keystone_mpi.cli.program import run_program

        run_program(sys.argv[1:])
    else:
        from keystone_mpi.cli.entry import main as run_command_line

        run_command_line()


if __name__ == "__main__":
    main()
