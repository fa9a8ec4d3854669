"""The master's side of its ranks: who is there, and sending everybody home.

Rule: a worker is waited for until it has said goodbye or is lost, and MPI ends
in order only when nobody is lost.

    Ranks (made by bringing_up.py) --> transport
    farewell (workers stop their launchers) --> last batch, beats both ways --> dismiss (MPI_Finalize)
                                            '-> or, of a small file, meanwhile
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from keystone_mpi.engine.liveness import Liveness, silence_limit_s
from keystone_mpi.engine.parting import ABORT_CODE, finalize_in_time, flush_streams
from keystone_mpi.execution.environment import Promised
from keystone_mpi.transport.channel import MasterEnd, Received
from keystone_mpi.transport.messages import Beat, Dismissal, Farewell, Goodbye, Hello, WorkerFailed
from keystone_mpi.transport.waiter import Waiter

if TYPE_CHECKING:
    from keystone_mpi.engine.store_child import StoreChild

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
        self._in_order = True
        """All workers had said goodbye when they were dismissed."""
        self._pause = Waiter()
        """What is waited on when there is no transport any more."""
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

    @property
    def dismissed(self) -> bool:
        """MPI has ended."""
        return self._dismissed

    @property
    def everybody_left(self) -> bool:
        """All workers have said goodbye, so that MPI can end in order."""
        return not self._absent and not self._lost

    def wake(self) -> None:
        """End a wait of `stay`; callable from any thread and from signal handlers."""
        self.transport.wake()
        self._pause.wake()

    def begin_farewell(self) -> None:
        """Send every worker away; `stay` hears their goodbyes, `farewell` waits for them."""
        for worker in self._absent:
            self.transport.send(worker, Farewell())
        now = time.monotonic()
        self._liveness = Liveness(now, silence_limit_s())
        for worker in self.waiting():
            self._liveness.heard(worker, now)

    def farewell(self, timeout_s: float, notice: Callable[[str], None]) -> None:
        """Send every worker away and wait for their goodbyes, `timeout_s` at most."""
        self.begin_farewell()
        deadline = time.monotonic() + timeout_s
        while self._absent and time.monotonic() < deadline:
            self.stay(min(0.2, max(0.0, deadline - time.monotonic())), notice)

    def stay(self, timeout_s: float, notice: Callable[[str], None]) -> None:
        """Give signs of life to those who wait for the end, and look for theirs, for `timeout_s` at most."""
        if self._dismissed:
            self._pause.wait(timeout_s)
            return
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

    def dismiss(
        self, *, busy: Callable[[], bool] = lambda: False, meanwhile: Callable[[], None] = lambda: None
    ) -> bool:
        """Leave MPI together; False when some worker had not said goodbye and was ended by force.

        What else this process does then is told by `busy` and `meanwhile`, see `finalize_in_time`.
        Doing it again does nothing.
        """
        if self._dismissed:
            return self._in_order
        self._dismissed = True
        self._in_order = self.everybody_left
        for worker in self.transport.workers:
            self.transport.send(worker, Dismissal())
        if self._local_worker is not None:
            self._local_worker.join(THREAD_END_S)
        self.transport.close()
        if self._in_order and self._finalize is not None:
            finalize_in_time(self._finalize, "rank 0", busy=busy, meanwhile=meanwhile)
        elif self._abort is not None:
            # MPI_Finalize would wait for ever for a rank that is gone.
            flush_streams()
            self._abort(ABORT_CODE)
        return self._in_order

    def close(self) -> None:
        """Send home whoever is still there; after an orderly end nobody is."""
        if self._store is not None:
            self._store.end()
            self._store = None
        if not self._dismissed:
            self.farewell(FAREWELL_S, lambda _text: None)
            self.dismiss()
        self._pause.close()
