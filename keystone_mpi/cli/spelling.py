"""One task of a results file, spelled out again as a worker would run it.

Rule: the file alone is enough: the sweep that it holds and the task's row. The
next attempt's number is used, so that no path of an earlier one is touched.

    RunView, index --(its sweep, or its program's request; Renderer)--> Recipe, Launch
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from keystone_mpi.records.view import RunView
    from keystone_mpi.tools.recipe import Launch, Recipe


def spell_out(view: RunView, index: int, scratch_path: Path) -> tuple[Recipe, Launch]:
    """Return how a task is run, with its work folder, if it has one, below `scratch_path`.

    Parameters
    ----------
    view : RunView
        The results file.
    index : int
        Row of the task.
    scratch_path : Path
        Takes the place of the work folders beside the output and on the node's disk.
    """
    from keystone_mpi.tools.render import RenderContext, Renderer

    recipe, params, seed, cores = _what_runs(view, index)
    # A shard's tasks are called as in the whole sweep, as when they ran.
    whole = index_in_whole(view, index)
    called = index if whole is None else whole
    if recipe.workdir == "task":
        recipe = msgspec.structs.replace(recipe, workdir="local")
    renderer = Renderer(
        recipe,
        output_path=str(view.path.absolute()),
        scratch_dir=str(scratch_path),
        # Not the run's own tag: a run that sweeps up its leftovers must not find this.
        run_id=f"rerun-{uuid.uuid4().hex[:12]}",
        epoch=view.epoch,
    )
    context = RenderContext(
        index=called,
        attempt=int(view.last_attempt[index]) + 1,
        task_id=str(called),
        seed=seed,
        cores=cores,
    )
    return recipe, renderer.render(params, context)


def index_in_whole(view: RunView, index: int) -> int | None:
    """Return the number in the whole sweep of a task of an array's element; None: this is no such file."""
    from keystone_mpi.records.programs import is_program
    from keystone_mpi.slurm.arrays import row_in_whole
    from keystone_mpi.sweeps.load import sweep_from_spec

    if ".shard-" not in view.path.name or is_program(view.spec):
        return None
    point = sweep_from_spec(view.spec).space.index_of(view.task(index).params)
    return None if point is None else row_in_whole(view.path, point)


def _what_runs(view: RunView, index: int) -> tuple[Recipe, dict[str, Any], int, int]:
    """Return recipe, parameters, seed and cores of a task, of a sweep or of a program."""
    from keystone_mpi.records.programs import is_program, read_program
    from keystone_mpi.sweeps.load import sweep_from_spec

    params = view.task(index).params
    request = view.request(index)
    if request is not None and is_program(view.spec):
        from keystone_mpi.engine.task_requests import launch_params, task_seed
        from keystone_mpi.tools.recipe import Recipe

        stored = read_program(view.spec).recipes[request.recipe]
        recipe = msgspec.json.decode(stored.recipe, type=Recipe)
        cores = int(request.options.get("cores", 1))
        return recipe, launch_params(params), task_seed(params, index), cores
    sweep = sweep_from_spec(view.spec)
    # A task that the sweep no longer contains has no point; only its cores are unknown then.
    point = sweep.space.index_of(params)
    return (
        sweep.recipe,
        params,
        sweep.seed_of(params),
        1 if point is None else sweep.request(point, index).cores,
    )
