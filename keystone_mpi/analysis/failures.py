"""What failures have in common: "214 of 230 failures are on node7".

Rule: pure and light (standard library only): `status`, `stats` and the report
show the same groups. Failures fall into one group when they ended alike and
their last words differ only in numbers, paths and addresses.

    FailedTask, ... --group_failures--> FailureGroup, ...  (ending, last line)
                    --common_traits---> Trait, ...         (host, parameters)
"""

from __future__ import annotations

import re
import signal as signals
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from keystone_mpi.core.model import Outcome, Why

WITHOUT_ATTEMPT = {
    Why.DEPENDENCY: "a task that it depends on did not succeed",
    Why.BY_USER: "cancelled on request",
    Why.NOT_IN_SWEEP: "the sweep file no longer contains it",
    Why.TOO_LARGE: "no worker had the cores, memory or GPUs that it asks for",
}
"""Causes that end a task with no attempt of its own."""

TASKS_NAMED = 4
LEAST_SHARE = 0.6
"""A trait is worth saying from this share of the failures on,"""
LEAST_LIFT = 1.5
"""and when it is so much more frequent among them than among all."""
LONGEST_LINE = 200

_VARIABLE = re.compile(
    r"0x[0-9a-fA-F]+"  # addresses
    r"|(?<![\w.])/(?:[^\s:'\",;()]+/)*[^\s:'\",;()]*"  # absolute paths
    r"|(?<![A-Za-z_])[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"  # numbers, not the digits of a name
)
_PASTE = "\u2026"


class FailedTask(msgspec.Struct, frozen=True):
    """One task that did not succeed, with its last attempt."""

    task: int
    outcome: Outcome | None
    """None: it had no attempt of its own."""
    why: Why = Why.NONE
    exit_code: int = -1
    signal: int = 0
    error: str = ""
    stderr_tail: str = ""
    host: str = ""


class FailureGroup(msgspec.Struct, frozen=True):
    """Failures that say the same."""

    error: str
    """What the first of them says."""
    count: int
    tasks: list[str]
    """The first few of them."""
    ending: str
    """``exit code 3``, ``signal SIGSEGV``, ``timed out``, ``out of memory``, ..."""
    last_line: str
    """Last line of standard error, with what differs between them cut out; empty: it said nothing."""
    hosts: dict[str, int]
    """Host -> failures there, the most frequent first."""


class Trait(msgspec.Struct, frozen=True):
    """Something that most failures share and most tasks do not."""

    name: str
    """``host``, or a parameter."""
    value: str
    count: int
    """Failures that have it."""
    failures: int
    """Failures in all."""

    def sentence(self) -> str:
        """Say it: ``214 of 230 failures are on node7``."""
        whole = (
            f"all {self.failures:,}"
            if self.count == self.failures
            else f"{self.count:,} of {self.failures:,}"
        )
        match self.name:
            case "host":
                return f"{whole} failures are on {self.value}"
            case _:
                return f"{whole} failures have {self.name} = {self.value}"


def last_line(text: str) -> str:
    """Return the last line of an output that says anything, on one line and not too long."""
    for line in reversed(text.splitlines()):
        words = " ".join(line.split())
        if words:
            return words if len(words) <= LONGEST_LINE else words[:LONGEST_LINE] + _PASTE
    return ""


def without_particulars(line: str) -> str:
    """Cut numbers, paths and addresses out of a line, so that its like is recognised."""
    return _VARIABLE.sub(_PASTE, line)


