"""Functions: pickled once where that is safe, and numbered for the workers.

Rule: a call sees the function as it was when it was submitted. What can be
imported travels by reference and never changes. A function of ``__main__``, a
lambda or a closure is pickled once and again only when something that it
captures has been rebound; if it captures anything that can change in place, it
is pickled with every call.

    function --number--> calls        0: pickled with the call's own arguments
    number --value--> worker, once per worker that gets such a call
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from keystone_mpi.execution.function_values import Value, dump

NUMBERS_LIMIT = 4096
"""Functions that are numbered; further ones travel with their calls."""
_ATOMS = (bool, int, float, complex, str, bytes, type(None), types.ModuleType)
_MISSING = object()

Watched = list[tuple[dict[str, Any] | types.CellType, str, Any]]
"""(namespace or cell, name, value): what a function captures, and what must still be there."""


class FunctionTable:
    """The functions of this program that were called; usable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: list[Value] = [Value(b"", [])]
        self._by_data: dict[bytes, int] = {}
        self._known: WeakKeyDictionary[Any, tuple[int, Watched]] = WeakKeyDictionary()
        self._last: tuple[ref[Any], int, Watched] | None = None
        """The function that was asked for last, most often asked for next, too."""

    def value(self, number: int) -> Value:
        """Return the pickled function of a number."""
        return self._values[number]

    def number(self, function: Callable[..., Any]) -> int:
        """Number a function; 0 when it must be pickled with every call.

        Raises
        ------
        CannotTravelError
            It cannot be pickled.
        """
        last = self._last
        if last is not None and last[0]() is function:
            for where, name, value in last[2]:
                if _present(where, name) is not value:
                    break
            else:
                return last[1]
        try:
            known = self._known.get(function)
        except TypeError:  # it cannot be referred to weakly or hashed
            return 0
        if known is not None and all(_present(where, name) is value for where, name, value in known[1]):
            self._last = (ref(function), *known)
            return known[0]
        watched: Watched | None = []
        if not _is_importable(function):
            watched = _captures(function)
        if watched is None:
            return 0
        number = self._enter(dump(function))
        if number:
            self._known[function] = (number, watched)
            self._last = (ref(function), number, watched)
        return number

    def _enter(self, value: Value) -> int:
        with self._lock:
            known = self._by_data.get(value.data)
            if known is not None and not value.parts:
                return known
            if len(self._values) >= NUMBERS_LIMIT or value.parts:
                return 0
            self._values.append(value)
            self._by_data[value.data] = len(self._values) - 1
            return len(self._values) - 1


def _present(where: dict[str, Any] | types.CellType, name: str) -> Any:
    if isinstance(where, dict):
        return where.get(name, _MISSING)
    try:
        return where.cell_contents
    except ValueError:
        return _MISSING


def _is_importable(function: Any) -> bool:
    """Tell whether another process can import the function by its name."""
    name = getattr(function, "__qualname__", None)
    module_name = getattr(function, "__module__", None)
    if not name or not module_name or module_name == "__main__" or "<locals>" in name:
        return False
    found: Any = sys.modules.get(module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is function


def _captures(function: Any) -> Watched | None:
    """List what a function captures by value; None when something of it can change in place."""
    watched: Watched = []
    seen: set[int] = set()
    return watched if _capture(function, watched, seen) else None


def _capture(function: Any, watched: Watched, seen: set[int]) -> bool:
    if not isinstance(function, types.FunctionType) or function.__dict__:
        return False
    if id(function) in seen:
        return True
    seen.add(id(function))
    names = _global_names(function.__code__)
    for name in names:
        value = function.__globals__.get(name, _MISSING)
        watched.append((function.__globals__, name, value))
        if not _is_constant(value, watched, seen):
            return False
    for cell in function.__closure__ or ():
        value = _present(cell, "")
        watched.append((cell, "", value))
        if not _is_constant(value, watched, seen):
            return False
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return all(_is_constant(value, watched, seen) for value in defaults)


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _is_constant(value: Any, watched: Watched, seen: set[int]) -> bool:
    if value is _MISSING or isinstance(value, _ATOMS):
        return True
    if isinstance(value, tuple | frozenset):
        return all(_is_constant(item, watched, seen) for item in value)
    if _is_importable(value):
        return True
    return isinstance(value, types.FunctionType) and _capture(value, watched, seen)
