"""How groups of failures are said in a terminal: `status`, `stats` and `status --watch` say them alike.

Rule: what they have in common first, then the groups, the most frequent first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keystone_mpi.core.model import UNSUCCESSFUL_STATES, Outcome, Why

if TYPE_CHECKING:
    from keystone_mpi.analysis.failures import FailedTask, FailureGroup
    from keystone_mpi.records.view import RunView

GROUPS = 8
"""Kinds of failure that are shown."""
FAILURES_READ = 2000
"""The latest failures, of which the kinds of a run that may be going on are made."""
HOSTS_NAMED = 3


def failure_lines(
    groups: Sequence[FailureGroup],
    common: Sequence[str],
    failed: int,
    *,
    limit: int = GROUPS,
    causes: str = "",
) -> list[str]:
    """Return lines that say what failed and what the failures share; none when nothing failed."""
    if not groups:
        return []
    lines = ["", f"{failed:,} did not succeed{f' ({causes})' if causes else ''}:"]
    lines += [f"  {sentence}" for sentence in common]
    shown = groups[:limit]
    # Where all are on one host, that is either said above or says nothing.
    spread = len({host for group in groups for host in group.hosts}) > 1
    lines += [f"  {group_line(group, with_hosts=spread)}" for group in shown]
    rest = failed - sum(group.count for group in shown)
    if rest > 0:
        lines.append(f"  {rest:>6,} x other")
    return lines


def group_line(group: FailureGroup, *, with_hosts: bool) -> str:
    """Say one group."""
    tasks = ", ".join(group.tasks) + (", ..." if group.count > len(group.tasks) else "")
    hosts = ""
    if with_hosts and group.hosts and len(group.hosts) <= HOSTS_NAMED and group.count > 1:
        hosts = f" on {', '.join(group.hosts)}"
    return f"{group.count:>6,} x {group.error}{hosts}  (task {tasks})"


def failed_tasks_of_view(view: RunView) -> list[FailedTask]:
    """Return the tasks of a run that did not succeed, from file and journal; the latest `FAILURES_READ`."""
    import numpy as np

    from keystone_mpi.analysis.failures import WITHOUT_ATTEMPT, FailedTask

    bad = np.isin(view.states, [int(state) for state in UNSUCCESSFUL_STATES])
    last = view.last_attempt
    found = []
    for attempt in view.recent_failures(FAILURES_READ):
        # A failed attempt of a task that then succeeded, or runs again, is no failure.
        if bad[attempt.index] and attempt.number == last[attempt.index]:
            found.append(
                FailedTask(
                    task=attempt.index,
                    outcome=attempt.outcome or Outcome.FAILED,
                    why=attempt.why,
                    exit_code=attempt.exit_code,
                    signal=attempt.signal,
                    error=attempt.error,
                    stderr_tail=attempt.stderr_tail,
                    host=attempt.host,
                )
            )
    for why in WITHOUT_ATTEMPT:
        for row in np.flatnonzero(bad & (view.whys == int(why))).tolist():
            found.append(FailedTask(task=row, outcome=None, why=Why(why)))
    return found


def attempts_by_host(view: RunView) -> Counter[str]:
    """Return a stand-in for the attempts per host: its slots, since slots are filled evenly."""
    shares: Counter[str] = Counter()
    for worker in view.workers:
        shares[worker.host] += max(1, worker.slots)
    return shares


def common_of_view(view: RunView, failed: Sequence[FailedTask]) -> list[str]:
    """Return what most failures share and most tasks do not, as sentences."""
    from keystone_mpi.analysis.failures import common_traits

    return [trait.sentence() for trait in common_traits(failed, attempts_by_host(view))]
