"""The ranks other than 0: serving as a worker.

Rule: a worker rank imports what it needs to run solvers and nothing more: no
numpy, h5py, rich or click. Ten thousand ranks that import from one parallel
file system are an outage.

    launcher (before MPI_Init) --> MpiWorld --> Worker.serve --> MPI_Finalize
"""

from __future__ import annotations

from keystone_mpi.core.errors import ClusterError, LauncherMismatchError
from keystone_mpi.engine.collector import settle_collector
from keystone_mpi.engine.parting import finalize_in_time
from keystone_mpi.execution.environment import Promised
from keystone_mpi.execution.launcher_client import LauncherClient


def serve_as_worker(promised: Promised, *, fresh: bool = False) -> None:
    """Serve as a rank other than 0: launcher first, then MPI, then orders until dismissed.

    Parameters
    ----------
    promised : Promised
        What the launcher of the ranks said.
    fresh : bool
        This process has done nothing else: the launcher is forked from it.

    Raises
    ------
    LauncherMismatchError
        See `MpiWorld`; rank 0 tells the user.
    MasterSilentError
        Rank 0 is gone without a word: MPI cannot be ended.
    """
    launcher = LauncherClient()
    try:
        launcher.start(fork=fresh)
        trouble = ""
    except ClusterError as error:
        trouble = str(error)
    from keystone_mpi.transport.world import MpiWorld

    try:
        world = MpiWorld(promised.size, promised.local_size, ours=fresh)
    except LauncherMismatchError:
        launcher.close()
        raise
    # While rank 0 reads the sweep: until here it waited for this rank.
    from keystone_mpi.engine.worker import Worker
    from keystone_mpi.execution.slots import detect
    from keystone_mpi.transport.mpi import MpiWorkerEnd

    place = world.node_place()
    settle_collector()
    Worker(
        MpiWorkerEnd(world),
        launcher,
        rank=world.rank,
        resources=detect(),
        local_index=place.index,
        local_workers=place.workers,
        trouble=trouble,
    ).serve()
    finalize_in_time(world.finalize, f"worker rank {world.rank}")
