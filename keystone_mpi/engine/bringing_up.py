"""Bringing the ranks up: helpers first, then MPI, then whatever talks over it.

Rule: MPI comes up before any file is touched, so that a launcher that does not
match the library costs nothing, and before the sweep is read, since ranks that
wait for each other in MPI_Init spin. Launchers and the store process are there
before MPI_Init: a fork afterwards may break InfiniBand's registered memory.
What is not needed for either is imported when MPI is up.

    bring_up --> fork store process, launcher --> MpiWorld --> Ranks with its transport
                 (no launcher of ranks: threads of this process)
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from keystone_mpi.engine.store_child import LOAD_REQUEST, StoreChild, fork_store

if TYPE_CHECKING:
    from keystone_mpi.engine.ranks import Ranks
    from keystone_mpi.execution.environment import Promised
    from keystone_mpi.execution.launcher_client import LauncherClient
    from keystone_mpi.transport.local import LocalHub

LOCAL_WORKER = 0
"""Number of the worker beside the master."""


def bring_up(promised: Promised, *, fresh: bool = False) -> Ranks:
    """Connect the master to its workers; starts one beside it where its node has no other.

    Parameters
    ----------
    promised : Promised
        What the launcher said.
    fresh : bool
        This process is a sweep's master and has done nothing else so far: the
        store process, and a launcher beside it, are forked from it.

    Raises
    ------
    LauncherMismatchError
        See `transport.world.MpiWorld`.
    ClusterError
        The launcher of the worker beside the master cannot be started.
    """
    child = _fork_store() if fresh else None
    try:
        return _connect(promised, child, fresh=fresh)
    except BaseException:
        if child is not None:
            child.end()
        raise


def _fork_store() -> StoreChild | None:
    try:
        return fork_store()
    except OSError:
        return None  # another is started later, when there may be room for it


def _load(store: StoreChild | None) -> None:
    """Have the store process import what it takes, which is as much as everything else that starts here."""
    if store is not None:
        store.ask(LOAD_REQUEST)


def _connect(promised: Promised, store: StoreChild | None, *, fresh: bool) -> Ranks:
    if promised.launcher is None:
        _load(store)
        return _local_ranks(promised, _start_launcher(fork=fresh), store)
    from keystone_mpi.transport.world import MpiWorld

    early = _start_launcher(fork=fresh) if promised.size == 1 or promised.local_size in (None, 1) else None
    try:
        world = MpiWorld(promised.size, promised.local_size, ours=fresh)
    except BaseException:
        if early is not None:
            early.close()
        raise
    _load(store)  # not before: ranks that wait for each other in MPI_Init leave no core to others
    from keystone_mpi.engine.ranks import Ranks
    from keystone_mpi.transport.mpi import MpiMaster

    place = world.node_place()
    master = MpiMaster(world)
    beside = None
    if place.master_alone:
        beside = _start_local_worker(master.hub, early or _start_launcher())
    elif early is not None:
        early.close()
    return Ranks(promised, master, world.finalize, world.abort, beside, store)


def _local_ranks(promised: Promised, launcher: LauncherClient, store: StoreChild | None) -> Ranks:
    from keystone_mpi.engine.ranks import Ranks
    from keystone_mpi.transport.local import LocalMaster

    transport = LocalMaster()
    return Ranks(promised, transport, None, None, _start_local_worker(transport.hub, launcher), store)


def _start_launcher(*, fork: bool = False) -> LauncherClient:
    from keystone_mpi.execution.launcher_client import LauncherClient

    launcher = LauncherClient()
    launcher.start(fork=fork)
    return launcher


def _start_local_worker(hub: LocalHub, launcher: LauncherClient) -> threading.Thread:
    from keystone_mpi.engine.worker import Worker
    from keystone_mpi.execution.slots import detect

    worker = Worker(
        hub.connect(LOCAL_WORKER), launcher, rank=0, resources=detect(), local_index=0, local_workers=1
    )
    thread = threading.Thread(target=worker.serve, name="keystone-worker", daemon=True)
    thread.start()
    return thread
