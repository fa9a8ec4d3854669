"""The ranks other than 0: serving as a worker, and being sent home when there is no work.

Rule: a worker rank imports what it needs to run solvers and nothing more: no
numpy, h5py, rich or click. Ten thousand ranks that import from one parallel
file system are an outage.

    launcher (before MPI_Init) --> MpiWorld --> Worker.serve --> MPI_Finalize
"""

from __future__ import annotations

import time

from keystone_mpi.core.errors import ClusterError, LauncherMismatchError
from keystone_mpi.engine.worker import Worker
from keystone_mpi.execution.environment import Promised
from keystone_mpi.execution.launcher_client import LauncherClient
from keystone_mpi.execution.slots import detect
from keystone_mpi.transport.messages import Dismissal, Farewell, Goodbye

FAREWELL_S = 20.0


def serve_as_worker(promised: Promised) -> None:
    """Serve as a rank other than 0: launcher first, then MPI, then orders until dismissed.

    Raises
    ------
    LauncherMismatchError
        See `MpiWorld`; rank 0 tells the user.
    """
    launcher = LauncherClient()
    try:
        launcher.start()
        trouble = ""
    except ClusterError as error:
        trouble = str(error)
    from keystone_mpi.transport.mpi import MpiWorkerEnd, MpiWorld

    try:
        world = MpiWorld(promised.size)
    except LauncherMismatchError:
        launcher.close()
        raise
    place = world.node_place()
    Worker(
        MpiWorkerEnd(world),
        launcher,
        rank=world.rank,
        resources=detect(),
        local_index=place.index,
        local_workers=place.workers,
        trouble=trouble,
    ).serve()
    world.finalize()


def send_workers_home(promised: Promised) -> None:
    """Let the other ranks leave in order when the master has no work for them."""
    if promised.launcher is None:
        return
    from keystone_mpi.transport.mpi import MpiMaster, MpiWorld

    world = MpiWorld(promised.size)
    world.node_place()
    transport = MpiMaster(world)
    absent = set(transport.workers)
    for worker in transport.workers:
        transport.send(worker, Farewell())
    deadline = time.monotonic() + FAREWELL_S
    while absent and time.monotonic() < deadline:
        for item in transport.receive(0.5):
            if isinstance(item.message, Goodbye):
                absent.discard(item.worker)
    for worker in transport.workers:
        transport.send(worker, Dismissal())
    transport.close()
    world.finalize()
