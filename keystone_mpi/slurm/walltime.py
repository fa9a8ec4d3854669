"""The end of the allocation: when to start nothing more, when to stop what runs.

Rule: pure arithmetic on seconds. Everything is on disk before the end: what is
not expected to end in time is not started, what runs past the drain is stopped
in time for its last words and the last batch of the file.

    now ---- tasks that fit are started ---- drain ---- what runs ends ---- stop ---- file written ---- end
"""

from __future__ import annotations

import re

import msgspec

from keystone_mpi.core.errors import UserError

SHORTEST_STOP_MARGIN_S = 15.0
"""Between stopping what runs and the end: signals, reports, the last batch of the file, MPI_Finalize."""
LONGEST_STOP_MARGIN_S = 120.0
STOP_MARGIN_FRACTION = 0.01
LONGEST_DRAIN_S = 60.0
DRAIN_FRACTION = 0.02
SHORTEST_WARNING_S = 30
LONGEST_WARNING_S = 300
WARNING_FRACTION = 0.05


class Stops(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from now."""

    drain_s: float
    """Nothing is started any more, whatever is expected of it."""
    stop_s: float
    """What still runs is stopped; it costs its tasks nothing. Tasks must be expected to end before."""


def plan_stops(left_s: float, grace_s: float) -> Stops:
    """Decide when to drain and to stop.

    Parameters
    ----------
    left_s : float
        Until the end of the allocation.
    grace_s : float
        Between SIGTERM and SIGKILL of a task that is stopped.
    """
    left_s = max(0.0, left_s)
    margin_s = (
        min(LONGEST_STOP_MARGIN_S, max(SHORTEST_STOP_MARGIN_S, STOP_MARGIN_FRACTION * left_s)) + grace_s
    )
    # An allocation of a minute or two still gets something done.
    stop_s = left_s - min(margin_s, left_s / 3.0)
    drain_s = stop_s - min(LONGEST_DRAIN_S, DRAIN_FRACTION * left_s)
    return Stops(drain_s=max(0.0, drain_s), stop_s=max(0.0, stop_s))


def warning_s(time_s: float) -> int:
    """Return how long before the end Slurm should send SIGUSR1; 0: the job is too short for that."""
    wanted = int(min(LONGEST_WARNING_S, max(SHORTEST_WARNING_S, WARNING_FRACTION * time_s)))
    return wanted if wanted < time_s / 2.0 else 0


_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)")


def parse_limit(text: str, where: str, *, plain_seconds: bool = False) -> float:
    """Read a time limit: ``2h``, ``1h30m``, ``90min``, or Slurm's ``02:00:00`` and ``1-12:00:00``.

    Parameters
    ----------
    text : str
    where : str
        The option or key, for the message.
    plain_seconds : bool
        A plain number is seconds. Else it is refused: to Slurm it would be minutes.

    Raises
    ------
    UserError
        It is neither, or zero.
    """
    plain = text.strip().lower()
    if plain.replace(".", "", 1).isdigit() and not plain_seconds:
        raise UserError(f"{where}: found {text!r}; minutes or seconds? Write {plain}min or {plain}s")
    seconds = _clock(plain) if ":" in plain or "-" in plain else _units(plain)
    if not seconds:
        raise UserError(
            f"{where}: found {text!r}; allowed are 2h, 1h30m, 90min, 2d, or Slurm's 02:00:00 and 1-12:00:00"
        )
    return seconds


def _units(text: str) -> float:
    seconds = 0.0
    position = 0
    while position < len(text):
        found = _PART.match(text, position)
        if found is None or found.group(2) not in _UNITS or (not found.group(2) and found.group(0) != text):
            return 0.0
        seconds += float(found.group(1)) * _UNITS[found.group(2)]
        position = found.end()
    return seconds


def _clock(text: str) -> float:
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in parts) or (dash and not days.isdigit()) or len(parts) > 3:
        return 0.0
    # Slurm: days-hours[:minutes[:seconds]], hours:minutes:seconds, and minutes:seconds without days.
    if not dash and len(parts) == 2:
        parts = ["0", *parts]
    hours, minutes, seconds = (*map(int, parts), 0, 0)[:3]
    return float(int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds)


def slurm_time(seconds: float) -> str:
    """Write a time limit as Slurm reads it: ``1-12:00:00``."""
    whole = int(-(-seconds // 1))
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock
