"""Final states, one byte per task that ended.

Rule: a task that ended is forgotten but for this byte, which answers what late
reports, dependencies and cancellations ask. It grows in pages with the tasks
that ended, never with those that are queued.
"""

from __future__ import annotations

from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import FINAL_STATES, TaskState

_PAGE_BITS = 12
_PAGE_SIZE = 1 << _PAGE_BITS
_STATES = tuple(TaskState)


class FinalStates:
    """Task index -> final state; each is set once."""

    __slots__ = ("_pages", "counts")

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self.counts = [0] * len(TaskState)
        """Tasks per `TaskState`; only final states are ever above 0."""

    def get(self, index: int) -> TaskState | None:
        """Return the final state of a task, None when it has none yet."""
        page = self._pages.get(index >> _PAGE_BITS)
        if page is None:
            return None
        state = page[index & (_PAGE_SIZE - 1)]
        return _STATES[state] if state else None

    def set(self, index: int, state: TaskState) -> None:
        """Note that a task ended."""
        page = self._pages.get(index >> _PAGE_BITS)
        if page is None:
            page = self._pages[index >> _PAGE_BITS] = bytearray(_PAGE_SIZE)
        place = index & (_PAGE_SIZE - 1)
        if page[place] or state not in FINAL_STATES:
            raise InternalError(
                f"task {index}: cannot end as {state.name}, its final state is"
                f" {_STATES[page[place]].name if page[place] else 'not set'}"
            )
        page[place] = state
        self.counts[state] += 1

    def __len__(self) -> int:
        return sum(self.counts)

    def recount(self) -> list[int]:
        """Count the bytes anew, for `check_invariants`."""
        return [
            0 if state is TaskState.PENDING else sum(page.count(state) for page in self._pages.values())
            for state in TaskState
        ]
