"""How the MPI library is loaded and started in a process that only carries our messages.

Rule: variables are set for that time and not left for solvers; what the user
has set stays as it is.

    no_memory_hooks    UCX_MEM_EVENTS=no, UCX_MEMTYPE_CACHE=n   around loading and MPI_Init
    within_one_node    UCX_TLS=self,sm     around MPI_Init, where every rank is on this node and
                                           none is in a container of its own

UCX, below MPICH's and Open MPI's wheels, patches mmap, munmap and their like in
libc when it is loaded, so that a cache of memory registered for RDMA hears of
memory that goes away. It waits 5 ms for each function that it patches, in a
loop, until no thread can be inside it. Our messages are too few and too small
for such a cache, and without the hooks UCX does without it; Slurm's mpi/pmix
plugin loads UCX in the same way.

Ranks of one node need no network: UCX would ask every interface what it can do,
and leave each rank with a TCP socket that listens.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, MutableMapping


@contextlib.contextmanager
def no_memory_hooks(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Load an MPI library meanwhile, and UCX leaves libc alone.

    Parameters
    ----------
    environ : mutable mapping
        The process's variables, which must be what C code sees; as before afterwards.
    """
    # Old versions that know of GPUs refuse to start when a cache that needs the events is not off, too.
    with _unless_set(environ, "UCX_MEM_EVENTS", "no"), _unless_set(environ, "UCX_MEMTYPE_CACHE", "n"):
        yield


_FIRST_IPC_NAMESPACE = 0xEFFFFFFF
"""Inode of the namespace that the machine has booted with (Linux, include/linux/proc_ns.h)."""


def memory_may_be_shared() -> bool:
    """Tell whether this process is in the machine's own IPC namespace, and so in that of others like it."""
    try:
        return os.stat("/proc/self/ns/ipc").st_ino == _FIRST_IPC_NAMESPACE
    except OSError:
        return False


def within_one_node(environ: MutableMapping[str, str]) -> contextlib.AbstractContextManager[None]:
    """Start MPI meanwhile, and UCX carries messages through shared memory only; see `no_memory_hooks`."""
    return _unless_set(environ, "UCX_TLS", "self,sm")


@contextlib.contextmanager
def _unless_set(environ: MutableMapping[str, str], name: str, value: str) -> Iterator[None]:
    if name in environ:
        yield
        return
    environ[name] = value
    try:
        yield
    finally:
        del environ[name]
