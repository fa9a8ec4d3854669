"""Which task waits for which.

Rule: a task waits while one that it depends on has no final state. It may name
tasks that are submitted later; what is never submitted, or waits in a circle,
is found out when nothing else is left.

    await_ -> (dependency ends: note_ended) -> next_ended -> dependents
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from keystone_mpi.core.final_states import FinalStates
from keystone_mpi.core.model import TaskRequest, TaskState
from keystone_mpi.core.transitions import Task


class Dependencies:
    """Task without final state -> the tasks that wait for it."""

    __slots__ = ("_finals", "ended", "waiters")

    def __init__(self, finals: FinalStates) -> None:
        self._finals = finals
        self.waiters: dict[int, list[int]] = {}
        self.ended: deque[tuple[int, TaskState]] = deque()
        """Tasks that ended whose dependents have not been told."""

    def unmet(self, request: TaskRequest) -> list[int]:
        """Return the dependencies that have not ended, each once."""
        awaited = dict.fromkeys((*request.depends_on, *request.start_after))
        return [other for other in awaited if self._finals.get(other) is None]

    def failed(self, request: TaskRequest) -> tuple[int, TaskState] | None:
        """Return a dependency that ended without success, None when there is none."""
        for other in request.depends_on:
            state = self._finals.get(other)
            if state is not None and state is not TaskState.SUCCESS:
                return other, state
        return None

    def await_(self, task: Task, others: list[int]) -> None:
        """Have the task wait for these."""
        task.unmet = len(others)
        for other in others:
            self.waiters.setdefault(other, []).append(task.request.index)

    def note_ended(self, index: int, state: TaskState) -> None:
        """Keep in mind to tell the dependents of a task, if it has any."""
        if index in self.waiters:
            self.ended.append((index, state))

    def next_ended(self) -> tuple[int, TaskState, list[int]]:
        """Return one of `ended` and the tasks that wait for it."""
        index, state = self.ended.popleft()
        return index, state, self.waiters.pop(index)

    def never_met(self, waiting: Iterable[Task], known: dict[int, Task]) -> list[tuple[Task, str]]:
        """Return tasks that wait for what cannot happen, and why; for when nothing else is left.

        Those that wait for an unknown task come first and alone: what depends on them follows.
        """
        waiting = list(waiting)
        missing = [
            (task, f"task {other}, which it depends on, was never submitted")
            for task in waiting
            if (other := next((o for o in self.unmet(task.request) if o not in known), None)) is not None
        ]
        return missing or [(task, "the tasks that it depends on wait for each other") for task in waiting]


def describe_failed(index: int, state: TaskState) -> str:
    """Return the error line of a task whose dependency ended without success."""
    return f"task {index}, which it depends on, ended {state.name}"
