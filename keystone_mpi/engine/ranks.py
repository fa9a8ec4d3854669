"""The master's side of its ranks: bringing the transport up, and sending everybody home.

Rule: MPI comes up before any file is touched, so that a launcher that does not
match the library costs nothing, and before the sweep is read, since ranks that
wait for each other in MPI_Init spin. Launchers and the store process are there
before MPI_Init: a fork afterwards may break InfiniBand's registered memory.
What a worker takes is imported where there is one beside the master.

    bring_up --> Ranks.transport (MPI, or threads of this process)
    farewell (workers stop their launchers) --> last batch, beats both ways --> dismiss (MPI_Finalize)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from keystone_mpi.engine.liveness import Liveness, silence_limit_s
from keystone_mpi.engine.parting import ABORT_CODE, finalize_in_time, flush_streams
from keystone_mpi.engine.store_child import LOAD_REQUEST, StoreChild, fork_store
from keystone_mpi.execution.environment import Promised
from keystone_mpi.transport.channel import MasterEnd, Received
from keystone_mpi.transport.local import LocalHub, LocalMaster
from keystone_mpi.transport.messages import Beat, Dismissal, Farewell, Goodbye, Hello, WorkerFailed

if TYPE_CHECKING:
    from keystone_mpi.execution.launcher_client import LauncherClient

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
        store: StoreChild | None = None,
    ) -> None:
        self.promised = promised
        self.transport = transport
        self._finalize = finalize
        self._abort = abort
        self._local_worker = local_worker
        self._store = store
        self._dismissed = False
        self._lost: set[int] = set()
        self._absent = set(transport.workers)
        """Workers that are waited for: they have not said goodbye and are not lost."""
        self._left: set[int] = set()
        """Workers that said goodbye, or why they cannot go on."""
        self._liveness = Liveness(time.monotonic(), silence_limit_s())
        """Of the workers, from the farewell on."""

    @property
    def store(self) -> StoreChild | None:
        """The store process that was forked, until somebody else owns it."""
        return self._store

    def hand_over_store(self) -> None:
        """It is somebody else's to end."""
        self._store = None

    def left(self, worker: int) -> None:
        """A worker said goodbye, or why it cannot go on; of one that is lost nothing is known."""
        self._absent.discard(worker)
        if worker not in self._lost:
            self._left.add(worker)

    def lost(self, worker: int) -> None:
        """A worker is gone without a word: nobody waits for it, and MPI cannot end in order."""
        self._absent.discard(worker)
        self._lost.add(worker)

    def heard(self, worker: int) -> None:
        """A worker sent something. One that was taken for lost goes home: its work is elsewhere by now."""
        if worker in self._lost:
            self._lost.discard(worker)
            if worker not in self._left:
                self._absent.add(worker)
                self.transport.send(worker, Farewell())

    def waiting(self) -> list[int]:
        """Return who waits for the dismissal, also without work: everybody who is not lost."""
        return [worker for worker in self.transport.workers if worker not in self._lost]

    def farewell(self, timeout_s: float, notice: Callable[[str], None]) -> None:
        """Send every worker away and wait for their goodbyes, `timeout_s` at most."""
        for worker in self._absent:
            self.transport.send(worker, Farewell())
        now = time.monotonic()
        self._liveness = Liveness(now, silence_limit_s())
        for worker in self.waiting():
            self._liveness.heard(worker, now)
        deadline = now + timeout_s
        while self._absent and time.monotonic() < deadline:
            self.stay(min(0.2, max(0.0, deadline - time.monotonic())), notice)

    def stay(self, timeout_s: float, notice: Callable[[str], None]) -> None:
        """Give signs of life to those who wait for the end, and look for theirs, for `timeout_s` at most."""
        now = time.monotonic()
        if self._liveness.beat_due(now):
            for worker in self.waiting():
                self.transport.send(worker, Beat())
        for item in self.transport.receive(timeout_s):
            self._hear(item, notice)
        for worker in self._liveness.silent(time.monotonic()):
            self._liveness.forget(worker)
            self.lost(worker)
            notice(
                f"worker rank {worker} has not been heard of for {self._liveness.silence_s:.0f} s; "
                "nobody waits for it any more"
            )

    def _hear(self, item: Received, notice: Callable[[str], None]) -> None:
        self.heard(item.worker)
        if self._liveness.knows(item.worker):
            self._liveness.heard(item.worker, time.monotonic())
        match item.message:
            case Goodbye():
                self.left(item.worker)
            case WorkerFailed(traceback=text):
                notice(f"worker rank {item.worker} failed:\n{text.rstrip()}")
                self.left(item.worker)
            case Hello(error=error) if error:
                self.left(item.worker)
            case _:
                return  # late news of attempts that the journal calls interrupted

    def dismiss(self) -> bool:
        """Leave MPI together; False when some worker had not said goodbye and was ended by force."""
        self._dismissed = True
        everybody = not self._absent and not self._lost
        for worker in self.transport.workers:
            self.transport.send(worker, Dismissal())
        if self._local_worker is not None:
            self._local_worker.join(THREAD_END_S)
        self.transport.close()
        if everybody and self._finalize is not None:
            finalize_in_time(self._finalize, "rank 0")
        elif self._abort is not None:
            # MPI_Finalize would wait for ever for a rank that is gone.
            flush_streams()
            self._abort(ABORT_CODE)
        return everybody

    def close(self) -> None:
        """Send home whoever is still there; after an orderly end nobody is."""
        if self._store is not None:
            self._store.end()
            self._store = None
        if not self._dismissed:
            self.farewell(FAREWELL_S, lambda _text: None)
            self.dismiss()


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
        See `transport.mpi.MpiWorld`.
    ClusterError
        The launcher of the worker beside the master cannot be started.
    """
    child = _fork_store() if fresh else None
    try:
        ranks = _connect(promised, child, fresh=fresh)
    except BaseException:
        if child is not None:
            child.end()
        raise
    if child is not None:
        # Not before: three processes that start on two cores are in each other's way.
        child.ask(LOAD_REQUEST)
    return ranks


def _fork_store() -> StoreChild | None:
    try:
        return fork_store()
    except OSError:
        return None  # another is started later, when there may be room for it


def _connect(promised: Promised, store: StoreChild | None, *, fresh: bool) -> Ranks:
    if promised.launcher is None:
        launcher = _start_launcher(fork=fresh)
        transport = LocalMaster()
        local_worker = _start_local_worker(transport.hub, launcher)
        return Ranks(promised, transport, None, None, local_worker, store)
    from keystone_mpi.transport.mpi import MpiMaster, MpiWorld

    early = _start_launcher(fork=fresh) if promised.size == 1 or promised.local_size in (None, 1) else None
    try:
        world = MpiWorld(promised.size, ours=fresh)
    except BaseException:
        if early is not None:
            early.close()
        raise
    place = world.node_place()
    master = MpiMaster(world)
    beside = None
    if place.master_alone:
        beside = _start_local_worker(master.hub, early or _start_launcher())
    elif early is not None:
        early.close()
    return Ranks(promised, master, world.finalize, world.abort, beside, store)


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
