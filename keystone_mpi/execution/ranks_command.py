"""An attempt's command as it is spawned: as it is, or with what starts its ranks before it.

Rule: what is recorded and shown is what a person could type; what is spawned
may differ where a launcher would change the solver's arguments.

    argv                                 launch.ranks = 0
    mpiexec flags -n N argv              a recipe with a launcher
    argv, with KEYSTONE_MPIEXEC set      a command that starts the ranks itself
"""

from __future__ import annotations

import shlex

import msgspec

from keystone_mpi.execution.slot_messages import RecipePrepared
from keystone_mpi.tools.recipe import Launch, Recipe

MPIEXEC_VARIABLE = "KEYSTONE_MPIEXEC"
_COMMAND_VARIABLE = "KEYSTONE_COMMAND"


def with_ranks(launch: Launch, recipe: Recipe, prepared: RecipePrepared) -> tuple[Launch, tuple[str, ...]]:
    """Return the launch as it is shown, and the argv to spawn.

    Parameters
    ----------
    launch : Launch
        With ``ranks`` > 0.
    recipe : Recipe
        Says who starts the ranks.
    prepared : RecipePrepared
        Holds the launcher that was found.
    """
    count = "--ntasks" if recipe.launcher == "srun" else "-n"
    prefix = (*prepared.launcher, count, str(launch.ranks))
    env = {**launch.env, MPIEXEC_VARIABLE: shlex.join(prefix)}
    if recipe.starts_ranks:
        return msgspec.structs.replace(launch, env=env), launch.argv
    argv = (*prefix, *launch.argv)
    spawned = argv
    if prepared.rewrites_arguments and any(word.startswith("-") for word in launch.argv[1:]):
        # Open MPI 5 turns the solver's own --bind-to into --bindto, even behind a "--".
        env[_COMMAND_VARIABLE] = shlex.join(launch.argv)
        spawned = (*prefix, "/bin/sh", "-c", f'eval "exec ${_COMMAND_VARIABLE}"')
    return msgspec.structs.replace(launch, argv=argv, env=env), spawned
