"""Placement: which worker gets which task, in one pass.

Rule: tasks go in the order of the ready queue, each to the next worker in turn
that has room; more short tasks are given in advance (durations.py), and asked
back when another worker would be idle. All that a worker gets in a pass
travels together.

    place -> prefetch | rebalance -> flush: RecordAssigned + Assign, Recall
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from keystone_mpi.core.actions import Action, Assign, Recall, RecordAssigned
from keystone_mpi.core.durations import NO_PREFETCH_ABOVE_S, DurationMean, TimeLeft
from keystone_mpi.core.model import Assignment
from keystone_mpi.core.ready_queue import Key, ReadyQueue, Shape, pop
from keystone_mpi.core.reservations import Reservations
from keystone_mpi.core.transitions import Ledger, Phase, Task
from keystone_mpi.core.workers import Worker, WorkerPool, recallable

_GIVEN = Phase.GIVEN


class Placement:
    """Gives tasks to workers and collects what to tell them."""

    __slots__ = (
        "_durations", "_ledger", "_pool", "_queue", "_recalls", "_time_left", "_touched", "reservations",
    )  # fmt: skip

    def __init__(
        self,
        queue: ReadyQueue,
        pool: WorkerPool,
        ledger: Ledger,
        durations: DurationMean,
        time_left: TimeLeft,
    ) -> None:
        self._queue = queue
        self._pool = pool
        self._ledger = ledger
        self._durations = durations
        self._time_left = time_left
        self._touched: list[Worker] = []
        self._recalls: dict[int, list[tuple[int, int]]] = {}
        self.reservations = Reservations(pool)

    def place(self, now: float) -> None:
        """Start every task that fits somewhere, in order."""
        shapes = [shape for shape in self._queue.shapes if self._has_next(shape, now)]
        if len(shapes) == 1:
            shape = shapes[0]
            while self._has_next(shape, now) and (worker := shape.next_worker()) is not None:
                self._give(shape, worker, now)
        else:
            self._place_by_order(shapes, now)

    def _has_next(self, shape: Shape, now: float) -> bool:
        """Tell whether a task waits that ends in time; those ahead of it that do not are set aside."""
        if self._time_left.ends_at is None:
            return shape.waiting > 0
        while shape.waiting:
            shape.head_key()  # drops what is no longer READY
            if self._time_left.suffices(shape.heap[0][3].request, now):
                return True
            self._ledger.move(pop(shape), Phase.TOO_LATE, now)
        return False

    def _place_by_order(self, shapes: list[Shape], now: float) -> None:
        order: list[tuple[Key, int, Shape]] = [(shape.head_key(), shape.number, shape) for shape in shapes]
        heapq.heapify(order)
        is_first_blocked = True
        while order:
            _, number, shape = order[0]
            worker = shape.next_worker()
            if worker is not None:
                self._give(shape, worker, now)
                if self._has_next(shape, now):
                    heapq.heapreplace(order, (shape.head_key(), number, shape))
                else:
                    heapq.heappop(order)
                continue
            heapq.heappop(order)
            if is_first_blocked and shape.able_count:
                is_first_blocked = False
                if not any(other.is_less_than(shape) for _, _, other in order):
                    continue
                reserved = self.reservations.reserve(shape)
                if reserved is not None:
                    self.recall(reserved, recallable(reserved), now)

    def _give(self, shape: Shape, worker: Worker, now: float) -> None:
        task = pop(shape)
        self._ledger.move(task, _GIVEN, now)
        self._pool.hold(worker, task)
        self._address(worker, task)
        if worker.reserved_for is shape:
            self.reservations.end(worker)
        shape.offer(worker)

    def _address(self, worker: Worker, task: Task) -> None:
        if not worker.outbox:
            self._touched.append(worker)
        request = task.request
        worker.outbox.append(
            Assignment(
                request.index,
                task.attempt,
                request.cores,
                request.memory_bytes,
                request.gpus,
                request.timeout_s,
            )
        )

    def prefetch(self, workers: Iterable[Worker], remaining: int, now: float) -> None:
        """Give short tasks in advance to full workers whose backlog has run low.

        Only while no task of another need waits: a backlog would take the room
        that falls free before a wide task could have it.
        """
        pool = self._pool
        depth = self._durations.depth(remaining, pool.slots)
        if depth == 0:
            return
        shapes = [shape for shape in self._queue.shapes if shape.waiting]
        if len(shapes) != 1 or not shapes[0].is_unit:
            return
        unit = shapes[0]
        for worker in workers:
            have = len(worker.backlog)
            want = depth * worker.slots
            if have > want // 2 or worker.free_cores or not worker.alive:
                continue
            for _ in range(want - have):
                if not self._has_next(unit, now):
                    return
                task = pop(unit)
                if task.request.expected_s > NO_PREFETCH_ABOVE_S:
                    self._queue.push(task)
                    return
                self._ledger.move(task, _GIVEN, now)
                pool.queue(worker, task)
                self._address(worker, task)

    def rebalance(self, now: float) -> None:
        """Nothing is left to give: ask back from the longest backlogs for the cores that are idle."""
        wanted = self._pool.idle_cores - self._ledger.count[Phase.RECALLED]
        for worker, tasks in self._pool.spare(wanted):
            self.recall(worker, tasks, now)

    def recall(self, worker: Worker, tasks: list[Task], now: float) -> None:
        """Ask the worker for these attempts, none of which was asked for before."""
        if tasks:
            recalled = self._recalls.setdefault(worker.number, [])
            for task in tasks:
                self._ledger.move(task, Phase.RECALLED, now)
                recalled.append((task.request.index, task.attempt))

    def flush(self, out: list[Action]) -> None:
        """Hand over what the workers are to be told."""
        for worker in self._touched:
            attempts = worker.outbox
            worker.outbox = []
            out.append(RecordAssigned(worker.number, [(a.index, a.attempt) for a in attempts]))
            out.append(Assign(worker.number, attempts))
        self._touched.clear()
        if self._recalls:
            out.extend(Recall(number, attempts) for number, attempts in self._recalls.items())
            self._recalls.clear()
