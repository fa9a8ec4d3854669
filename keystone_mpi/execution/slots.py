"""Slots: which cores, how much memory and how many GPUs of this node the run may use.

Rule: physical cores (one hardware thread each unless `smt`), never more than
the affinity and the cgroup allow; `detect` only reads, dividing is pure.

    Slurm's figure for the step, where nothing binds its ranks: that many slots, whatever the machine has
    own affinity + launching daemon's affinity --within cgroup cpuset--> allowed cpus
    --one per core--> ordered by NUMA domain --within cgroup's quota--> NodeResources.cpus
    divide(cpus, workers of the node, k) --> the k-th worker's share
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from keystone_mpi.execution.environment import launcher_environment

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


class NodeResources(msgspec.Struct, frozen=True, kw_only=True):
    """What one process sees of its node."""

    cpus: tuple[int, ...]
    """One logical cpu per usable core, neighbours in one NUMA domain."""
    memory_bytes: int
    gpus: int
    allowed_cpus: tuple[int, ...]
    """All logical cpus that may be used, hardware threads included."""
    source: str
    """Where the cores come from, for people."""
    slots: int = 0
    """Cores of the node by the batch system's figure, where that and not `cpus` decides; 0: `cpus` does."""
    thread_slots: int = 0
    """The same with hardware threads."""
    alone: bool = False
    """`cpus` are this rank's own: its neighbours on the node have others."""
    gpu_lists: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Variable -> the devices it lists, `gpus` of them; the same position is the same device in each."""
    gpus_alone: bool = False
    """The devices are this rank's own."""


def parse_cpu_list(text: str) -> set[int]:
    """Read the kernel's ``0-3,8,10-11``."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def divide(cpus: Sequence[int], workers: int, k: int) -> tuple[int, ...]:
    """Return the k-th of `workers` shares of a node's cores; sizes differ by one at most.

    Parameters
    ----------
    cpus : sequence of int
        The node's cores; neighbours stay together.
    workers : int
        Worker ranks on the node; more workers than cores leave some without.
    k : int
        0 for the node's first worker.
    """
    if not 0 <= k < workers:
        raise ValueError(f"share {k} of {workers} workers: from 0 to {workers - 1} are allowed")
    return tuple(cpus[len(cpus) * k // workers : len(cpus) * (k + 1) // workers])


def detect(
    *,
    smt: bool = False,
    environ: Mapping[str, str] | None = None,
    root: Path = Path("/"),
    own_affinity: set[int] | None = None,
    daemon_affinity: set[int] | None = None,
) -> NodeResources:
    """Look at the node.

    Parameters
    ----------
    smt : bool
        Count hardware threads as cores.
    environ : mapping, optional
        Variables to read, the process's own by default.
    root : Path
        Where ``/sys`` and ``/proc`` are.
    own_affinity, daemon_affinity : set of int, optional
        Affinity masks of this process and of the process that started it;
        looked up by default. The daemon's counts only under mpiexec: Open MPI
        binds a lone rank to one core while its daemon may use all.
    """
    env = os.environ if environ is None else environ
    own = set(os.sched_getaffinity(0)) if own_affinity is None else own_affinity
    allowed = set(own)
    source = "affinity"
    if launcher_environment(env).launcher in ("openmpi", "mpich"):
        daemon = _affinity_of_parent() if daemon_affinity is None else daemon_affinity
        if daemon - allowed:
            allowed |= daemon
            source = "affinity of the launching daemon"
    groups = _cgroups(root)
    cpuset = _cpuset(groups)
    step = _step_cpus(env)
    alone = False
    if step is not None:
        restricted = len(allowed) < len(_online(root) or allowed)
        if restricted and len(allowed) < step.cpus:
            if step.tasks > 1:
                alone = True
                source = "binding by Slurm"
            elif cpuset and len(allowed) < len(cpuset) <= step.cpus:
                # A lone rank that is bound to one core of the step: its tasks may use all of them.
                allowed = set(cpuset)
                source = "cgroup of the Slurm step"
        elif restricted:
            step = None  # bound or confined to what the step has: the mask is more exact than a figure
    if cpuset and not allowed <= cpuset:
        allowed = (allowed & cpuset) or own
        source += " within the cgroup"
    cpus = _by_numa(sorted(allowed) if smt else _one_per_core(allowed, root), root)
    quota = _quota(groups)
    if quota is not None and quota < len(cpus):
        cpus = cpus[: max(1, int(quota))]
        source += f", cgroup quota of {quota:g} cores"
    slots = thread_slots = 0
    if step is not None and not alone and source != "cgroup of the Slurm step":
        per_core = max(1, round(len(allowed) / max(1, len(_one_per_core(allowed, root)))))
        slots, thread_slots = max(1, step.cpus // per_core), step.cpus
        source = step.source
        if quota is not None:
            slots, thread_slots = max(1, min(slots, int(quota))), max(1, min(thread_slots, int(quota)))
    gpu_lists = _gpu_lists(env, root)
    return NodeResources(
        cpus=tuple(cpus),
        memory_bytes=_memory(groups, env, root),
        gpus=len(gpu_lists[0][1]) if gpu_lists else 0,
        allowed_cpus=tuple(sorted(allowed)),
        source=source,
        slots=slots,
        thread_slots=thread_slots,
        alone=alone,
        gpu_lists=gpu_lists,
        gpus_alone="SLURM_GPUS_PER_TASK" in env or "gpu" in env.get("SLURM_TRES_PER_TASK", ""),
    )


class _Step(msgspec.Struct, frozen=True):
    """What Slurm says of this node's part of the step, or of the job under an mpiexec."""

    cpus: int
    """As Slurm counts them: hardware threads where it knows of those."""
    tasks: int
    source: str


