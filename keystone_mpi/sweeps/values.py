"""Values: the four kinds of a parameter, their columns and their one canonical form.

Rule: a column has one kind.  Any float among numbers makes the column float;
text, numbers and booleans do not mix.  NaN and infinity are no parameters.
``1`` and ``1.0`` are the same value of a number, ``-0.0`` is ``0.0``.

    list from a file --(typed_column)--> kind + plain values --(to_array)--> numpy column
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.deferred_numpy import np
from keystone_mpi.tools.render import RESERVED_NAMES

if TYPE_CHECKING:
    import numpy.typing as npt

Kind = Literal["int", "float", "str", "bool"]
Value = bool | int | float | str
Array: TypeAlias = "npt.NDArray[Any]"

DTYPES: dict[Kind, Any] = {"int": "int64", "float": "float64", "str": "object", "bool": "bool"}
LARGEST_INT = 2**63 - 1
REPLICATE = "replicate"
"""Column of the replicates when ``repeat > 1``; it varies fastest."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def describe(value: object) -> str:
    """Say what was found, in a user's words."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            shown = value if len(value) <= 60 else value[:57] + "..."
            return f'"{shown}"'
        case int() | float():
            return repr(value)
        case list() | tuple():
            shown = ", ".join(describe(item) for item in value[:4])
            return f"[{shown}, ...]" if len(value) > 4 else f"[{shown}]"
        case dict():
            shown = ", ".join(f"{key} = {describe(item)}" for key, item in list(value.items())[:3])
            return f"{{ {shown}, ... }}" if len(value) > 3 else f"{{ {shown} }}"
        case None:
            return "null"
        case _:
            return f"{value} (a {type(value).__name__})"


def near_match(word: str, allowed: Iterable[str]) -> str:
    """Return ``did you mean "x"?`` or an empty text."""
    choices = list(allowed)
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if not close:
        lowered = {choice.lower(): choice for choice in choices}
        close = [lowered[name] for name in difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)]
    return f'did you mean "{close[0]}"?' if close else ""


def check_name(name: str, where: str) -> None:
    """Refuse a parameter name that templates, expressions or the results file could not use."""
    if not _NAME.match(name):
        better = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "x"
        better = f"p_{better}" if better[0].isdigit() else better
        raise SweepFileError(
            None,
            where,
            f"{describe(name)} is not a parameter name; allowed are letters, digits and _, not a digit first",
            f'for example "{better}"',
        )
    if name in RESERVED_NAMES:
        raise SweepFileError(
            None,
            where,
            f"the name {name} is reserved; every template has {', '.join(RESERVED_NAMES)} already",
        )


def typed_column(values: Sequence[object], where: str) -> tuple[Kind, list[Value]]:
    """Find the one kind of a list and return its values in that kind.

    Raises
    ------
    SweepFileError
        For an empty list, mixed kinds, NaN, infinity, NUL bytes, integers
        beyond 64 bits or anything that is no value at all.
    """
    if not values:
        raise SweepFileError(None, where, "the list is empty; a sweep needs at least one value")
    kinds: set[Kind] = set()
    for value in values:
        kinds.add(_checked_kind(value, where))
    if kinds == {"int", "float"}:
        kinds = {"float"}
    if len(kinds) > 1:
        words: dict[Kind, str] = {"int": "numbers", "float": "numbers", "str": "text", "bool": "booleans"}
        found = " and ".join(sorted({words[kind] for kind in kinds}))
        raise SweepFileError(
            None, where, f"{found} are mixed in {describe(list(values))}; one kind per parameter"
        )
    kind = kinds.pop()
    if kind == "float":
        return kind, [canonical_float(float(value)) for value in values]  # type: ignore[arg-type] # `kind` says so
    return kind, list(values)  # type: ignore[arg-type] # `kind` says so


def _checked_kind(value: object, where: str) -> Kind:
    match value:
        case bool():
            return "bool"
        case int():
            if abs(value) > LARGEST_INT:
                raise SweepFileError(
                    None, where, f"{value} does not fit 64 bits; write it as text or as a float"
                )
            return "int"
        case float():
            if not math.isfinite(value):
                raise SweepFileError(
                    None, where, f"{value} is not a parameter value; only finite numbers are"
                )
            return "float"
        case str():
            if "\0" in value:
                raise SweepFileError(None, where, "a text holds a NUL byte, which no command line can carry")
            return "str"
        case _:
            raise SweepFileError(
                None, where, f"found {describe(value)}; allowed values are numbers, text, true and false"
            )


def canonical_float(value: float) -> float:
    """Return `value` with ``-0.0`` made ``0.0``."""
    return value + 0.0


def canonical_value(value: Value) -> Value:
    """Return the form that identity is made of: whole floats are integers."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2.0**53:
        return int(value)
    return value


_encoder = msgspec.json.Encoder(order="sorted")


def canonical_bytes(params: Mapping[str, Value]) -> bytes:
    """Return the identity of a parameter set.

    Sorted JSON; ``1.0`` is ``1``; replicate 0 is the same task as one without
    replicates, so raising ``repeat`` keeps what is done.
    """
    return _encoder.encode(
        {
            name: canonical_value(value)
            for name, value in params.items()
            if not (name == REPLICATE and value == 0)
        }
    )


def to_array(kind: Kind, values: Sequence[Value]) -> Array:
    """Return a numpy column; text becomes an object array of str."""
    if kind == "str":
        column = np.empty(len(values), dtype=np.object_)
        column[:] = values
        return column
    return np.array(values, dtype=DTYPES[kind])
