"""How the MPI library is loaded into a process that only carries our messages.

Rule: variables are set for the time of the loading and not left for solvers;
what the user has set stays as it is.

UCX, below MPICH's and Open MPI's wheels, patches mmap, munmap and their like in
libc when it is loaded, so that a cache of memory registered for RDMA hears of
memory that goes away. Waiting until no thread is inside what it patches takes
it a third of the time that MPI needs to start, and our messages are too few and
too small for such a cache: without the hooks UCX does without it. Slurm's
mpi/pmix plugin does the same. (UCX, src/ucm/README: UCX_MEM_EVENTS)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping

_MEMORY_HOOKS = "UCX_MEM_EVENTS"


@contextlib.contextmanager
def no_memory_hooks(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Load an MPI library meanwhile, and UCX leaves libc alone.

    Parameters
    ----------
    environ : mutable mapping
        The process's variables, which must be what C code sees; as before afterwards.
    """
    if _MEMORY_HOOKS in environ:
        yield
        return
    environ[_MEMORY_HOOKS] = "no"
    try:
        yield
    finally:
        del environ[_MEMORY_HOOKS]
