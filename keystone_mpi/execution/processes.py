"""Processes as the kernel shows them: who descends from whom, how large, and an end to all of them.

Rule: only the standard library, only /proc and signals; nothing is killed
unless it descends from the caller or carries this run's tag in its
environment and belongs to this user.

    descendants(root) --> signal_each(TERM) --> ... --> signal_each(KILL) until wait4 says ECHILD
    sweep_by_tag(run_id): /proc/*/environ --> pidfd --> environ again --> SIGKILL, until none is left
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable

RUN_TAG = "KEYSTONE_RUN"
WORKER_TAG = "KEYSTONE_WORKER"
EPOCH_TAG = "KEYSTONE_EPOCH"

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_TIMERSLACK = 29
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def become_subreaper() -> None:
    """Make orphaned descendants children of this process instead of init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def sharpen_timers() -> None:
    """Let short sleeps of this thread end in time: by default they may last 50 us longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)


def _kernel_lists_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


_HAS_CHILDREN_FILES = _kernel_lists_children()


def _children_from_files(pid: int) -> list[int]:
    children: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return children
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                children.extend(map(int, file.read().split()))
        except OSError:
            continue
    return children


def _children_by_parent() -> dict[int, list[int]]:
    """Scan all of /proc: for kernels built without the children files."""
    table: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                text = file.read()
        except OSError:
            continue
        # The command name may hold blanks and brackets: fields count from the last bracket.
        parent = int(text[text.rindex(b")") + 2 :].split(None, 2)[1])
        table.setdefault(parent, []).append(int(name))
    return table


def descendants(root: int, *, without: Iterable[int] = ()) -> list[int]:
    """List the pids below `root`, parents before children.

    Parameters
    ----------
    root : int
        The pid whose tree is listed; not in the result itself.
    without : iterable of int
        Pids that are left out together with everything below them.
    """
    skip = set(without)
    found: list[int] = []
    if _HAS_CHILDREN_FILES:
        frontier = _children_from_files(root)
        while frontier:
            below: list[int] = []
            for pid in frontier:
                if pid not in skip:
                    skip.add(pid)
                    found.append(pid)
                    below.extend(_children_from_files(pid))
            frontier = below
        return found
    table = _children_by_parent()
    frontier = table.get(root, [])
    while frontier:
        fresh = [pid for pid in frontier if pid not in skip]
        skip.update(fresh)
        found.extend(fresh)
        frontier = [child for pid in fresh for child in table.get(pid, ())]
    return found


def signal_each(pids: Iterable[int], number: int) -> None:
    """Send a signal to each pid; those that are gone or not ours are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def resident_bytes(pids: Iterable[int]) -> int:
    """Sum of the resident sets of `pids`; shared pages count once per process."""
    pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                pages += int(file.read().split(None, 2)[1])
        except (OSError, IndexError, ValueError):
            continue
    return pages * _PAGE_BYTES


def proportional_bytes(pids: Iterable[int]) -> int:
    """Sum of the proportional sets of `pids`: shared pages count once. Slower than `resident_bytes`."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                for line in file:
                    if line.startswith(b"Pss:"):
                        total += int(line.split()[1]) * 1024
                        break
        except (OSError, IndexError, ValueError):
            total += resident_bytes((pid,))
    return total


_Match = Callable[[list[bytes]], bool]
"""Tells from a process's environment (``NAME=value`` entries) whether it is meant."""


def _matching(matches: _Match) -> list[int]:
    user = os.geteuid()
    me = os.getpid()
    found: list[int] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == me:
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid != user:
                continue
            with open(f"/proc/{name}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:
            continue
        if matches(variables):
            found.append(int(name))
    return found


def _has_tags(run_id: str, worker: int | None) -> _Match:
    tags = [f"{RUN_TAG}={run_id}".encode()]
    if worker is not None:
        tags.append(f"{WORKER_TAG}={worker}".encode())
    return lambda variables: all(tag in variables for tag in tags)


def _of_earlier_epoch(run_id: str, epoch: int) -> _Match:
    has_tags = _has_tags(run_id, None)
    prefix = f"{EPOCH_TAG}=".encode()

    def matches(variables: list[bytes]) -> bool:
        if not has_tags(variables):
            return False
        epochs = [entry[len(prefix) :] for entry in variables if entry.startswith(prefix)]
        return any(text.isdigit() and int(text) < epoch for text in epochs)

    return matches


def find_by_tag(run_id: str, worker: int | None = None) -> list[int]:
    """Pids of this user's processes on this node that carry the run's (and the worker's) tag."""
    return _matching(_has_tags(run_id, worker))


def _kill_if_still_matching(pid: int, matches: _Match) -> None:
    # The pidfd pins the process before its environment is read again: a recycled pid cannot be hit.
    pidfd = -1
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        pidfd = -1
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
        if matches(variables):
            if pidfd >= 0:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
    except OSError:
        return
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def sweep_by_tag(run_id: str, worker: int | None = None, *, limit_s: float = 3.0) -> int:
    """Kill (SIGKILL) what carries ``KEYSTONE_RUN=<run_id>`` in its environment on this node.

    Parameters
    ----------
    run_id : str
        The run's id, matched exactly.
    worker : int or None
        Only processes that also carry ``KEYSTONE_WORKER=<worker>``; None: any worker's.
    limit_s : float
        How long to go on when processes do not die.

    Returns
    -------
    int
        Processes that are still there at the end; 0 unless something is very wrong.
    """
    return _sweep(_has_tags(run_id, worker), limit_s)


def sweep_earlier_epochs(run_id: str, epoch: int, *, limit_s: float = 3.0) -> int:
    """Kill what earlier starts of a run left on this node: the run's tag and an epoch below `epoch`.

    Returns
    -------
    int
        Processes that are still there at the end; 0 unless something is very wrong.
    """
    return _sweep(_of_earlier_epoch(run_id, epoch), limit_s)


def _sweep(matches: _Match, limit_s: float) -> int:
    end = time.monotonic() + limit_s
    while True:
        found = _matching(matches)
        if not found:
            return 0
        for pid in found:
            _kill_if_still_matching(pid, matches)
        if time.monotonic() >= end:
            return len(_matching(matches))
        time.sleep(0.01)


def ignore_in_python(_number: int, _frame: object) -> None:
    """Stand in for SIGCHLD's handler: only with one does the signal reach the wakeup pipe."""
