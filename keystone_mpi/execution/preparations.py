"""Recipes that a launcher prepares, on the rank's side: what was asked, what came back.

Rule: what came back is kept here, so that slot processes forked later, by
another launcher too, get it without a second setup.
"""

from __future__ import annotations

import socket

import msgspec

from keystone_mpi.execution.slot_messages import Preparation, RecipePrepared


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
