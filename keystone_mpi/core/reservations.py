"""Reservations: a wide task does not starve behind narrow ones.

Rule: when a task fits no worker now and tasks behind it in the order would
take the room that falls free, the worker that will fit it soonest is kept for
its shape. Others may use that worker only if they are ahead in the order or
take nothing that the wide task lacks. A reservation ends when a task of its
shape is placed there, or when none is left that needs it.
"""

from __future__ import annotations

from keystone_mpi.core.ready_queue import Shape
from keystone_mpi.core.workers import Worker, WorkerPool

_LIMIT = 16
_WORKERS_PER_RESERVATION = 16


class Reservations:
    """Worker -> shape that it is kept for, a few at a time."""

    __slots__ = ("_pool", "workers")

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self.workers: dict[int, Worker] = {}

    def reserve(self, shape: Shape) -> Worker | None:
        """Keep one more worker for `shape` when it may have one; return that worker."""
        if len(shape.reserved) >= shape.waiting:
            return None
        limit = min(_LIMIT, 1 + len(self._pool.workers) // _WORKERS_PER_RESERVATION)
        if len(self.workers) >= limit:
            if shape.reserved:
                return None
            # The shape ahead in the order goes before one that was reserved for earlier.
            self.end(next(iter(self.workers.values())))
        worker = shape.soonest()
        if worker is not None:
            worker.reserved_for = shape
            shape.reserved[worker.number] = worker
            self.workers[worker.number] = worker
        return worker

    def end(self, worker: Worker) -> None:
        """Free the worker for every shape."""
        shape = worker.reserved_for
        if shape is not None:
            worker.reserved_for = None
            del shape.reserved[worker.number]
            del self.workers[worker.number]
            if worker.alive:
                self._pool.note_grown(worker)

    def refresh(self) -> None:
        """End what no task needs; have the pass look again at the workers still reserved."""
        for worker in list(self.workers.values()):
            shape = worker.reserved_for
            if shape is None or len(shape.reserved) > shape.waiting:
                self.end(worker)
            else:
                self._pool.note_grown(worker)
