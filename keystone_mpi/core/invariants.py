"""What must hold between any two events.

Rule: every number that is kept is counted anew here and compared. Slow, for
tests and for the hunt after a defect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import TaskState
from keystone_mpi.core.transitions import ON_WORKER, Phase, Task, describe_history
from keystone_mpi.core.workers import Worker

if TYPE_CHECKING:
    from keystone_mpi.core.scheduler import Scheduler


def check_invariants(scheduler: Scheduler) -> None:
    """Raise `InternalError` at the first contradiction."""
    _check_tasks(scheduler)
    _check_workers(scheduler)
    _check_queue(scheduler)
    _check_dependencies(scheduler)


def _broken(what: str) -> NoReturn:
    raise InternalError(f"scheduler invariant broken: {what}")


def _require(holds: bool, what: str) -> None:
    if not holds:
        _broken(what)


def _check_tasks(scheduler: Scheduler) -> None:
    count = [0] * len(Phase)
    for index, task in scheduler.tasks.items():
        name = f"task {index} ({task.phase.name}; history: {describe_history(task)})"
        count[task.phase] += 1
        _require(task.request.index == index, f"{name} is filed under another index")
        _require(task.phase not in (Phase.NEW, Phase.ENDED), f"{name} is active")
        _require(scheduler.finals.get(index) is None, f"{name} is active and has a final state")
        _require((task.worker is not None) == (task.phase in ON_WORKER), f"{name} and its worker disagree")
        _require(
            (task.unmet > 0) == (task.phase is Phase.WAITING), f"{name} has {task.unmet} unmet dependencies"
        )
        worker = task.worker
        if worker is not None:
            _require(scheduler.pool.workers.get(worker.number) is worker, f"{name} is on a lost worker")
            places = (worker.held.get(index) is task) + (worker.backlog.get(index) is task)
            _require(places == 1, f"{name} is in {places} places of worker {worker.number}")
    for phase in Phase:
        if phase is not Phase.ENDED:
            _require(count[phase] == scheduler.ledger.count[phase], f"{phase.name} is miscounted")
    _require(scheduler.finals.recount() == scheduler.finals.counts, "final states are miscounted")
    _require(not scheduler.finals.counts[TaskState.RUNNING], "RUNNING is a final state")


def _check_workers(scheduler: Scheduler) -> None:
    pool = scheduler.pool
    for worker in pool.workers.values():
        name = f"worker {worker.number}"
        held = list(worker.held.values())
        _require(worker.alive, f"{name} is listed and dead")
        _check_room(worker, held)
        _require(not (worker.backlog and worker.free_cores), f"{name} has a backlog and free cores")
        for task in (*held, *worker.backlog.values()):
            _require(task.worker is worker, f"{name} has task {task.request.index}, which says otherwise")
            _require(scheduler.tasks.get(task.request.index) is task, f"{name} has a task that is not active")
        for task in worker.backlog.values():
            _require(task.shape.is_unit, f"{name} has task {task.request.index} in its backlog")
        _require(not worker.outbox, f"{name} has unsent assignments")
    workers = pool.workers.values()
    _require(pool.slots == sum(w.slots for w in workers), "slots are miscounted")
    _require(pool.idle_cores == sum(w.free_cores for w in workers), "idle cores are miscounted")
    _require(pool.backlogged == sum(len(w.backlog) for w in workers), "backlogs are miscounted")


def _check_room(worker: Worker, held: list[Task]) -> None:
    for what, size, free, used in (
        ("cores", worker.slots, worker.free_cores, sum(t.shape.cores for t in held)),
        ("memory", worker.memory_bytes, worker.free_memory_bytes, sum(t.shape.memory_bytes for t in held)),
        ("GPUs", worker.gpus, worker.free_gpus, sum(t.shape.gpus for t in held)),
    ):
        _require(free >= 0, f"worker {worker.number} has given out more {what} than it has")
        _require(size - used == free, f"worker {worker.number} has {free} {what} free, counted {size - used}")


def _check_queue(scheduler: Scheduler) -> None:
    pool = scheduler.pool
    ready_count = sum(shape.waiting for shape in scheduler.queue.shapes)
    is_open = not (scheduler.paused or scheduler.draining or scheduler.stopping or scheduler.finished)
    for shape in scheduler.queue.shapes:
        name = f"shape ({shape.cores} cores, {shape.memory_bytes} bytes, {shape.gpus} GPUs)"
        ready = [entry[3] for entry in shape.heap if entry[3].phase is Phase.READY]
        _require(len(ready) == shape.waiting, f"{name} counts {shape.waiting} tasks, has {len(ready)}")
        _require(len(set(map(id, ready))) == len(ready), f"{name} has a task twice")
        able = sum(shape.fits_empty(worker) for worker in pool.workers.values())
        _require(able == shape.able_count, f"{name} is miscounted in its able workers")
        _require(len(shape.offers) == len(shape.offered), f"{name} offers a worker twice")
        if is_open and shape.waiting:
            for worker in pool.workers.values():
                idle = shape.fits(worker) and worker.reserved_for in (None, shape)
                _require(not idle, f"{name} waits though worker {worker.number} has room")
    looks_on = scheduler.pass_cut_at is None and not scheduler.ledger.count[Phase.TOO_LATE]
    if is_open and pool.idle_cores and looks_on and scheduler.queued():
        _require(ready_count > 0, "cores are idle though the source has tasks")
    reserved = {w.number: w for w in pool.workers.values() if w.reserved_for is not None}
    _require(reserved == scheduler.placement.reservations.workers, "reservations are misfiled")
    by_shape = {n: w for shape in scheduler.queue.shapes for n, w in shape.reserved.items()}
    _require(reserved == by_shape, "reservations of shapes are misfiled")
    _require(ready_count == scheduler.ledger.count[Phase.READY], "a READY task is in no heap")


def _check_dependencies(scheduler: Scheduler) -> None:
    for index, task in scheduler.tasks.items():
        if task.phase is not Phase.WAITING:
            continue
        waiters = scheduler.dependencies.waiters
        awaited = {*task.request.depends_on, *task.request.start_after}
        unmet = [other for other in awaited if index in waiters.get(other, [])]
        _require(len(unmet) == task.unmet, f"task {index} waits for {task.unmet}, is known to {len(unmet)}")
    for other in scheduler.dependencies.waiters:
        _require(scheduler.finals.get(other) is None, f"task {other} ended, its dependents were not told")
