"""Recipes that a launcher prepares, on the rank's side: what was asked, what came back.

Rule: what came back is kept here, so that slot processes forked later, by
another launcher too, get it without a second setup.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

import msgspec

from keystone_mpi.execution.slot_messages import Preparation, RecipePrepared
from keystone_mpi.tools.recipe import Recipe


def needs_preparation(recipe: Recipe) -> bool:
    """Whether anything is to be done once per worker."""
    return bool(recipe.setup or recipe.launcher)


def preparation_of(recipe: Recipe, number: int, tags: Mapping[str, str]) -> Preparation:
    """Return what a launcher needs to know of a recipe."""
    words = recipe.prefix or recipe.argv
    literal = bool(words) and not recipe.shell and "{" not in words[0]
    program = words[0] if literal else ""
    own = recipe.argv[0] if recipe.argv and not recipe.shell and "{" not in recipe.argv[0] else ""
    in_folder = program in recipe.files or program.startswith("./")
    return Preparation(
        recipe=number,
        setup=recipe.setup,
        check=() if recipe.prefix else recipe.check,
        check_hint=recipe.check_hint,
        program="" if in_folder else program,
        unset=recipe.unset if recipe.setup else (),
        launcher=recipe.launcher,
        launcher_path=recipe.launcher_path,
        launcher_flags=recipe.launcher_flags,
        threads=recipe.threads,
        # Inside a container is another file system: only the user knows what is there.
        mpi_program="" if recipe.prefix else recipe.mpi_program or own,
        cwd=recipe.start_dir,
        tags=dict(tags),
    )


class Preparations:
    """Outstanding and answered preparations of one rank."""

    def __init__(self) -> None:
        self._outstanding: dict[int, Preparation] = {}
        self.ready: list[RecipePrepared] = []
        """Those that succeeded."""

    def ask(self, wanted: Preparation, control: socket.socket | None) -> None:
        """Ask the launcher."""
        self._outstanding[wanted.recipe] = wanted
        self._send(wanted, control)

    def ask_again(self, control: socket.socket | None) -> None:
        """Ask another launcher what the one before it did not answer."""
        for wanted in self._outstanding.values():
            self._send(wanted, control)

    def answered(self, message: RecipePrepared) -> bool:
        """Take an answer; True when slot processes are to be told."""
        self._outstanding.pop(message.recipe, None)
        if message.error:
            return False
        self.ready.append(message)
        return True

    @staticmethod
    def _send(wanted: Preparation, control: socket.socket | None) -> None:
        try:
            if control is not None:
                control.send(msgspec.msgpack.encode(wanted))
        except OSError:
            # A dead launcher is found by the next look at its socket; the next one is asked again.
            return
