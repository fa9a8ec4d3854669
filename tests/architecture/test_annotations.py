"""What travels and what is stored is cheap to decode: its annotations are types, not texts."""

from __future__ import annotations

import importlib
import inspect

import msgspec
import pytest

DECODED = (
    "core.model",
    "execution.slot_messages",
    "records.entries",
    "sweeps.spec",
    "tools.recipe",
    "transport.messages",
)


@pytest.mark.parametrize("name", DECODED)
def test_annotations_are_evaluated_with_the_module(name: str) -> None:
    """msgspec compiles every text of a postponed one, in each process that makes a decoder."""
    module = importlib.import_module(f"keystone_mpi.{name}")
    structs = [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, msgspec.Struct) and found.__module__ == module.__name__
    ]
    assert structs
    postponed = {
        f"{struct.__name__}.{field}"
        for struct in structs
        for field, kind in inspect.get_annotations(struct).items()
        if isinstance(kind, str)
    }
    assert not postponed