def _step_cpus(env: Mapping[str, str]) -> _Step | None:
    promised = launcher_environment(env)
    if promised.launcher == "slurm":
        text = env.get("SLURM_CPUS_ON_NODE", "")
        if text.isdigit() and int(text):
            return _Step(int(text), promised.local_size or 1, "Slurm step")
    elif promised.launcher is not None and env.get("SLURM_JOB_ID"):
        # Under an mpiexec the step is the launcher's own, often of one CPU: the job's figure counts.
        counts = run_lengths(env.get("SLURM_JOB_CPUS_PER_NODE", ""))
        node = env.get("SLURM_NODEID", "")
        if counts and len(set(counts)) == 1:
            return _Step(counts[0], 1, "Slurm job")
        if counts and node.isdigit() and int(node) < len(counts):
            return _Step(counts[int(node)], 1, "Slurm job")
    return None


def allocation_cpus(env: Mapping[str, str] | None = None) -> int | None:
    """Return how many CPUs all nodes of the Slurm allocation have together; None outside of one."""
    text = (os.environ if env is None else env).get("SLURM_JOB_CPUS_PER_NODE", "")
    return sum(run_lengths(text)) or None


def run_lengths(text: str) -> list[int]:
    """Read Slurm's ``4(x2),8``: one number per node; empty when it is none."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        times = times.rstrip(")") or "1"
        if not (count.isdigit() and times.isdigit()):
            return []
        counts.extend([int(count)] * int(times))
    return counts


def _online(root: Path) -> set[int]:
    return parse_cpu_list(_read(root / "sys/devices/system/cpu/online"))


def _affinity_of_parent() -> set[int]:
    try:
        return set(os.sched_getaffinity(os.getppid()))
    except OSError:
        return set()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _one_per_core(allowed: set[int], root: Path) -> list[int]:
    chosen: list[int] = []
    taken: set[int] = set()
    for cpu in sorted(allowed):
        if cpu in taken:
            continue
        chosen.append(cpu)
        siblings = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        taken |= parse_cpu_list(siblings) if siblings else {cpu}
    return chosen


def _by_numa(cpus: list[int], root: Path) -> list[int]:
    domain: dict[int, int] = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        for cpu in parse_cpu_list(_read(folder / "cpulist")):
            domain[cpu] = int(folder.name[4:])
    return sorted(cpus, key=lambda cpu: (domain.get(cpu, 0), cpu))


def _cgroups(root: Path) -> dict[str, list[Path]]:
    """Folders of this process's cgroups, innermost first: controller (``""`` for v2) -> folders."""
    found: dict[str, list[Path]] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found[""] = _upwards(root / "sys/fs/cgroup", path)
            continue
        for controller in controllers.split(","):
            found[controller] = _upwards(root / "sys/fs/cgroup" / controller, path)
    return found


def _upwards(top: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part]
    return [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _cpuset(groups: dict[str, list[Path]]) -> set[int]:
    names = [(folder, "cpuset.cpus.effective") for folder in groups.get("", ())]
    names += [(folder, "cpuset.effective_cpus") for folder in groups.get("cpuset", ())]
    names += [(folder, "cpuset.cpus") for folder in groups.get("cpuset", ())]
    for folder, name in names:
        text = _read(folder / name)
        if text:
            return parse_cpu_list(text)
    return set()


def _quota(groups: dict[str, list[Path]]) -> float | None:
    """Cores' worth of time that the cgroups allow; None: no limit."""
    limits: list[float] = []
    for folder in groups.get("", ()):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    for folder in groups.get("cpu", ()):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _memory(groups: dict[str, list[Path]], env: Mapping[str, str], root: Path) -> int:
    limits: list[int] = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 1024)
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in groups.get(controller, ()):
            text = _read(folder / name)
            if text.isdigit():
                limits.append(int(text))
    slurm = env.get("SLURM_MEM_PER_NODE", "")
    if slurm.isdigit() and int(slurm):
        limits.append(int(slurm) << 20)
    per_cpu, cpus = env.get("SLURM_MEM_PER_CPU", ""), env.get("SLURM_CPUS_ON_NODE", "")
    if per_cpu.isdigit() and int(per_cpu) and cpus.isdigit():
        limits.append((int(per_cpu) << 20) * int(cpus))
    return min(limits, default=0)


def _gpu_lists(env: Mapping[str, str], root: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Devices that this process may use, under each variable that lists them."""
    lists: list[tuple[str, tuple[str, ...]]] = []
    for name in GPU_VARIABLES:
        if name in env:
            parts = (part.strip() for part in env[name].split(","))
            lists.append((name, tuple(part for part in parts if part not in ("", "-1", "NoDevFiles"))))
    if lists:
        # Lists of different lengths cannot be of the same devices: the first one counts.
        return tuple(entry for entry in lists if len(entry[1]) == len(lists[0][1]) and entry[1])
    count = env.get("SLURM_GPUS_ON_NODE", "")
    number = int(count) if count.isdigit() else len(list((root / "dev").glob("nvidia[0-9]*")))
    return ((GPU_VARIABLES[0], tuple(map(str, range(number)))),) if number else ()
