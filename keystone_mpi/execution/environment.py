"""The environment: what the launcher of the ranks promised, and what a solver must not inherit of it.

Rule: pure functions of the variables given; only `environment_before_launch`
looks at other processes. A solver started by a rank must not find the rank's
MPI: it would join its world, hang or abort.

    environ of the rank --launcher_environment--> Promised(rank, size, ...)
    environ of the rank - launcher's variables - its library path = environ of a solver   (scrub)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import msgspec

LauncherName = Literal["mpich", "openmpi", "slurm"]


class Promised(msgspec.Struct, frozen=True, kw_only=True):
    """What mpiexec or srun told this process, before MPI_Init."""

    launcher: LauncherName | None
    """None: started by no launcher."""
    rank: int = 0
    size: int = 1
    local_size: int | None = None
    """Ranks on this node, where the launcher says so."""


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        text = environ.get(name, "")
        if text.isdigit():
            return int(text)
    return None


def launcher_environment(environ: Mapping[str, str] | None = None) -> Promised:
    """Read what the launcher promised, from the environment alone.

    Parameters
    ----------
    environ : mapping, optional
        The variables to read, the process's own by default.
    """
    env = os.environ if environ is None else environ
    size = _number(env, "OMPI_COMM_WORLD_SIZE")
    if size is not None:
        rank = _number(env, "OMPI_COMM_WORLD_RANK", "PMIX_RANK") or 0
        local = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE")
        return Promised(launcher="openmpi", rank=rank, size=size, local_size=local)
    in_step = _in_slurm_step(env)
    size = _number(env, "PMI_SIZE")
    if size is not None and _number(env, "PMI_RANK") is not None:
        rank = _number(env, "PMI_RANK") or 0
        local = _number(env, "MPI_LOCALNRANKS")
        # Inside an allocation hydra starts its proxies by srun: its own variables tell it from srun.
        if in_step and local is None:
            return Promised(launcher="slurm", rank=rank, size=size, local_size=_slurm_local_size(env))
        return Promised(launcher="mpich", rank=rank, size=size, local_size=local)
    if in_step:
        rank = _number(env, "SLURM_PROCID") or 0
        size = _number(env, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS") or 1
        return Promised(launcher="slurm", rank=rank, size=size, local_size=_slurm_local_size(env))
    return Promised(launcher=None)


def _in_slurm_step(env: Mapping[str, str]) -> bool:
    """Tell a task of an srun step from the batch script, which has most of the same variables."""
    step = env.get("SLURM_STEP_ID", env.get("SLURM_STEPID", ""))
    # The batch script's step has no number below 2^32 - 100; interactive shells have no step at all.
    if not step.isdigit() or int(step) >= 0xFFFFFF00:
        return False
    return env.get("SLURM_PROCID", "").isdigit()


def _slurm_local_size(env: Mapping[str, str]) -> int | None:
    """Read this node's place in ``2(x3),1``: tasks per node, run-length coded."""
    node = _number(env, "SLURM_NODEID")
    text = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", ""))
    if node is None or not text:
        return None
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        times = times.rstrip(")") or "1"
        if not (count.isdigit() and times.isdigit()):
            return None
        counts.extend([int(count)] * int(times))
    return counts[node] if node < len(counts) else None


_ALWAYS_REMOVED = (
    "PMIX_",
    "PMI_",
    "PMI2_",
    "OMPI_",
    "OPAL_",
    "PRTE_",
    "ORTE_",
    "HYDI_",
    "HYDRA_",
    "HYD_",
    "MPI_LOCAL",
    "PALS_",
    "I_MPI_HYDRA_",
    "GFORTRAN_UNBUFFERED_PRECONNECTED",
)
_NOT_OF_SRUN = ("OMPI_MCA_", "PRTE_MCA_")
_OF_SRUN = "OMPI_MCA_orte_precondition_transports"
_USERS_MAY_SET = ("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_", "HYDRA_", "GFORTRAN_UNBUFFERED_PRECONNECTED")
_KEPT = frozenset(
    {
        "OMPI_ALLOW_RUN_AS_ROOT",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM",
        "PRTE_ALLOW_RUN_AS_ROOT",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM",
        "OMPI_CC",
        "OMPI_CXX",
        "OMPI_FC",
        "OMPI_CFLAGS",
        "OMPI_CXXFLAGS",
        "OMPI_FCFLAGS",
        "OMPI_LDFLAGS",
        "OMPI_LIBS",
        "OMPI_CPPFLAGS",
    }
)
_LIBRARY_PREFIXES = ("OPAL_PREFIX", "PMIX_PREFIX", "PRTE_PREFIX")

