"""The recipes of a worker that need preparing: their orders wait until the setup has ended.

Rule: pure bookkeeping. A recipe that cannot run here ends a sweep's run, whose
orders are kept for the master to take back; those of a program's pipeline,
which goes on, are given up at once.

    Assign --let_through--> backlog, or held --answered--> backlog (--refuse--> given up) | held on
"""

from __future__ import annotations

from collections.abc import Sequence

from keystone_mpi.core.errors import SolverError
from keystone_mpi.core.model import AttemptKey
from keystone_mpi.execution.preparations import needs_preparation, preparation_of
from keystone_mpi.execution.processes import RUN_TAG, WORKER_TAG
from keystone_mpi.execution.slot_messages import Preparation
from keystone_mpi.tools.recipe import Recipe
from keystone_mpi.transport.messages import TaskOrder


class RecipesHere:
    """Which recipes may run on this worker, and the orders of those that may not yet."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[TaskOrder]] = {}
        """Recipe -> its orders, oldest first, until it is prepared; for ever if it cannot be."""
        self._of_program: set[int] = set()
        self._refused: dict[int, str] = {}

    def add(
        self, recipes: Sequence[Recipe], first: int, run_id: str, worker: int, *, of_program: bool
    ) -> list[Preparation]:
        """Take recipes in, numbered from `first` on; return what the launcher is to do for them."""
        wanted: list[Preparation] = []
        for number, recipe in enumerate(recipes, first):
            if needs_preparation(recipe):
                self._waiting[number] = []
                if of_program:
                    self._of_program.add(number)
                wanted.append(preparation_of(recipe, number, {RUN_TAG: run_id, WORKER_TAG: str(worker)}))
        return wanted

    def let_through(self, orders: Sequence[TaskOrder]) -> Sequence[TaskOrder]:
        """Hold back the orders of recipes that are not prepared; return the others."""
        if not self._waiting:
            return orders
        through: list[TaskOrder] = []
        for order in orders:
            self._waiting.get(order.recipe, through).append(order)
        return through

    def answered(self, recipe: int, error: str) -> list[TaskOrder]:
        """A preparation has ended; return the orders that go on."""
        if error and recipe not in self._of_program:
            return []
        if error:
            self._refused[recipe] = " ".join(error.split())
        return self._waiting.pop(recipe, [])

    def refuse(self, recipe: int) -> None:
        """Raise when a recipe cannot run here.

        Raises
        ------
        SolverError
            It says why.
        """
        if recipe in self._refused:
            raise SolverError(self._refused[recipe])

    def withdraw(self, keys: set[AttemptKey]) -> list[TaskOrder]:
        """Take the orders named by `keys` out of those held back."""
        withdrawn: list[TaskOrder] = []
        for recipe, orders in self._waiting.items():
            gone = [order for order in orders if AttemptKey(order.index, order.attempt) in keys]
            if gone:
                withdrawn += gone
                self._waiting[recipe] = [order for order in orders if order not in gone]
        return withdrawn
