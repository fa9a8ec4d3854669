"""Loading MPI into a process that is ours alone: what it may change there, and what solvers inherit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from keystone_mpi.transport.loading import no_memory_hooks

LOAD = """
import ctypes, os

def code(name):
    return ctypes.string_at(ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value, 16)

names = ("mmap", "munmap", "madvise", "brk")
before = [code(name) for name in names]
from keystone_mpi.transport.world import MpiWorld
world = MpiWorld(None, ours=True)
assert world.size == 1
assert [code(name) for name in names] == before, "libc was patched"
assert "UCX_MEM_EVENTS" not in os.environ
world.finalize()
print("sound")
"""


def test_the_variable_is_there_for_the_loading_alone() -> None:
    environ: dict[str, str] = {}
    with no_memory_hooks(environ):
        assert environ == {"UCX_MEM_EVENTS": "no"}
    assert not environ
    with pytest.raises(ImportError), no_memory_hooks(environ):
        raise ImportError
    assert not environ


def test_what_the_user_has_set_stays() -> None:
    environ = {"UCX_MEM_EVENTS": "yes"}
    with no_memory_hooks(environ):
        assert environ == {"UCX_MEM_EVENTS": "yes"}
    assert environ == {"UCX_MEM_EVENTS": "yes"}


def test_libc_stays_as_it_is_in_a_rank_of_ours() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "sound\n", done.stderr
