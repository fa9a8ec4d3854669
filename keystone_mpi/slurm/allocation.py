"""What Slurm says of a job: when it ends, whether it is gone, how large an array may be.

Rule: Slurm is asked rarely and with a time limit; where it does not answer,
nothing is known and nothing is decided. What its commands print is parsed by
pure functions.

    scontrol show job -o ID  --parse_job--> state, end, restarts
    scontrol show config     --parse_max_array_size--> largest array
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime

import msgspec

from keystone_mpi.core.errors import ClusterError

LIMIT_S = 20.0
DEFAULT_MAX_ARRAY_SIZE = 1001
ALIVE_STATES = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)
"""States of a job that may have processes."""


class JobFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What Slurm says of one job."""

    state: str
    """Such as ``RUNNING``."""
    restarts: int
    """How often it was requeued."""
    ends_at: float | None
    """Seconds since the epoch; None: unlimited or not known."""


def ask(*command: str, limit_s: float = LIMIT_S) -> str:
    """Run one of Slurm's commands and return what it printed.

    Raises
    ------
    ClusterError
        It is not there, does not answer in time, or refuses; with its own words.
    """
    if shutil.which(command[0]) is None:
        raise ClusterError(
            f"{command[0]}: no such command here; is this a login or compute node of a cluster?"
        )
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]}: no answer from Slurm within {limit_s:.0f} s") from None
    except OSError as error:
        raise ClusterError(f"{command[0]}: cannot be started: {error.strerror}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise ClusterError(f"{command[0]}: {said.removeprefix(f'{command[0]}: ')}")
    return done.stdout


def parse_job(text: str) -> JobFacts | None:
    """Read the first line of ``scontrol show job -o``; None when it describes no job."""
    line = text.strip().splitlines()[0] if text.strip() else ""
    fields = dict(part.partition("=")[::2] for part in line.split() if "=" in part)
    state = fields.get("JobState", "")
    if not state:
        return None
    restarts = fields.get("Restarts", "0")
    return JobFacts(
        state=state,
        restarts=int(restarts) if restarts.isdigit() else 0,
        ends_at=None if fields.get("TimeLimit") == "UNLIMITED" else parse_time(fields.get("EndTime", "")),
    )


def parse_time(text: str) -> float | None:
    """Read Slurm's local time ``2026-11-24T06:25:48``; None when it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def parse_max_array_size(text: str) -> int:
    """Read ``MaxArraySize`` from ``scontrol show config``: indices go up to one less."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return int(found.group(1)) if found else DEFAULT_MAX_ARRAY_SIZE


def job_facts(job_id: str) -> JobFacts | None:
    """Ask Slurm for a job; None when Slurm no longer knows it.

    Raises
    ------
    ClusterError
        Slurm does not answer.
    """
    try:
        return parse_job(ask("scontrol", "show", "job", "-o", job_id))
    except ClusterError as error:
        if "Invalid job id" in str(error):
            return None
        raise


def end_of_allocation(environ: Mapping[str, str] | None = None) -> float | None:
    """Return when the allocation that this process runs in ends, by Slurm's own figure.

    Returns
    -------
    float or None
        Seconds since the epoch; None outside a job, without a limit, or when
        Slurm does not say.
    """
    env = os.environ if environ is None else environ
    job_id = env.get("SLURM_JOB_ID", "")
    if not job_id:
        return None
    given = env.get("SLURM_JOB_END_TIME", "")  # Slurm 23.02 and later
    if given.isdigit() and int(given) > time.time():
        return float(given)
    try:
        facts = job_facts(job_id)
    except ClusterError:
        return None
    return None if facts is None else facts.ends_at


def present_end(environ: Mapping[str, str] | None = None) -> float | None:
    """Return when the allocation ends by what Slurm says now: a running job's time limit may be changed.

    Returns
    -------
    float or None
        Seconds since the epoch; None: it has no end.

    Raises
    ------
    ClusterError
        Slurm does not say.
    """
    env = os.environ if environ is None else environ
    job_id = env.get("SLURM_JOB_ID", "")
    facts = job_facts(job_id) if job_id else None
    if facts is None:
        raise ClusterError(f"Slurm knows no job {job_id!r}")
    return facts.ends_at


def parse_cluster(text: str) -> str:
    """Read ``ClusterName`` from ``scontrol show config``; empty when it is not there."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.MULTILINE)
    return found.group(1) if found else ""


def job_is_gone(job: str) -> bool:
    """Tell whether Slurm says that a job, as named by `engine.session.job_name`, has no process any more.

    Parameters
    ----------
    job : str
        Job id, followed by ``/N`` for its N-th restart, followed by
        ``@CLUSTER``. Of another cluster's job, or where the cluster is not
        named, nothing is known here: job ids repeat from cluster to cluster.
    """
    number, _, cluster = job.partition("@")
    job_id, _, restart = number.partition("/")
    if not job_id.isdigit() or not cluster or shutil.which("scontrol") is None:
        return False
    try:
        if parse_cluster(ask("scontrol", "show", "config")).casefold() != cluster.casefold():
            return False
        facts = job_facts(job_id)
    except ClusterError:
        return False
    if facts is None:
        return True
    return facts.state not in ALIVE_STATES or facts.restarts > int(restart or 0)


def max_array_size() -> int:
    """Return Slurm's MaxArraySize; its default where Slurm does not say."""
    try:
        return parse_max_array_size(ask("scontrol", "show", "config"))
    except ClusterError:
        return DEFAULT_MAX_ARRAY_SIZE
