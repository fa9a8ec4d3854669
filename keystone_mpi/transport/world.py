"""MPI itself: loading, starting and ending it; the only module that imports mpi4py.

Rule: whatever else a rank takes is imported when MPI is up. Ranks start together,
and one that comes late is waited for by others that spin.

    MpiWorld: import mpi4py --> known mismatch? --> MPI_Init --> as many ranks as the launcher promised?
    node_place --> who shares this node --> finalize | abort
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import msgspec

from keystone_mpi.core.errors import LauncherMismatchError
from keystone_mpi.transport.loading import memory_may_be_shared, no_memory_hooks, within_one_node
from keystone_mpi.transport.matching import known_mismatch, needs_short_requests, way_out

MASTER_RANK = 0


class NodePlace(msgspec.Struct, frozen=True):
    """Where a rank stands among the workers of its node."""

    index: int
    """Position among the node's workers; -1 for a master that has workers on its node."""
    workers: int
    master_alone: bool


class MpiWorld:
    """An initialised MPI and its world communicator.

    Parameters
    ----------
    promised_size : int or None
        How many ranks the launcher's environment promises; None when it does
        not say.
    local_size : int or None
        How many of them are on this node, likewise.
    ours : bool
        No other code of this process speaks MPI: it is set up for few and small messages.

    Raises
    ------
    LauncherMismatchError
        mpi4py cannot be imported or initialised, or finds another number of
        ranks than the launcher started.
    """

    def __init__(
        self, promised_size: int | None, local_size: int | None = None, *, ours: bool = False
    ) -> None:
        self._one_node = promised_size is not None and promised_size == local_size
        """By the launcher's word."""
        try:
            with no_memory_hooks(os.environ) if ours else contextlib.nullcontext():
                self._start(ours)
        except (ImportError, RuntimeError) as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise LauncherMismatchError(
                f"started by an MPI launcher, but no MPI library can be loaded: {first_line} "
                "(install one: pip install 'keystone_mpi[mpich]', or load your site's MPI module; "
                "keystone-mpi doctor tells more)"
            ) from error
        self.comm: Any = self._mpi.COMM_WORLD
        self.rank: int = self.comm.Get_rank()
        self.size: int = self.comm.Get_size()
        self.comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        if promised_size is not None and promised_size != self.size:
            raise LauncherMismatchError(
                f"the launcher started {promised_size} ranks, but the MPI library ({self.library}) sees "
                f"{self.size}: they do not belong together. {way_out(self.library, os.environ)}"
            )

    def _start(self, ours: bool) -> None:
        import mpi4py

        # Started and ended by us: a library that aborts in MPI_Init must be found out before, and a
        # failing rank must be able to leave without hanging in an exit hook.
        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "suspicious environment": told below
            from mpi4py import MPI

            self._mpi: Any = MPI
            version = MPI.Get_library_version()
            self.library: str = version.strip().splitlines()[0].strip("\x00 ")
            problem = known_mismatch(version, os.environ)
            if problem:  # MPI_Init would abort the process
                raise LauncherMismatchError(
                    f"{problem}, but the MPI library is {self.library}. {way_out(version, os.environ)}"
                )
            self.initialised_before = bool(MPI.Is_initialized())
            """By the program that we serve: it ends MPI, too."""
            if not self.initialised_before:
                with contextlib.ExitStack() as around:
                    around.enter_context(_requests_that_slurm_reads(version))
                    if ours and self._one_node and version.startswith("MPICH") and memory_may_be_shared():
                        around.enter_context(within_one_node(os.environ))
                    MPI.Init_thread(MPI.THREAD_SERIALIZED)
            elif MPI.Query_thread() < MPI.THREAD_SERIALIZED and not MPI.Is_thread_main():
                raise LauncherMismatchError(
                    "MPI was initialised without the thread level that keystone_mpi needs "
                    "(MPI_THREAD_SERIALIZED): do not set mpi4py.rc.threads or rc.thread_level, or start "
                    "the program with python -m keystone_mpi"
                )

    def node_place(self) -> NodePlace:
        """Find the ranks that share this node; collective, every rank calls it."""
        if self._one_node and self.size > 1:  # nobody need be asked
            return NodePlace(index=self.rank - 1, workers=self.size - 1, master_alone=False)
        return self._asked_place()

    def _asked_place(self) -> NodePlace:
        node = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        try:
            local_size = node.Get_size()
            local_ranks: list[int] = node.Get_group().Translate_ranks(
                list(range(local_size)), self.comm.Get_group()
            )
        finally:
            node.Free()
        workers = sorted(rank for rank in local_ranks if rank != MASTER_RANK)
        if not workers:
            # A node whose only rank is the master gets a worker beside it.
            return NodePlace(index=0, workers=1, master_alone=True)
        index = workers.index(self.rank) if self.rank in workers else -1
        return NodePlace(index=index, workers=len(workers), master_alone=False)

    def finalize(self) -> None:
        """End MPI; every rank calls this."""
        if self.initialised_before:
            return  # mpi4py's own exit hook does it
        if self._mpi.Is_initialized() and not self._mpi.Is_finalized():
            _finalize_of(self._mpi)()

    def abort(self, code: int) -> None:
        """End all ranks at once."""
        self.comm.Abort(code)


def _requests_that_slurm_reads(version: str) -> contextlib.AbstractContextManager[None]:
    """Return what MPI_Init needs around it under Slurm's pmi2 plugin."""
    if not needs_short_requests(version, os.environ):
        return contextlib.nullcontext()
    from keystone_mpi.transport.pmi_relay import short_requests

    return short_requests(os.environ)


def _finalize_of(mpi: Any) -> Callable[[], object]:
    """Return MPI_Finalize, called so that other threads of Python run: one watches how long it takes.

    mpi4py keeps the interpreter's lock in its own call.
    """
    import ctypes

    try:
        finalize = ctypes.CDLL(mpi.__file__).MPI_Finalize
    except (OSError, AttributeError):  # an mpi4py that finds its library in another way
        return mpi.Finalize  # type: ignore[no-any-return] # `mpi` is a module that is imported late
    finalize.restype = ctypes.c_int
    return finalize
