"""Slots and devices of a rank inside a Slurm step, out of a made-up machine of 8 threads on 4 cores."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_slots import machine as machine
from test_slots import write

from keystone_mpi.engine.workforce import Workforce
from keystone_mpi.execution.environment import scrub
from keystone_mpi.execution.slots import NodeResources, detect, run_lengths
from keystone_mpi.transport.messages import PROTOCOL_VERSION, Hello

ALL = set(range(8))


def step(cpus: int, tasks: int = 1, **more: str) -> dict[str, str]:
    """Environment of a task of an srun step on one node."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "0",
        "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURM_CPUS_ON_NODE": str(cpus),
        **more,
    }


@pytest.fixture
def node(machine: Path) -> Path:
    write(machine, "sys/devices/system/cpu/online", "0-7\n")
    return machine


def share(found: NodeResources, workers: int = 1, *, smt: bool = False) -> list[tuple[int, tuple[int, ...]]]:
    """(slots, pinned cpus) of each worker of a node whose ranks all see `found`."""
    force = Workforce(
        range(1, workers + 1),
        run_id="r",
        epoch=1,
        output_path="/o.h5",
        recipes=[],
        slots_per_node=None,
        smt=smt,
    )
    for number in range(1, workers + 1):
        force.hello(
            number,
            Hello(
                protocol_version=PROTOCOL_VERSION, rank=number, host="n", cpus=found.cpus,
                threads=found.allowed_cpus, local_index=number - 1, local_workers=workers,
                memory_bytes=found.memory_bytes, gpus=found.gpus, pid=1, slots=found.slots,
                thread_slots=found.thread_slots, alone=found.alone,
            ),
        )  # fmt: skip
    return [(welcome.slots, welcome.cpus) for _, welcome in force.ready()]


def test_the_steps_figure_counts_where_nothing_binds(node: Path) -> None:
    """Four CPUs to Slurm are four hardware threads: two cores, and nobody knows which."""
    found = detect(environ=step(4), root=node, own_affinity=ALL)
    assert (found.slots, found.thread_slots, found.source) == (2, 4, "Slurm step")
    assert share(found) == [(2, ())]
    assert share(found, smt=True) == [(4, ())]
    assert share(found, 2) == [(1, ()), (1, ())]


def test_a_whole_node_is_pinned(node: Path) -> None:
    found = detect(environ=step(8), root=node, own_affinity=ALL)
    assert share(found) == [(4, (0, 2, 1, 3))]


def test_more_than_the_machine_has_is_believed(node: Path) -> None:
    found = detect(environ=step(32), root=node, own_affinity=ALL)
    assert share(found) == [(16, ())]


def test_a_step_that_is_confined_to_its_cpus(node: Path) -> None:
    """The mask of the step, shared by its ranks, is more exact than a figure."""
    found = detect(environ=step(4, tasks=2), root=node, own_affinity={0, 4, 1, 5})
    assert found.slots == 0
    assert share(found, 2) == [(1, (0,)), (1, (1,))]


def test_ranks_that_are_bound_each_to_their_own(node: Path) -> None:
    found = detect(environ=step(8, tasks=2), root=node, own_affinity={0, 4, 2, 6})
    assert found.alone
    assert share(found, 2) == [(2, (0, 2)), (2, (0, 2))], "nothing to divide"


def test_a_lone_rank_that_is_bound_to_one_core_uses_the_steps(node: Path) -> None:
    write(node, "proc/self/cgroup", "0::/slurm/job_1/step_0\n")
    write(node, "sys/fs/cgroup/slurm/job_1/step_0/cpuset.cpus.effective", "0-1,4-5\n")
    found = detect(environ=step(4), root=node, own_affinity={0})
    assert found.cpus == (0, 1)
    assert "cgroup" in found.source


def test_an_mpiexec_in_a_job_takes_the_jobs_figure(node: Path) -> None:
    hydra = {
        "PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "1", "SLURM_JOB_ID": "1",
        "SLURM_JOB_CPUS_PER_NODE": "4,2", "SLURM_NODEID": "1",
    }  # fmt: skip
    found = detect(environ=hydra, root=node, own_affinity=ALL, daemon_affinity=ALL)
    assert (found.thread_slots, found.source) == (2, "Slurm job")
    del hydra["SLURM_NODEID"]
    assert detect(environ=hydra, root=node, own_affinity=ALL, daemon_affinity=ALL).slots == 0


def test_run_lengths() -> None:
    assert run_lengths("4(x2),8") == [4, 4, 8]
    assert run_lengths("16") == [16]
    assert run_lengths("") == []
    assert run_lengths("x(x2)") == []


def test_memory_per_cpu(node: Path) -> None:
    found = detect(environ=step(4, SLURM_MEM_PER_CPU="2"), root=node, own_affinity=ALL)
    assert found.memory_bytes == 8 << 20


@pytest.mark.parametrize(
    ("environ", "lists", "alone"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, (("CUDA_VISIBLE_DEVICES", ("0", "2")),), False),
        (
            {"CUDA_VISIBLE_DEVICES": "0,1", "ROCR_VISIBLE_DEVICES": "4,5", "HIP_VISIBLE_DEVICES": "1"},
            (("CUDA_VISIBLE_DEVICES", ("0", "1")), ("ROCR_VISIBLE_DEVICES", ("4", "5"))),
            False,
        ),
        ({"CUDA_VISIBLE_DEVICES": "GPU-ab", "SLURM_GPUS_PER_TASK": "1"},
         (("CUDA_VISIBLE_DEVICES", ("GPU-ab",)),), True),
        ({"SLURM_GPUS_ON_NODE": "2"}, (("CUDA_VISIBLE_DEVICES", ("0", "1")),), False),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, (), False),
        ({}, (), False),
    ],
)  # fmt: skip
def test_devices(
    node: Path, environ: dict[str, str], lists: tuple[tuple[str, tuple[str, ...]], ...], alone: bool
) -> None:
    found = detect(environ=environ, root=node, own_affinity=ALL)
    assert (found.gpu_lists, found.gpus_alone) == (lists, alone)
    assert found.gpus == (len(lists[0][1]) if lists else 0)


def test_a_solver_under_srun_keeps_the_users_settings_of_its_mpi() -> None:
    """srun passes on what it was started with; only what its own plugins set is taken away."""
    environ = step(
        4, PRTE_MCA_x="1", OMPI_MCA_btl="tcp", OMPI_MCA_orte_precondition_transports="k", PMIX_MCA_gds="hash"
    )
    kept = scrub(environ)
    assert (kept["PRTE_MCA_x"], kept["OMPI_MCA_btl"]) == ("1", "tcp")
    assert not {"OMPI_MCA_orte_precondition_transports", "PMIX_MCA_gds", "SLURM_STEP_ID"} & set(kept)
