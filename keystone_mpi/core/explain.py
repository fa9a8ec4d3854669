"""What the scheduler says for people: how many tasks are where, and why pending ones wait.

Rule: every pending task is accounted for by one line, in words of the sweep
file, and asking changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from keystone_mpi.core.model import TaskState
from keystone_mpi.core.ready_queue import Shape
from keystone_mpi.core.transitions import Phase
from keystone_mpi.core.workers import UNCOUNTED

if TYPE_CHECKING:
    from keystone_mpi.core.scheduler import Scheduler


class Counts(msgspec.Struct, frozen=True, gc=False):
    """Tasks by where they are; the fields add up to all tasks known."""

    queued: int
    """Still in the task source."""
    ready: int
    waiting: int
    """For a task that they depend on."""
    delayed: int
    """For their retry."""
    running: int
    """A worker has them with their cores."""
    backlog: int
    """A worker has them in advance."""
    success: int
    failure: int
    timeout: int
    cancelled: int

    @property
    def pending(self) -> int:
        """Tasks that no core works on, those given in advance included."""
        return self.queued + self.ready + self.waiting + self.delayed + self.backlog

    @property
    def final(self) -> int:
        return self.success + self.failure + self.timeout + self.cancelled

    @property
    def total(self) -> int:
        return self.pending + self.running + self.final


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """One reason why tasks wait."""

    kind: str
    """One of ``paused``, ``draining``, ``stopping``, ``no_workers``, ``too_large``, ``busy``, ``room``,
    ``dependencies``, ``retry`` or ``walltime``."""
    tasks: int
    text: str
    """The whole sentence, such as ``"3 tasks wait for 64 cores; the largest worker has 16"``."""


def count_tasks(scheduler: Scheduler) -> Counts:
    """Return how many tasks are where."""
    count = scheduler.ledger.count
    ended = scheduler.finals.counts
    backlog = scheduler.pool.backlogged
    return Counts(
        queued=scheduler.queued(),
        ready=count[Phase.READY] + count[Phase.TOO_LATE],
        waiting=count[Phase.WAITING],
        delayed=count[Phase.DELAYED],
        running=scheduler.ledger.on_workers() - backlog,
        backlog=backlog,
        success=ended[TaskState.SUCCESS],
        failure=ended[TaskState.FAILURE],
        timeout=ended[TaskState.TIMEOUT],
        cancelled=ended[TaskState.CANCELLED],
    )


def why_waiting(scheduler: Scheduler, now: float) -> list[Waiting]:
    """Return why pending tasks wait, the reason of most tasks first; empty when none does."""
    count = scheduler.ledger.count
    queued = scheduler.queued()
    ready = count[Phase.READY]
    found: list[Waiting] = []

    def say(kind: str, tasks: int, text: str) -> None:
        if tasks > 0:
            found.append(Waiting(kind, tasks, f"{tasks} task{'s wait' if tasks != 1 else ' waits'} {text}"))

    say("dependencies", count[Phase.WAITING], "for tasks to end that they depend on")
    if scheduler.time_left.ends_at is not None:
        left_s = max(0.0, scheduler.time_left.ends_at - now)
        text = f"for the next start: they are not expected to end in the {left_s:.0f} s that are left here"
        say("walltime", count[Phase.TOO_LATE], text)
    if scheduler.stopping:
        say("stopping", ready + queued + count[Phase.DELAYED], "because the run is being stopped")
    elif scheduler.draining:
        text = "because the run is draining: what runs is finished, nothing more is started"
        say("draining", ready + queued + count[Phase.DELAYED], text)
    else:
        due_s = scheduler.next_deadline()
        soon = "" if due_s is None else f", the next in {max(0.0, due_s - now):.1f} s"
        say("retry", count[Phase.DELAYED], f"before they are tried again after their worker was lost{soon}")
        if scheduler.paused:
            say("paused", ready + queued, "because nothing is started until the disk takes records again")
        elif not scheduler.pool.workers:
            word = "is left" if scheduler.pool.capacities else "has joined yet"
            say("no_workers", ready + queued, f"because no worker {word}")
        else:
            busy = queued
            for shape in scheduler.queue.shapes:
                if not shape.waiting:
                    continue
                if not shape.able_count:
                    say("too_large", shape.waiting, f"for {_need(shape)}; {_largest(scheduler, shape)}")
                elif shape.is_unit or scheduler.pool.idle_cores == 0:
                    busy += shape.waiting
                else:
                    kept = "".join(
                        f"; worker {number} is kept free for them" for number in list(shape.reserved)[:1]
                    )
                    say("room", shape.waiting, f"for a worker with {_need(shape)} free{kept}")
            slots = scheduler.pool.slots
            say("busy", busy, f"for a free slot: {'all ' if slots > 1 else ''}{_count(slots, 'slot')} busy")
    found.sort(key=lambda waiting: -waiting.tasks)
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _size(memory_bytes: int) -> str:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if memory_bytes >= size:
            return f"{memory_bytes / size:.4g} {unit}"
    return f"{memory_bytes} bytes"


def _need(shape: Shape) -> str:
    parts = [_count(shape.cores, "core")]
    if shape.memory_bytes:
        parts.append(f"{_size(shape.memory_bytes)} of memory")
    if shape.gpus:
        parts.append(_count(shape.gpus, "GPU"))
    return " and ".join(parts)


def describe_too_large(scheduler: Scheduler, shape: Shape) -> str:
    """Return the error line of a task that no worker of the run can ever hold."""
    return f"it needs {_need(shape)}; {_largest(scheduler, shape)}"


def _largest(scheduler: Scheduler, shape: Shape) -> str:
    """Name the first thing in which every present worker is too small."""
    workers = scheduler.pool.workers.values()
    sizes = [(w.slots, w.memory_bytes, w.gpus) for w in workers] or list(scheduler.pool.capacities)
    slots = max((size[0] for size in sizes), default=0)
    memory_bytes = max((size[1] for size in sizes), default=0)
    gpus = max((size[2] for size in sizes), default=0)
    if shape.cores > slots:
        return f"the largest worker has {slots}"
    if shape.memory_bytes > memory_bytes and memory_bytes < UNCOUNTED:
        return f"the largest worker has {_size(memory_bytes)}"
    if shape.gpus > gpus:
        return f"the largest worker has {_count(gpus, 'GPU')}"
    return "no worker has all of these together"
