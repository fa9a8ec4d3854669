"""An order in a slot's queue, and the environments that its solver may get.

Rule: made when the order comes, not when its turn does: between two short
solvers as little as possible is done.

    base environment + tags | what the recipe's setup left + tags --(launch)--> a solver's environment
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from keystone_mpi.execution.processes import RUN_TAG, WORKER_TAG
from keystone_mpi.execution.ranks_command import with_ranks
from keystone_mpi.execution.slot_messages import RecipePrepared, SlotOrder, SlotSetup
from keystone_mpi.tools.launch_environment import add_python_path
from keystone_mpi.tools.recipe import Recipe


class QueuedOrder:
    """An order in the queue."""

    __slots__ = ("argv", "env", "order", "plain")

    def __init__(
        self,
        order: SlotOrder,
        env: dict[bytes, bytes] | None,
        plain: bool,
        argv: tuple[str, ...],
    ) -> None:
        self.order = order
        self.argv = argv
        """What is spawned; `Launch.argv` is what is shown."""
        self.env = env
        """None: made when its turn comes."""
        self.plain = plain
        """No files before, no rules after: nothing but a command."""


class Environments:
    """What the solvers of one slot process may see.

    Parameters
    ----------
    setup : SlotSetup
        Names the run and the worker.
    base_env : mapping of bytes to bytes
        The scrubbed environment.
    """

    def __init__(self, setup: SlotSetup, base_env: Mapping[bytes, bytes]) -> None:
        self._tags = {
            RUN_TAG.encode(): setup.run_id.encode(),
            WORKER_TAG.encode(): str(setup.worker).encode(),
        }
        self._base = {**base_env, **self._tags}
        self._of_recipe: dict[int, dict[bytes, bytes]] = {}
        self._prepared: dict[int, RecipePrepared] = {}

    def prepared(self, message: RecipePrepared) -> None:
        """Take what a recipe's setup left."""
        self._prepared[message.recipe] = message
        self._of_recipe[message.recipe] = {**message.env, **self._tags}

    def command_of(self, order: SlotOrder, recipe: Recipe) -> tuple[SlotOrder, tuple[str, ...]]:
        """Return the order as it is shown, and the argv to spawn."""
        if not order.launch.ranks:
            return order, order.launch.argv
        launch, argv = with_ranks(order.launch, recipe, self._prepared[order.recipe])
        return msgspec.structs.replace(order, launch=launch), argv

    def make(self, order: SlotOrder, result_path: str) -> dict[bytes, bytes]:
        """Return the environment of one attempt."""
        launch = order.launch
        env = self._of_recipe.get(order.recipe, self._base).copy()
        for name in launch.unset:
            env.pop(name.encode(), None)
        if launch.python_path:
            add_python_path(env, launch.python_path)
        for name, value in launch.env.items():
            env[name.encode("utf-8", "surrogateescape")] = value.encode("utf-8", "surrogateescape")
        env[b"KEYSTONE_RESULT"] = result_path.encode("utf-8", "surrogateescape")
        return env


def cache_home(env: Mapping[bytes, bytes]) -> str:
    """Return where an environment's user keeps caches."""
    home = os.fsdecode(env.get(b"HOME", b"/nonexistent"))
    return os.fsdecode(env.get(b"XDG_CACHE_HOME", b"")) or os.path.join(home, ".cache")
