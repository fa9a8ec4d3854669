"""Tasks that may start now, in the order in which they should.

Rule: larger priority first, then the longer expected duration, then the order
of submission. Tasks of one shape (cores, memory, GPUs) share a heap and a
queue of workers that may have room for them, so a task costs the same however
many are queued and however many workers there are.

    push -> heap of its shape -> pop
    worker with more room -> offers of every shape that fits -> next_worker   (round robin)

There is one shape for each distinct need up to `_EXACT_SHAPES`; beyond that,
memory is rounded up by at most an eighth, so that a sweep whose memory differs
from task to task stays cheap.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.model import TaskRequest
from keystone_mpi.core.transitions import Phase, Task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keystone_mpi.core.workers import Worker, WorkerPool

_EXACT_SHAPES = 64
_SAMPLE = 64
_READY = Phase.READY

Key = tuple[float, float, int]


class Shape(msgspec.Struct, eq=False):
    """One need of cores, memory and GPUs, and the tasks that have it."""

    number: int
    cores: int
    memory_bytes: int
    gpus: int
    is_unit: bool
    """One core and nothing else: such tasks may be given in advance."""
    heap: list[tuple[float, float, int, Task]] = []
    """May hold tasks that ended meanwhile; they are skipped."""
    waiting: int = 0
    """Tasks in the heap that are READY."""
    offers: deque[Worker] = msgspec.field(default_factory=deque)
    """Workers that may have room; every worker that has room for this shape is here."""
    offered: set[Worker] = set()
    """The same workers, to enter each once."""
    able: list[Worker] = []
    """Workers large enough when empty; may hold lost ones."""
    able_count: int = 0
    """Those of `able` that are alive."""
    ever_able: bool = False
    """Some worker that joined was large enough."""
    cursor: int = 0
    """Where the next search in `able` begins."""
    reserved: dict[int, Worker] = {}
    """Workers kept free for this shape."""

    def head_key(self) -> Key:
        """Return the place in the order of the first task; there must be one."""
        heap = self.heap
        while heap[0][3].phase is not _READY:
            heapq.heappop(heap)
        head = heap[0]
        return head[0], head[1], head[2]

    def fits(self, worker: Worker) -> bool:
        """Tell whether the worker has room now."""
        return (
            self.cores <= worker.free_cores
            and self.memory_bytes <= worker.free_memory_bytes
            and self.gpus <= worker.free_gpus
        )

    def fits_empty(self, worker: Worker) -> bool:
        """Tell whether the worker is large enough when nothing runs on it."""
        return (
            self.cores <= worker.slots
            and self.memory_bytes <= worker.memory_bytes
            and self.gpus <= worker.gpus
        )

    def is_less_than(self, other: Shape) -> bool:
        """Tell whether a task of this shape may fit where one of the other does not."""
        return self.cores < other.cores or self.memory_bytes < other.memory_bytes or self.gpus < other.gpus

    def offer(self, worker: Worker) -> None:
        """Enter a worker that may have room."""
        if worker not in self.offered and self.fits(worker):
            self.offered.add(worker)
            self.offers.append(worker)

    def next_worker(self) -> Worker | None:
        """Take out the worker whose turn it is, None when none has room."""
        offers = self.offers
        while offers:
            worker = offers.popleft()
            self.offered.discard(worker)
            if (
                worker.alive
                and self.fits(worker)
                and (worker.reserved_for is None or self._may_use_reserved(worker, worker.reserved_for))
            ):
                return worker
        return None

    def _may_use_reserved(self, worker: Worker, owner: Shape) -> bool:
        """Tell whether a task of this shape may go where another shape waits for room."""
        if owner is self or not owner.waiting:
            return True
        if self.head_key() < owner.head_key():
            return True
        return (
            worker.free_cores - self.cores >= owner.cores
            and (not self.memory_bytes or worker.free_memory_bytes - self.memory_bytes >= owner.memory_bytes)
            and (not self.gpus or worker.free_gpus - self.gpus >= owner.gpus)
        )

    def admit_worker(self, worker: Worker) -> None:
        """Take notice of a worker that joined."""
        if self.fits_empty(worker):
            self.able.append(worker)
            self.able_count += 1
            self.ever_able = True

    def forget_worker(self, worker: Worker) -> None:
        """Take notice of a worker that was lost."""
        if self.fits_empty(worker):
            self.able_count -= 1
            if len(self.able) > 2 * self.able_count + _SAMPLE:
                self.able = [other for other in self.able if other.alive]

    def soonest(self) -> Worker | None:
        """Return the unreserved worker that lacks least for this shape, of a bounded sample."""
        able = self.able
        best: Worker | None = None
        best_lack = 0.0
        for _ in range(min(_SAMPLE, len(able))):
            self.cursor = (self.cursor + 1) % len(able)
            worker = able[self.cursor]
            if not worker.alive or worker.reserved_for is not None:
                continue
            lack = max(
                (self.cores - worker.free_cores) / self.cores,
                (self.memory_bytes - worker.free_memory_bytes) / (self.memory_bytes or 1),
                (self.gpus - worker.free_gpus) / (self.gpus or 1),
            )
            if best is None or lack < best_lack:
                best, best_lack = worker, lack
        return best


class ReadyQueue:
    """The shapes of a run and their heaps."""

    __slots__ = ("_by_need", "_pool", "shapes")

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._by_need: dict[tuple[int, int, int], Shape] = {}
        self.shapes: list[Shape] = []

    def shape_of(self, request: TaskRequest) -> Shape:
        """Return the shape whose needs cover the request."""
        need = (request.cores, request.memory_bytes, request.gpus)
        shape = self._by_need.get(need)
        if shape is not None:
            return shape
        cores, memory_bytes, gpus = max(1, need[0]), max(0, need[1]), max(0, need[2])
        if len(self.shapes) >= _EXACT_SHAPES:
            rounded = round_up(memory_bytes)
            # Rounding must not make a task too large that would just fit.
            if rounded <= max((capacity[1] for capacity in self._pool.capacities), default=0):
                memory_bytes = rounded
        shape = self._by_need.get((cores, memory_bytes, gpus)) or self._add(cores, memory_bytes, gpus)
        if len(self.shapes) < _EXACT_SHAPES:
            self._by_need[need] = shape
        return shape

    def _add(self, cores: int, memory_bytes: int, gpus: int) -> Shape:
        is_unit = cores == 1 and not memory_bytes and not gpus
        shape = Shape(len(self.shapes), cores, memory_bytes, gpus, is_unit)
        self.shapes.append(shape)
        self._by_need[cores, memory_bytes, gpus] = shape
        for worker in self._pool.workers.values():
            shape.admit_worker(worker)
            shape.offer(worker)
        shape.ever_able = any(
            cores <= slots and memory_bytes <= memory and gpus <= cards
            for slots, memory, cards in self._pool.capacities
        )
        return shape

    def push(self, task: Task) -> None:
        """Enter a READY task."""
        request = task.request
        shape = task.shape
        heapq.heappush(shape.heap, (-request.priority, -request.expected_s, task.number, task))
        shape.waiting += 1

    def offer(self, workers: Iterable[Worker]) -> None:
        """Enter workers that have more room than before with every shape."""
        shapes = self.shapes
        for worker in workers:
            if worker.free_cores and worker.alive:
                for shape in shapes:
                    shape.offer(worker)

    def stranded(self) -> int:
        """Return how many READY tasks fit no worker that is alive, however empty."""
        return sum(shape.waiting for shape in self.shapes if not shape.able_count)


def pop(shape: Shape) -> Task:
    """Take out the first task of a shape that has one."""
    heap = shape.heap
    while True:
        task = heapq.heappop(heap)[3]
        if task.phase is _READY:
            shape.waiting -= 1
            return task


def round_up(memory_bytes: int) -> int:
    """Round up to three significant bits after the first: by an eighth at most."""
    step = 1 << max(0, memory_bytes.bit_length() - 4)
    return -(-memory_bytes // step) * step