def ending(task: FailedTask) -> str:
    """Say how a task ended, without what it said."""
    match task.outcome:
        case None:
            return WITHOUT_ATTEMPT.get(task.why, task.why.name.lower().replace("_", " "))
        case Outcome.TIMEOUT:
            return "a timeout"
        case Outcome.OUT_OF_MEMORY:
            return "too little memory"
        case Outcome.WORKER_LOST:
            return "a lost worker"
        case Outcome.CANCELLED:
            return "a cancellation"
        case Outcome.FAILED | Outcome.INTERRUPTED | Outcome.SUCCESS:
            pass
        case _:
            raise AssertionError(task.outcome)
    if task.signal:
        try:
            return f"signal {signals.Signals(task.signal).name}"
        except ValueError:
            return f"signal {task.signal}"
    if task.why in (Why.CONDITION, Why.RESULTS, Why.NOT_STARTED):
        return {
            Why.CONDITION: "an unmet success condition",
            Why.RESULTS: "unreadable results",
            Why.NOT_STARTED: "a program that did not start",
        }[task.why]
    return f"exit code {task.exit_code}"


def group_failures(failed: Iterable[FailedTask]) -> list[FailureGroup]:
    """Gather failures by how they ended and what they said last, the most frequent first."""
    groups: dict[tuple[str, str], list[FailedTask]] = {}
    for task in failed:
        # What the runner says (a condition, a missing program) tells more than what the solver said.
        said = last_line(task.stderr_tail) or last_line(task.error)
        if task.outcome is None or task.why in (Why.CONDITION, Why.RESULTS, Why.NOT_STARTED):
            said = last_line(task.error)
        elif task.outcome in (Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.WORKER_LOST):
            said = ""
        groups.setdefault((ending(task), without_particulars(said)), []).append(task)
    found = [_group(how, tasks) for (how, _), tasks in groups.items()]
    return sorted(found, key=lambda group: (-group.count, group.tasks))


def _group(how: str, tasks: list[FailedTask]) -> FailureGroup:
    lines = {last_line(task.stderr_tail) for task in tasks}
    errors = {task.error or how for task in tasks}
    line = lines.pop() if len(lines) == 1 else without_particulars(max(lines))
    told = f"{how}: {line}" if line else how
    said = errors.pop() if len(errors) == 1 else told
    hosts = Counter(task.host for task in tasks if task.host)
    return FailureGroup(
        error=said,
        count=len(tasks),
        tasks=[str(number) for number in sorted(task.task for task in tasks)[:TASKS_NAMED]],
        ending=how,
        last_line=line,
        hosts=dict(hosts.most_common()),
    )


def common_traits(
    failed: Sequence[FailedTask],
    attempts_by_host: Mapping[str, int],
    *,
    params: Mapping[str, Sequence[object]] | None = None,
    params_of_all: Mapping[str, Mapping[object, int]] | None = None,
) -> list[Trait]:
    """Find what most failures share and most tasks do not.

    Parameters
    ----------
    failed : sequence of FailedTask
    attempts_by_host : mapping
        Host -> attempts that ran there, good ones included: a host that ran
        everything is no cause.
    params : mapping, optional
        Parameter -> value of each failed task, in the order of `failed`.
    params_of_all : mapping, optional
        Parameter -> value -> number of tasks.

    Returns
    -------
    list of Trait
        Host first, then parameters.
    """
    found: list[Trait] = []
    if len(failed) < 2:
        return found
    hosts = Counter(task.host for task in failed if task.host)
    trait = _trait("host", hosts, attempts_by_host, len(failed))
    if trait is not None:
        found.append(trait)
    for name, values in (params or {}).items():
        of_all = (params_of_all or {}).get(name, {})
        # A parameter whose every value is another one explains nothing.
        if len(of_all) > 1:
            trait = _trait(name, Counter(values), of_all, len(failed))
            if trait is not None:
                found.append(trait)
    return found


def _trait(
    name: str, among_failed: Mapping[Any, int], among_all: Mapping[Any, int], failures: int
) -> Trait | None:
    if not among_failed:
        return None
    value, count = max(among_failed.items(), key=lambda item: item[1])
    everything = sum(among_all.values())
    usual = among_all.get(value, 0) / everything if everything else 1.0
    share = count / failures
    if share < LEAST_SHARE or usual <= 0 or share / usual < LEAST_LIFT:
        return None
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return Trait(name, text, count, failures)
