"""Cores, memory and GPUs out of a made-up /sys and /proc, and how they are divided."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone_mpi.execution.slots import detect, divide, parse_cpu_list

MPIEXEC = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}


@given(st.lists(st.integers(0, 500), unique=True), st.integers(1, 80))
def test_divide(cpus: list[int], workers: int) -> None:
    shares = [divide(cpus, workers, k) for k in range(workers)]
    assert [cpu for share in shares for cpu in share] == cpus
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


def test_divide_as_promised() -> None:
    node = range(64)
    assert sum(len(divide(node, 64, k)) for k in range(64)) == 64
    assert divide(node, 1, 0) == tuple(node)
    assert divide((0, 1), 3, 0) == ()
    with pytest.raises(ValueError, match="from 0 to 1"):
        divide(node, 2, 2)


def test_parse_cpu_list() -> None:
    assert parse_cpu_list("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert parse_cpu_list("") == set()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Two sockets of two cores of two threads: 0-3 first threads, 4-7 second; sockets interleaved."""
    for cpu in range(8):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    for node, cpus in enumerate(("0,2,4,6", "1,3,5,7")):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    write(tmp_path, "proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_one_thread_per_core_sorted_by_numa(machine: Path) -> None:
    found = detect(environ={}, root=machine, own_affinity=set(range(8)))
    assert found.cpus == (0, 2, 1, 3)
    assert found.allowed_cpus == tuple(range(8))
    assert found.memory_bytes == 16384 * 1024
    assert found.gpus == 0
    assert found.source == "affinity"
    found = detect(smt=True, environ={}, root=machine, own_affinity=set(range(8)))
    assert found.cpus == (0, 2, 4, 6, 1, 3, 5, 7)
    assert detect(environ={}, root=machine, own_affinity={5, 7}).cpus == (5, 7)


def test_launching_daemon_may_use_more(machine: Path) -> None:
    found = detect(environ=MPIEXEC, root=machine, own_affinity={0}, daemon_affinity=set(range(8)))
    assert found.cpus == (0, 2, 1, 3)
    assert "daemon" in found.source
    # Without mpiexec the parent is a shell or Slurm: what it may use says nothing.
    assert detect(environ={}, root=machine, own_affinity={0}, daemon_affinity={0, 1}).cpus == (0,)


def test_cgroup_v2(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "0::/job/step\n")
    write(machine, "sys/fs/cgroup/job/step/cpuset.cpus.effective", "0-1,4\n")
    write(machine, "sys/fs/cgroup/job/cpu.max", "max 100000\n")
    write(machine, "sys/fs/cgroup/job/memory.max", "8388608\n")
    write(machine, "sys/fs/cgroup/job/step/memory.max", "max\n")
    found = detect(environ=MPIEXEC, root=machine, own_affinity={0}, daemon_affinity=set(range(8)))
    assert found.cpus == (0, 1)
    assert found.memory_bytes == 8388608
    write(machine, "sys/fs/cgroup/job/cpu.max", "150000 100000\n")
    found = detect(environ={}, root=machine, own_affinity=set(range(8)))
    assert found.cpus == (0,)
    assert "quota of 1.5 cores" in found.source
    write(machine, "sys/fs/cgroup/job/cpu.max", "50000 100000\n")
    assert detect(environ={}, root=machine, own_affinity=set(range(8))).cpus == (0,)


def test_cgroup_v1(machine: Path) -> None:
    write(machine, "proc/self/cgroup", "4:memory:/job\n3:cpuset:/job\n1:cpu,cpuacct:/job\n0::/\n")
    write(machine, "sys/fs/cgroup/cpuset/job/cpuset.cpus", "1-3\n")
    write(machine, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "200000\n")
    write(machine, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    write(machine, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4194304\n")
    write(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    found = detect(environ={}, root=machine, own_affinity=set(range(8)))
    assert found.cpus == (2, 1)
    assert found.memory_bytes == 4194304


def test_memory_and_gpus_of_slurm(machine: Path) -> None:
    env = {"SLURM_MEM_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "2"}
    found = detect(environ=env, root=machine, own_affinity={0})
    assert (found.memory_bytes, found.gpus) == (8 << 20, 2)
    env["CUDA_VISIBLE_DEVICES"] = "0,1,3"
    assert detect(environ=env, root=machine, own_affinity={0}).gpus == 3
    env["CUDA_VISIBLE_DEVICES"] = ""
    assert detect(environ=env, root=machine, own_affinity={0}).gpus == 0


def test_this_machine() -> None:
    found = detect()
    assert found.cpus
    assert set(found.cpus) <= set(found.allowed_cpus)
    assert set(found.cpus) <= set(range(os.cpu_count() or 1))
    assert found.memory_bytes > 1 << 20
