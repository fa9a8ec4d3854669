"""The workers of a run: who they are, where, and what share of their node each gets.

Rule: pure bookkeeping. The cores of a node are divided among its worker ranks,
so one rank per node and one rank per core both use every core once.

    Hello (cores of the node, position among its workers) -> Welcome (slots, cores)
"""

from __future__ import annotations

from collections.abc import Sequence

from keystone_mpi.execution.slots import divide
from keystone_mpi.tools.recipe import Recipe
from keystone_mpi.transport.messages import PROTOCOL_VERSION, Hello, Welcome


class Workforce:
    """Workers by number.

    Parameters
    ----------
    expected : sequence of int
        Numbers of the workers that will say hello.
    run_id, epoch, output_path, recipes
        Told to every worker.
    slots_per_node : int or None
        The user's ``--slots``; None: one per physical core.
    smt : bool
        Count hardware threads as slots.
    """

    def __init__(
        self,
        expected: Sequence[int],
        *,
        run_id: str,
        epoch: int,
        output_path: str,
        recipes: list[Recipe],
        slots_per_node: int | None,
        smt: bool,
    ) -> None:
        self._expected = set(expected)
        self._run_id = run_id
        self._epoch = epoch
        self._output_path = output_path
        self._recipes = recipes
        self._slots_per_node = slots_per_node
        self._smt = smt
        self._facts: dict[int, Hello] = {}
        self._slots: dict[int, int] = {}
        self._to_welcome: list[int] = []
        self._to_refuse: list[tuple[int, str]] = []
        self._present: set[int] = set(expected)
        self._answered: set[int] = set()

    def hello(self, worker: int, hello: Hello) -> None:
        """A worker introduced itself."""
        self._facts[worker] = hello
        self._answered.add(worker)
        if hello.protocol_version != PROTOCOL_VERSION:
            self._refuse(
                worker,
                f"it speaks protocol {hello.protocol_version}, the master {PROTOCOL_VERSION}: "
                "one installation of keystone_mpi must serve all nodes",
            )
        elif hello.error:
            self._refuse(worker, hello.error)
        else:
            self._to_welcome.append(worker)

    def _refuse(self, worker: int, why: str) -> None:
        self._to_refuse.append((worker, why))
        self._present.discard(worker)

    def ready(self) -> list[tuple[int, Welcome]]:
        """Take the welcomes that are due."""
        due = [(worker, self._share(worker)) for worker in self._to_welcome]
        self._to_welcome.clear()
        return due

    def refused(self) -> list[tuple[int, str]]:
        """Take the refusals that are due: (worker, why)."""
        due = list(self._to_refuse)
        self._to_refuse.clear()
        return due

    def _share(self, worker: int) -> Welcome:
        facts = self._facts[worker]
        cpus: Sequence[int] = facts.threads if self._smt else facts.cpus
        figure = facts.thread_slots if self._smt else facts.slots
        if self._slots_per_node is None and facts.alone:
            mine = tuple(cpus)
            slots = max(1, len(mine))
        elif self._slots_per_node is None and figure and figure != len(cpus):
            # Slurm says how many, and nothing says which: the kernel spreads them.
            mine = ()
            slots = max(1, len(divide(range(figure), facts.local_workers, facts.local_index)))
        elif self._slots_per_node is None:
            mine = divide(cpus, facts.local_workers, facts.local_index)
            slots = max(1, len(mine))
        else:
            slots = max(1, len(divide(range(self._slots_per_node), facts.local_workers, facts.local_index)))
            mine = divide(cpus[: self._slots_per_node], facts.local_workers, facts.local_index)
            if self._slots_per_node > len(cpus):
                mine = ()  # more slots than cores: the kernel spreads them better than we could
        self._slots[worker] = slots
        return Welcome(
            worker=worker,
            run_id=self._run_id,
            epoch=self._epoch,
            output_path=self._output_path,
            recipes=self._recipes,
            slots=slots,
            cpus=tuple(mine) if len(mine) >= slots else (),
        )

    def facts(self, worker: int) -> Hello:
        """Return what a worker said of itself."""
        return self._facts[worker]

    def memory_bytes(self, worker: int) -> int:
        """Return a worker's share of its node's memory."""
        facts = self._facts[worker]
        return facts.memory_bytes // max(1, facts.local_workers)

    def slots_of(self, worker: int) -> int:
        """Return a worker's slots, 0 when it does not work."""
        return self._slots.get(worker, 0)

    def name(self, worker: int) -> str:
        """Name a worker for people."""
        facts = self._facts.get(worker)
        return f"worker rank {worker}" + (f" on {facts.host}" if facts else "")

    def leave(self, worker: int) -> bool:
        """A worker left; False when it had left before."""
        if worker not in self._present:
            return False
        self._present.discard(worker)
        self._slots.pop(worker, None)
        return True

    def complete(self) -> bool:
        """Tell whether every expected worker has introduced itself."""
        return self._answered >= self._expected

    def present(self) -> list[int]:
        """Numbers of the workers that have not left."""
        return sorted(self._present)

    @property
    def count(self) -> int:
        """Workers that work."""
        return len(self._slots)

    @property
    def slots(self) -> int:
        """Slots of the workers that work."""
        return sum(self._slots.values())

    @property
    def hosts(self) -> list[str]:
        """Host names, each once."""
        return sorted({facts.host for facts in self._facts.values()})
