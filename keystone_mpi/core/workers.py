"""Workers: how much room each has, what it runs and what it holds in advance.

Rule: an attempt is either *held* (it has its cores, memory and GPUs) or in the
*backlog* (one core, nothing else; it starts by itself as soon as a held one
ends, oldest first). A worker has a backlog only while no core of it is free.

    hold -> held -----------------> release
    queue -> backlog -> (promoted) -> held
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import Assignment
from keystone_mpi.core.ready_queue import Shape
from keystone_mpi.core.transitions import Phase, Task

UNCOUNTED = 1 << 62
"""Memory of a worker that does not know its own."""


class Worker(msgspec.Struct, eq=False):
    number: int
    slots: int
    memory_bytes: int
    gpus: int
    free_cores: int
    free_memory_bytes: int
    free_gpus: int
    held: dict[int, Task] = {}
    """Task index -> task, oldest first."""
    backlog: OrderedDict[int, Task] = msgspec.field(default_factory=OrderedDict)
    alive: bool = True
    reserved_for: Shape | None = None
    """Kept free for a wide task of this shape."""
    outbox: list[Assignment] = []
    """What this pass gives it."""
    grew: bool = False
    """It is in `WorkerPool.grown`."""
    is_hoard: bool = False
    """It has its entry in the pool's heap of backlogs."""


class WorkerPool:
    """All workers that are alive, and the sums over them that every pass needs."""

    __slots__ = ("_hoards", "backlogged", "capacities", "grown", "idle_cores", "slots", "workers")

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.capacities: set[tuple[int, int, int]] = set()
        """(slots, memory, gpus) of every worker that ever joined."""
        self.slots = 0
        self.idle_cores = 0
        self.backlogged = 0
        """Attempts in backlogs."""
        self.grown: list[Worker] = []
        """Workers that have more room, or a shorter backlog, than at the last pass."""
        self._hoards: list[tuple[int, int]] = []
        """Heap of (-length of the backlog when entered, worker), each worker at most once."""

    def join(self, number: int, slots: int, memory_bytes: int, gpus: int) -> Worker:
        """Add a worker, all of it free."""
        if number in self.workers:
            raise InternalError(f"worker {number} joined twice")
        memory_bytes = memory_bytes or UNCOUNTED
        worker = Worker(number, slots, memory_bytes, gpus, slots, memory_bytes, gpus)
        self.workers[number] = worker
        self.capacities.add((slots, memory_bytes, gpus))
        self.slots += slots
        self.idle_cores += slots
        self.note_grown(worker)
        return worker

    def lose(self, worker: Worker) -> None:
        """Take out a worker; what it has is the caller's to settle."""
        del self.workers[worker.number]
        worker.alive = False
        self.slots -= worker.slots
        self.idle_cores -= worker.free_cores
        self.backlogged -= len(worker.backlog)

    def note_grown(self, worker: Worker) -> None:
        """Have the next pass look at the worker."""
        if not worker.grew:
            worker.grew = True
            self.grown.append(worker)

    def take_grown(self) -> list[Worker]:
        """Return the workers noted since the last call."""
        grown = self.grown
        if grown:
            self.grown = []
            for worker in grown:
                worker.grew = False
        return grown

    def hold(self, worker: Worker, task: Task) -> None:
        """Give the task its cores, memory and GPUs on the worker."""
        shape = task.shape
        worker.held[task.request.index] = task
        worker.free_cores -= shape.cores
        self.idle_cores -= shape.cores
        if not shape.is_unit:
            worker.free_memory_bytes -= shape.memory_bytes
            worker.free_gpus -= shape.gpus
        task.worker = worker

    def queue(self, worker: Worker, task: Task) -> None:
        """Put the task behind those that the worker runs."""
        worker.backlog[task.request.index] = task
        task.worker = worker
        self.backlogged += 1
        if not worker.is_hoard:
            worker.is_hoard = True
            heapq.heappush(self._hoards, (-len(worker.backlog), worker.number))

    def release(self, task: Task) -> Worker:
        """Take the task from its worker, whose backlog moves up."""
        worker = task.worker
        assert worker is not None
        task.worker = None
        backlog = worker.backlog
        if worker.held.pop(task.request.index, None) is None:
            del backlog[task.request.index]
            self.backlogged -= 1
        else:
            shape = task.shape
            worker.free_cores += shape.cores
            self.idle_cores += shape.cores
            if not shape.is_unit:
                worker.free_memory_bytes += shape.memory_bytes
                worker.free_gpus += shape.gpus
            while backlog and worker.free_cores:
                _, promoted = backlog.popitem(last=False)
                self.backlogged -= 1
                self.hold(worker, promoted)
        if not worker.grew:
            worker.grew = True
            self.grown.append(worker)
        return worker

    def spare(self, wanted: int) -> Iterator[tuple[Worker, list[Task]]]:
        """Yield attempts to ask back from the longest backlogs, the latest given first.

        The caller marks what it got before it asks for more. At most half of
        what a backlog still has (rounded up) is taken at a time.
        """
        hoards = self._hoards
        while wanted > 0 and hoards:
            entered, number = hoards[0]
            worker = self.workers.get(number)
            tasks = [] if worker is None else recallable(worker)
            if worker is None or not tasks:
                heapq.heappop(hoards)
                if worker is not None:
                    worker.is_hoard = False
            elif -entered > len(tasks):
                heapq.heapreplace(hoards, (-len(tasks), number))
            else:
                taken = tasks[: min(wanted, (len(tasks) + 1) // 2)]
                wanted -= len(taken)
                yield worker, taken


def recallable(worker: Worker) -> list[Task]:
    """Return the attempts that the worker could still give back, the latest given first."""
    return [task for task in reversed(worker.backlog.values()) if task.phase is Phase.GIVEN]


def unstarted(worker: Worker) -> list[Task]:
    """Return all attempts of which no start was heard, those on a core, too: they may have to wait there."""
    return recallable(worker) + [task for task in worker.held.values() if task.phase is Phase.GIVEN]
