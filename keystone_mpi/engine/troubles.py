"""What the disk keeps a master from writing: each thing is told when it begins, changes and ends.

Rule: nothing is lost meanwhile, and nobody is told the same twice.

    hold("journal", why, now) --> notice, once per text      ended("journal") --> "can be written again"
"""

from __future__ import annotations

from collections.abc import Callable


class Troubles:
    """The writings that fail at present, by name.

    Parameters
    ----------
    notice : callable
        Tells the user a line.
    """

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._texts: dict[str, str] = {}
        self._since: dict[str, float] = {}

    @property
    def text(self) -> str:
        """All of them in one line; empty: there is none."""
        return "; ".join(self._texts.values())

    def hold(self, name: str, text: str, now: float) -> float:
        """The writing of `name` fails; return for how many seconds it has."""
        self._since.setdefault(name, now)
        if self._texts.get(name) != text:
            self._texts[name] = text
            self._notice(f"{text} (nothing is lost; trying again every second)")
        return now - self._since[name]

    def ended(self, name: str) -> None:
        """The writing of `name` has succeeded."""
        if self._texts.pop(name, None) is not None:
            del self._since[name]
            self._notice(f"the {name} can be written again")
