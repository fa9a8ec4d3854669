"""`python -m keystone_mpi`: the command line, for programs that must not import MPI first."""

from __future__ import annotations

from keystone_mpi.cli.entry import main

if __name__ == "__main__":
    main()
