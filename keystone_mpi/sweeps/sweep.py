"""Sweep: a recipe, a space and the options of every task, in one object.

Rule: everything about task k is a pure function of the spec and k.

    load_sweep(path) ----------.
    sweep_from_spec(bytes) -----+--> Sweep --(request(k))--> scheduler
                                          --(space.params(k), seed(k))--> worker
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import msgspec

from keystone_mpi.core.model import TaskRequest
from keystone_mpi.deferred_numpy import np
from keystone_mpi.sweeps.options import option_value
from keystone_mpi.sweeps.space import Space
from keystone_mpi.sweeps.spec import Option, TaskSpec
from keystone_mpi.sweeps.values import Array, Value, canonical_bytes
from keystone_mpi.tools.recipe import Recipe
from keystone_mpi.tools.render import RenderContext, Renderer


class Sweep(msgspec.Struct, frozen=True, dict=True):
    """What a sweep file means.

    Attributes
    ----------
    name : str
        The sweep's name; the file's stem unless it says otherwise.
    source_path : Path
        The sweep file (where it was, for a sweep read from its spec).
    text : str
        The sweep file's text.
    recipe : Recipe
        How each task is run.
    space : Space
        The points.
    warnings : list of str
        What is odd but allowed, one line each.
    spec : bytes
        The normalised sweep as JSON, complete in itself.
    fingerprint : dict
        Part -> text or digest of what runs the tasks.
    space_digest : str
        Equal for two sweeps exactly when point k is the same point in both, for all k.
    """

    name: str
    source_path: Path
    text: str
    recipe: Recipe
    space: Space
    options: TaskSpec
    seed_base: int
    warnings: list[str]
    spec: bytes
    fingerprint: dict[str, str]
    space_digest: str
    _derived: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.space)

    @cached_property
    def uniform(self) -> bool:
        """True when no option of a task comes from its parameters."""
        options = self.options
        return not any(
            option.param
            for option in (
                options.cores,
                options.ranks,
                options.memory,
                options.gpus,
                options.timeout,
                options.priority,
            )
        )

    def request(self, k: int, row: int | None = None) -> TaskRequest:
        """Return what the scheduler knows of point `k`.

        Parameters
        ----------
        k : int
            The point.
        row : int, optional
            Its row in the results file; `k` when not given.

        Raises
        ------
        SweepFileError
            When an option comes from a parameter whose value does not fit.
        """
        index = int(k if row is None else row)
        if self.uniform:
            return msgspec.structs.replace(self._any_request, index=index)
        return self._request(index, k, self.space.params(k))

    @cached_property
    def _any_request(self) -> TaskRequest:
        """The request of every task but for its index, when no option comes from a parameter."""
        return self._request(0, 0, {})

    def _request(self, index: int, k: int, params: Mapping[str, Value]) -> TaskRequest:
        options = self.options
        return TaskRequest(
            index=index,
            cores=self._cores(params, k),
            memory_bytes=int(option_value(options.memory, "memory", params, k)),
            gpus=int(option_value(options.gpus, "gpus", params, k)),
            timeout_s=option_value(options.timeout, "timeout", params, k),
            priority=option_value(options.priority, "priority", params, k),
            budget=options.budget,
        )

    def _cores(self, params: Mapping[str, Value], k: int) -> int:
        options = self.options
        if options.ranks == Option():
            return int(option_value(options.cores, "cores", params, k))
        return int(option_value(options.ranks, "ranks", params, k)) * options.threads

    def priorities(self, start: int, stop: int) -> Array:
        """Return the priorities of points ``start <= k < stop`` as float64."""
        option = self.options.priority
        if not option.param:
            return np.full(stop - start, option.value)
        return self.space.columns(start, stop)[option.param].astype(np.float64)

    def identity(self, params: Mapping[str, Value]) -> bytes:
        """Return the canonical form of a parameter set, derived values left out."""
        if self._derived:
            params = {name: value for name, value in params.items() if name not in self._derived}
        return canonical_bytes(params)

    def seed(self, k: int) -> int:
        """Return the seed of point `k`; see `seed_of`."""
        return self.seed_of(self.space.params(k))

    def seed_of(self, params: Mapping[str, Value]) -> int:
        """Return the seed of a parameter set: 1 .. 2**31 - 1.

        It depends on the sweep's seed, the parameters and the replicate only,
        so a sweep that grows keeps the seeds of the tasks it had.
        """
        data = b"%d/" % self.seed_base + self.identity(params)
        number = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
        return number % (2**31 - 1) + 1


def preview(sweep: Sweep, count: int) -> list[tuple[str, tuple[str, ...]]]:
    """Return (task id, argv) of the first tasks, as they would be run, for a dry run."""
    renderer = Renderer(
        sweep.recipe,
        output_path=f"{sweep.recipe.start_dir}/{sweep.name}.h5",
        scratch_dir="/tmp",
        run_id="dry-run",
    )
    shown: list[tuple[str, tuple[str, ...]]] = []
    for k in range(min(count, len(sweep))):
        params = sweep.space.params(k)
        context = RenderContext(
            index=k, attempt=1, task_id=str(k), seed=sweep.seed_of(params), cores=sweep.request(k).cores
        )
        launch = renderer.render(params, context)
        # Which mpiexec it is and its flags are found on the workers.
        started = bool(launch.ranks) and not sweep.recipe.starts_ranks
        ranks = (sweep.recipe.launcher, "-n", str(launch.ranks)) if started else ()
        shown.append((str(k), (*ranks, *launch.argv)))
    return shown


def digest_of(value: object) -> str:
    """Return a short digest of plain data."""
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=16).hexdigest()
