"""The memory of an attempt: sampled against its limit, and the kernel's own kills told apart.

Rule: a look costs time, so the next one is due when the limit could be reached
at the earliest, and looking takes at most a hundredth of the time.

    headroom / 8 GB/s, within [10 ms, 500 ms] --> next look --> resident set of the whole tree > limit?
    SIGKILL that we did not send + cgroup's oom_kill counter went up --> out of memory
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from keystone_mpi.execution.processes import proportional_bytes, resident_bytes

_FILL_RATE_BYTES_PER_S = 8e9
_SHORTEST_S = 0.010
_LONGEST_S = 0.500
_COST_FACTOR = 100.0


class MemoryWatch:
    """Samples the process tree of one attempt.

    Parameters
    ----------
    limit_bytes : int
        Resident memory that the tree may have.
    list_pids : callable
        Returns the tree's pids.
    """

    def __init__(self, limit_bytes: int, list_pids: Callable[[], Iterable[int]]) -> None:
        self.limit_bytes = limit_bytes
        self._list_pids = list_pids
        self._pids: list[int] = []
        self._list_again_at = 0.0
        self.used_bytes = 0
        """At the last look."""

    def first_look_s(self) -> float:
        """How long after the start the limit could be reached."""
        return min(max(self.limit_bytes / _FILL_RATE_BYTES_PER_S, _SHORTEST_S), _LONGEST_S)

    def exceeded(self) -> bool:
        """Look now."""
        now = time.monotonic()
        if now >= self._list_again_at:
            self._pids = list(self._list_pids())
            # Where the kernel keeps no lists of children, listing costs a scan of all of /proc.
            self._list_again_at = now + _COST_FACTOR * (time.monotonic() - now)
        used = resident_bytes(self._pids)
        if used > self.limit_bytes and len(self._pids) > 1:
            # Processes that share pages would be counted several times.
            used = proportional_bytes(self._pids)
        self.used_bytes = used
        return used > self.limit_bytes

    def look(self) -> tuple[bool, float]:
        """Look now; return whether the limit is exceeded, and after how many seconds to look again."""
        began = time.perf_counter()
        over = self.exceeded()
        cost_s = time.perf_counter() - began
        headroom = max(0, self.limit_bytes - self.used_bytes)
        pause_s = min(max(headroom / _FILL_RATE_BYTES_PER_S, _SHORTEST_S), _LONGEST_S)
        return over, max(pause_s, min(_COST_FACTOR * cost_s, _LONGEST_S))


class OomKills:
    """The kernel's count of out-of-memory kills in this process's cgroup."""

    def __init__(self) -> None:
        self._path = _counter_path()
        self._seen = self._read()

    def note(self) -> None:
        """Remember the present count: what comes later is the present attempt's."""
        self._seen = self._read()

    def happened(self) -> bool:
        """Tell whether the kernel killed something since the count was last looked at."""
        now = self._read()
        before, self._seen = self._seen, now
        return now > before

    def _read(self) -> int:
        if not self._path:
            return 0
        try:
            with open(self._path, "rb") as file:
                for line in file:
                    if line.startswith(b"oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            return 0
        return 0


def _counter_path() -> str:
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in lines:
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        controllers, path = parts[1].split(","), parts[2].lstrip("/")
        if "memory" in controllers:
            candidates = [
                f"/sys/fs/cgroup/memory/{path}/memory.oom_control",
                "/sys/fs/cgroup/memory/memory.oom_control",
            ]
        elif controllers == [""]:
            candidates = [f"/sys/fs/cgroup/{path}/memory.events", "/sys/fs/cgroup/memory.events"]
        else:
            continue
        for candidate in candidates:
            if os.access(candidate, os.R_OK):
                return candidate
    return ""


def text_of_bytes(count: int) -> str:
    """Write a size for people: ``2.1 GiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size == int(size) else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
