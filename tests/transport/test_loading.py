"""Loading MPI into a process that is ours alone: what it may change there, and what solvers inherit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from keystone_mpi.transport.loading import memory_may_be_shared, no_memory_hooks

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
        assert environ == {"UCX_MEM_EVENTS": "no", "UCX_MEMTYPE_CACHE": "n"}
    assert not environ
    with pytest.raises(ImportError), no_memory_hooks(environ):
        raise ImportError
    assert not environ


def test_what_the_user_has_set_stays() -> None:
    environ = {"UCX_MEM_EVENTS": "yes"}
    with no_memory_hooks(environ):
        assert environ == {"UCX_MEM_EVENTS": "yes", "UCX_MEMTYPE_CACHE": "n"}
    assert environ == {"UCX_MEM_EVENTS": "yes"}


def test_libc_stays_as_it_is_in_a_rank_of_ours() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "sound\n", done.stderr


LISTEN = """
import os
from pathlib import Path

def listening():
    inodes = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and
            os.path.exists(f"/proc/self/fd/{fd}")}
    return {inode for inode in inodes if f"socket:[{inode}]" in mine}

before = listening()
from keystone_mpi.execution.environment import launcher_environment
from keystone_mpi.transport.world import MpiWorld
promised = launcher_environment()
world = MpiWorld(promised.size, promised.local_size, ours=True)
assert world.size == promised.local_size == 2
if world.rank == 0:
    world.comm.send("x" * 300_000, 1)
else:
    assert len(world.comm.recv()) == 300_000
os.write(1, b"opened %d\\n" % len(listening() - before))
world.finalize()
"""


def test_ranks_of_one_node_open_no_port(mpiexec, tmp_path: Path) -> None:
    """Of MPICH's: this runs in its environment alone."""
    (tmp_path / "program.py").write_text(LISTEN)
    done = mpiexec([sys.executable, tmp_path / "program.py"], n=2).check(0)
    expected = "opened 0" if memory_may_be_shared() else "opened "  # in a container there are ports
    assert done.stdout.count(expected) == 2, done.stdout


def test_ranks_in_containers_of_their_own_find_each_other(mpiexec, tmp_path: Path) -> None:
    """What is in another IPC namespace cannot be reached through shared memory."""
    apart = ["unshare", "--ipc"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        apart = []  # namespaces are for root
    (tmp_path / "program.py").write_text(LISTEN)
    done = mpiexec([*apart, sys.executable, tmp_path / "program.py"], n=2).check(0)
    assert done.stdout.count("opened ") == 2, done.stdout
