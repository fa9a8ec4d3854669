"""How numbers, times and paths are said to people.

Rule: pure functions from values to short text; nothing here prints.
"""

from __future__ import annotations

import datetime
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def duration(seconds: float) -> str:
    """Say a duration in its natural unit; ``-`` when it is not known."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 0.0995:
        return f"{seconds * 1e3:.2g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def clock(seconds: float) -> str:
    """Say elapsed time as ``h:mm:ss``, as wide as it needs."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def local_time(stamp: float) -> str:
    """Say a time stamp on this machine's clock; ``-`` when it is not known."""
    if not math.isfinite(stamp):
        return "-"
    return datetime.datetime.fromtimestamp(stamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(size_bytes: float) -> str:
    """Say a size in binary units."""
    if not math.isfinite(size_bytes):
        return "-"
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def rate(per_second: float) -> str:
    """Say a rate of tasks in the unit that keeps the number readable; empty when unknown."""
    if not math.isfinite(per_second) or per_second <= 0:
        return ""
    if per_second >= 1:
        return f"{per_second:,.0f}/s" if per_second >= 99.5 else f"{per_second:.3g}/s"
    if per_second * 60 >= 1:
        return f"{per_second * 60:.3g}/min"
    return f"{per_second * 3600:.3g}/h"


def count(number: int, noun: str, nouns: str = "") -> str:
    """Say ``1 task`` or ``1,234 tasks``."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def value(item: Any) -> str:
    """Say a parameter or a result."""
    if isinstance(item, float):
        return f"{item:.10g}"
    return str(item)


def assignments(values: dict[str, Any]) -> str:
    """Say parameters as ``mesh_size=16 kappa=0.5``."""
    return " ".join(f"{name}={value(item)}" for name, item in values.items())


def path(item: str | os.PathLike[str]) -> str:
    """Say a path as short as it stays right, seen from the present folder."""
    absolute = Path(item).absolute()
    try:
        return str(absolute.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(absolute)


def command(*words: str | os.PathLike[str]) -> str:
    """Say a command that can be pasted into a shell."""
    return shlex.join(str(word) for word in words)


def joined(parts: Iterable[str]) -> str:
    """Join the parts that are not empty with commas."""
    return ", ".join(part for part in parts if part)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lay out a table as lines of text: whole cells whatever the terminal's width.

    Parameters
    ----------
    heads : sequence of str
        One per column.
    rows : sequence of sequences of str
    left : int
        So many of the first columns are aligned to the left, the others, numbers, to the right.
    """
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("   ".join(cells).rstrip())
    return lines


def task_progress(fractions: Mapping[str, float], limit: int) -> str:
    """Say how far running tasks are: ``task 3 at 40%, task 7 at 5%, ...``; empty without any."""
    shown = [f"task {task} at {int(100 * part)}%" for task, part in list(fractions.items())[:limit]]
    return ", ".join(shown) + (", ..." if len(fractions) > limit else "")
