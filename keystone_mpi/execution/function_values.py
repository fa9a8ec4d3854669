"""Values: functions, arguments and results as bytes, between the processes of one program.

Rule: by value, and only over sockets and MPI messages of this program's own
processes; nothing is ever unpickled from a file. Large buffers (numpy arrays)
stay outside the pickle and travel behind it.

    dump(object) --> Value(data, parts)         data: pickle protocol 5, parts: its large buffers
    load(data, parts) --> object                arrays lie in the parts, uncopied

The plain pickler is tried first, being ten times quicker; what it cannot do, or
would do by a reference into ``__main__`` (which is another program's in the
process that reads it), is cloudpickle's work.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

PROTOCOL = 5
PART_BYTES = 64 << 10
"""Buffers from this size on stay outside of the pickle."""
INLINE_BYTES = 32 << 10
"""Pickles above this size travel as a part of their own."""


class Value(NamedTuple):
    """A pickled object."""

    data: bytes
    """Empty: the pickle itself is the first of the parts."""
    parts: list[Any]
    """Buffers, each contiguous."""


class CannotTravelError(TypeError):
    """An object that cannot be pickled, not even by cloudpickle."""


def dump(value: object) -> Value:
    """Pickle an object by value.

    Raises
    ------
    CannotTravelError
        It cannot be pickled; the message says which part of it.
    """
    parts: list[Any] = []

    def keep_out(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < PART_BYTES:
            return True
        parts.append(raw)
        return False

    try:
        data = pickle.dumps(value, PROTOCOL, buffer_callback=keep_out)
        if b"__main__" not in data and not _by_value_modules():
            return _value(data, parts)
    except Exception:  # whatever a reducer raises: cloudpickle tries, and its error is the one to tell
        pass
    parts.clear()
    import cloudpickle

    try:
        return _value(cloudpickle.dumps(value, protocol=PROTOCOL, buffer_callback=keep_out), parts)
    except Exception as error:
        raise CannotTravelError(f"cannot be sent to another process: {error}") from error


def _by_value_modules() -> bool:
    """Tell whether the user asked cloudpickle to send whole modules by value."""
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    return cloudpickle is not None and bool(cloudpickle._PICKLE_BY_VALUE_MODULES)


def _value(data: bytes, parts: list[Any]) -> Value:
    if len(data) > INLINE_BYTES:
        return Value(b"", [data, *parts])
    return Value(data, parts)


def load(data: Any, parts: Sequence[Any]) -> Any:
    """Make the object that `dump` was given."""
    if len(data):
        return pickle.loads(data, buffers=parts)
    return pickle.loads(parts[0], buffers=parts[1:])