# Of Slurm's variables only what names the job: with its node list or its old-style SLURM_JOBID a solver's
# own mpiexec would take the whole allocation.
_SLURM_KEPT = frozenset(
    {
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_STEP",
        "SLURM_CLUSTER_NAME",
        "SLURM_CONF",
        "SLURM_JOB_ACCOUNT",
        "SLURM_JOB_GPUS",
        "SLURM_JOB_ID",
        "SLURM_JOB_NAME",
        "SLURM_JOB_PARTITION",
        "SLURM_JOB_USER",
        "SLURM_SUBMIT_DIR",
        "SLURM_SUBMIT_HOST",
        "SLURM_TMPDIR",
    }
)


def scrub(environ: Mapping[str, str], *, before_launch: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a serial solver, or one that calls MPI_Init alone, may see of a rank's environment.

    Parameters
    ----------
    environ : mapping
        The rank's variables.
    before_launch : mapping, optional
        Variables of the launcher itself, where they can be read: settings of
        an MPI (``OMPI_MCA_*`` and the like) that stand there with the same
        value are the user's and stay.

    Notes
    -----
    Started by no launcher, only what an outer launcher would have set by
    force is removed: ``OMPI_MCA_*`` and prefixes are the user's then.
    """
    launcher = launcher_environment(environ).launcher
    launched = launcher is not None
    before = before_launch or {}
    clean: dict[str, str] = {}
    for name, value in environ.items():
        if name == "OMPI_MCA_PREFIXES":
            continue
        if name in _KEPT:
            clean[name] = value
        elif name.startswith(_ALWAYS_REMOVED):
            users = name.startswith(_USERS_MAY_SET) or (not launched and name in _LIBRARY_PREFIXES)
            if users and (not launched or before.get(name) == value):
                clean[name] = value
            elif launcher == "slurm" and name.startswith(_NOT_OF_SRUN) and name != _OF_SRUN:
                clean[name] = value  # the user's: srun passes on what it was started with
        elif name.startswith("SLURM_"):
            if name in _SLURM_KEPT:
                clean[name] = value
        else:
            clean[name] = value
    if launched:
        _drop_library_path(environ, clean)
    if any(name.startswith("SLURM_") for name in environ):
        clean["SLURM_MPI_TYPE"] = "none"
    return clean


def _drop_library_path(environ: Mapping[str, str], clean: dict[str, str]) -> None:
    """Take the launcher's own libraries off LD_LIBRARY_PATH: another MPI's solver would load them."""
    path = clean.get("LD_LIBRARY_PATH", "")
    if not path:
        return
    unwanted = {os.path.normpath(f"{environ[name]}/lib") for name in _LIBRARY_PREFIXES if environ.get(name)}
    if environ.get("OMPI_LIBDIR_LOC"):
        unwanted.add(os.path.normpath(environ["OMPI_LIBDIR_LOC"]))
    entries = [entry for entry in path.split(":") if entry and os.path.normpath(entry) not in unwanted]
    if entries:
        clean["LD_LIBRARY_PATH"] = ":".join(entries)
    else:
        del clean["LD_LIBRARY_PATH"]


def environment_before_launch(rank_pid: int) -> dict[str, str]:
    """Read the variables of the processes that started a rank, nearest last; empty where that is not allowed.

    Parameters
    ----------
    rank_pid : int
        The rank; its parents up to mpiexec are looked at, not itself.
    """
    found: dict[str, str] = {}
    pid = rank_pid
    for _ in range(4):
        pid = _parent(pid)
        if pid <= 1:
            break
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                data = file.read()
        except OSError:
            break
        variables = dict(os.fsdecode(item).split("=", 1) for item in data.split(b"\0") if b"=" in item)
        found = {**variables, **found}
        if launcher_environment(variables).launcher is not None:
            # An outer run's rank: what lies beyond is not this launch.
            break
    return found


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return 0
    return int(text[text.rindex(b")") + 2 :].split(None, 2)[1])
