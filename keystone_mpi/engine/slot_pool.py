"""A worker's slots: which cores are free, which slot process runs what.

Rule: pure bookkeeping. An order occupies its cores from the moment it is given
to a slot process until its report comes back. Short one-core orders may queue
behind each other on one slot process, so that the next starts without a round
trip; long ones never do.

    backlog --(choose)--> slot process, cores    report --(finish)--> free cores
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import AttemptKey
from keystone_mpi.transport.messages import TaskOrder

QUEUE_AHEAD_S = 0.04
"""Work that may wait in a slot process behind the running task."""
QUEUE_AHEAD_LONGEST = 64
SMOOTHING = 0.1


class Placement(msgspec.Struct, frozen=True):
    """Where one order runs."""

    slot: int
    order: TaskOrder
    cpus: tuple[int, ...]
    """Empty: not pinned."""
    gpus: tuple[int, ...] = ()
    """Positions in the worker's lists of devices."""


class SlotPool:
    """Cores and slot processes of one worker.

    Parameters
    ----------
    slots : int
        Cores' worth of work that run at once; also the number of slot processes.
    cpus : sequence of int
        Logical cpus to pin to, one per slot; anything shorter turns pinning off.
    gpus : sequence of int
        Positions of the worker's devices in their lists.
    """

    def __init__(self, slots: int, cpus: Sequence[int], gpus: Sequence[int] = ()) -> None:
        self.slots = slots
        self.backlog: deque[TaskOrder] = deque()
        self._pinning = len(cpus) >= slots
        self._free_cpus = sorted(cpus[:slots]) if self._pinning else list(range(slots))
        self._queues: list[dict[tuple[int, int], TaskOrder]] = [{} for _ in range(slots)]
        self._cpus_of_slot: list[tuple[int, ...]] = [() for _ in range(slots)]
        self._free_gpus = sorted(gpus)
        self._gpus_of_slot: list[tuple[int, ...]] = [() for _ in range(slots)]
        self._idle_slots = list(range(slots - 1, -1, -1))
        self._mean_s: float | None = None
        self.staying: set[int] = set()
        """Recipes whose attempts stay for long (function processes): nothing may queue behind them."""

    def queue_depth(self) -> int:
        """How many orders one slot process may hold, the running one included."""
        if self._mean_s is None or self._mean_s >= QUEUE_AHEAD_S:
            return 1
        return 1 + min(QUEUE_AHEAD_LONGEST, int(QUEUE_AHEAD_S / max(self._mean_s, 1e-4)))

    def place(self) -> list[Placement]:
        """Take from the backlog what can be given to slot processes now, in order."""
        placements: list[Placement] = []
        backlog = self.backlog
        while backlog:
            cores = min(backlog[0].cores, self.slots)
            gpus = backlog[0].gpus
            if not self._idle_slots or cores > len(self._free_cpus) or gpus > len(self._free_gpus):
                break
            order = backlog.popleft()
            slot = self._idle_slots.pop()
            cpus = tuple(self._free_cpus[:cores])
            del self._free_cpus[:cores]
            self._cpus_of_slot[slot] = cpus
            self._gpus_of_slot[slot] = tuple(self._free_gpus[:gpus])
            del self._free_gpus[:gpus]
            placements.append(self._give(slot, order))
        if backlog and not self._free_cpus:
            placements += self._queue_ahead()
        return placements

    def _queue_ahead(self) -> list[Placement]:
        depth = self.queue_depth()
        if depth == 1:
            return []
        placements: list[Placement] = []
        for slot, queue in enumerate(self._queues):
            if len(self._cpus_of_slot[slot]) != 1 or self._gpus_of_slot[slot] or len(queue) > depth // 2:
                continue
            if self.staying and any(order.recipe in self.staying for order in queue.values()):
                continue
            while len(queue) < depth and self.backlog and _is_plain(self.backlog[0]):
                placements.append(self._give(slot, self.backlog.popleft()))
        return placements

    def _give(self, slot: int, order: TaskOrder) -> Placement:
        self._queues[slot][order.index, order.attempt] = order
        cpus = self._cpus_of_slot[slot] if self._pinning else ()
        return Placement(slot, order, cpus, self._gpus_of_slot[slot])

    def finish(self, slot: int, key: AttemptKey, duration_s: float) -> TaskOrder:
        """An attempt on `slot` ended; frees its cores when nothing is queued behind it."""
        order = self._remove(slot, key)
        if duration_s == duration_s:
            mean_s = duration_s if self._mean_s is None else self._mean_s
            self._mean_s = mean_s + SMOOTHING * (duration_s - mean_s)
        return order

    def put_back(self, slot: int, key: AttemptKey) -> None:
        """An order that `slot` had not started goes to the front of the backlog."""
        self.backlog.appendleft(self._remove(slot, key))

    def _remove(self, slot: int, key: AttemptKey) -> TaskOrder:
        queue = self._queues[slot]
        if key not in queue:
            raise InternalError(f"slot process {slot} speaks of attempt {key}, which it was not given")
        order = queue.pop(key)
        if not queue:
            self._free_cpus = sorted((*self._free_cpus, *self._cpus_of_slot[slot]))
            self._cpus_of_slot[slot] = ()
            self._free_gpus = sorted((*self._free_gpus, *self._gpus_of_slot[slot]))
            self._gpus_of_slot[slot] = ()
            self._idle_slots.append(slot)
        return order

    def slot_of(self, key: AttemptKey) -> int | None:
        """Slot process that holds an attempt; None when it is not on one."""
        for slot, queue in enumerate(self._queues):
            if key in queue:
                return slot
        return None

    def withdraw(self, keys: set[AttemptKey]) -> list[TaskOrder]:
        """Take the orders named by `keys` out of the backlog."""
        withdrawn = [order for order in self.backlog if AttemptKey(order.index, order.attempt) in keys]
        if withdrawn:
            self.backlog = deque(
                order for order in self.backlog if AttemptKey(order.index, order.attempt) not in keys
            )
        return withdrawn

    def slot_to_relieve(self) -> int | None:
        """Slot process with the longest queue, when another one has nothing to do."""
        if self.backlog or not self._idle_slots:
            return None
        slot = max(range(self.slots), key=lambda index: len(self._queues[index]))
        return slot if len(self._queues[slot]) > 1 else None

    @property
    def held(self) -> int:
        """Orders on slot processes."""
        return sum(len(queue) for queue in self._queues)


def _is_plain(order: TaskOrder) -> bool:
    """Tell whether an order may wait behind another: one core, no device."""
    return order.cores == 1 and not order.gpus
