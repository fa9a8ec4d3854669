"""The master's side of its ranks: bringing the transport up, and sending everybody home.

Rule: MPI comes up before any file is touched, so that a launcher that does not
match the library costs nothing, and before the sweep is read, since ranks that
wait for each other in MPI_Init spin. Launchers are started before MPI_Init: a
fork afterwards may break InfiniBand's registered memory.

    bring_up --> Ranks.transport (MPI, or threads of this process)
    farewell (workers stop their launchers, say goodbye) --> dismiss (MPI_Finalize)
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from keystone_mpi.engine.worker import Worker
from keystone_mpi.execution.environment import Promised
from keystone_mpi.execution.launcher_client import LauncherClient
from keystone_mpi.execution.slots import detect
from keystone_mpi.transport.channel import MasterEnd
from keystone_mpi.transport.local import LocalHub, LocalMaster
from keystone_mpi.transport.messages import Dismissal, Farewell, Goodbye, Hello, WorkerFailed

ABORT_CODE = 75
"""What mpiexec reports when a rank is gone and the others are ended by force: run it again."""
LOCAL_WORKER = 0
"""Number of the worker beside the master."""
THREAD_END_S = 5.0
FAREWELL_S = 20.0
"""How long the workers may take to stop their launchers."""


class Ranks:
    """The transport and everybody at its other end; made by `bring_up`."""

    def __init__(
        self,
        promised: Promised,
        transport: MasterEnd,
        finalize: Callable[[], None] | None,
        abort: Callable[[int], None] | None,
        local_worker: threading.Thread | None,
    ) -> None:
        self.promised = promised
        self.transport = transport
        self._finalize = finalize
        self._abort = abort
        self._local_worker = local_worker
        self._dismissed = False
        self._any_lost = False
        self._absent = set(transport.workers)
        """Workers that have not said goodbye."""

    def left(self, worker: int) -> None:
        """A worker said goodbye, or why it cannot go on."""
        self._absent.discard(worker)

    def lost(self, worker: int) -> None:
        """A worker is gone without a word: nobody waits for it, and MPI cannot end in order."""
        self._absent.discard(worker)
        self._any_lost = True

    def farewell(self, timeout_s: float, notice: Callable[[str], None]) -> None:
        """Send every worker away and wait for their goodbyes, `timeout_s` at most."""
        for worker in self._absent:
            self.transport.send(worker, Farewell())
        deadline = time.monotonic() + timeout_s
        while self._absent and time.monotonic() < deadline:
            for item in self.transport.receive(min(0.2, max(0.0, deadline - time.monotonic()))):
                match item.message:
                    case Goodbye():
                        self.left(item.worker)
                    case WorkerFailed(traceback=text):
                        notice(f"worker rank {item.worker} failed:\n{text.rstrip()}")
                        self.left(item.worker)
                    case Hello(error=error) if error:
                        self.left(item.worker)
                    case _:
                        continue  # late news of attempts that the journal calls interrupted

    def dismiss(self) -> bool:
        """Leave MPI together; False when some worker had not said goodbye and was ended by force."""
        self._dismissed = True
        everybody = not self._absent and not self._any_lost
        for worker in self.transport.workers:
            self.transport.send(worker, Dismissal())
        if self._local_worker is not None:
            self._local_worker.join(THREAD_END_S)
        self.transport.close()
        if everybody and self._finalize is not None:
            self._finalize()
        elif self._abort is not None:
            # MPI_Finalize would wait for ever for a rank that is gone.
            sys.stdout.flush()
            sys.stderr.flush()
            self._abort(ABORT_CODE)
        return everybody

    def close(self) -> None:
        """Send home whoever is still there; after an orderly end nobody is."""
        if not self._dismissed:
            self.farewell(FAREWELL_S, lambda _text: None)
            self.dismiss()


def bring_up(promised: Promised) -> Ranks:
    """Connect the master to its workers; starts one beside it where its node has no other.

    Raises
    ------
    LauncherMismatchError
        See `transport.mpi.MpiWorld`.
    ClusterError
        The launcher of the worker beside the master cannot be started.
    """
    launcher = LauncherClient()
    if promised.launcher is None:
        launcher.start()
        transport = LocalMaster()
        return Ranks(promised, transport, None, None, _start_local_worker(transport.hub, launcher))
    from keystone_mpi.transport.mpi import MpiMaster, MpiWorld

    if promised.size == 1 or promised.local_size in (None, 1):
        launcher.start()
    try:
        world = MpiWorld(promised.size)
    except BaseException:
        launcher.close()
        raise
    place = world.node_place()
    master = MpiMaster(world)
    local_worker = None
    if place.master_alone:
        launcher.start()
        local_worker = _start_local_worker(master.hub, launcher)
    else:
        launcher.close()
    return Ranks(promised, master, world.finalize, world.abort, local_worker)


def _start_local_worker(hub: LocalHub, launcher: LauncherClient) -> threading.Thread:
    worker = Worker(
        hub.connect(LOCAL_WORKER), launcher, rank=0, resources=detect(), local_index=0, local_workers=1
    )
    thread = threading.Thread(target=worker.serve, name="keystone-worker", daemon=True)
    thread.start()
    return thread
