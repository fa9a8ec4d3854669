"""Pictures of a run by matplotlib: timeline, durations, scaling, response.

Rule: a figure is made and returned, never shown; no global state of matplotlib
(pyplot) is touched, so it works in a job and beside a user's own figures.

    Run --plot_timeline | plot_durations | plot_scaling | plot_response--> Figure --save--> png, svg, pdf
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystone_mpi.analysis.libraries import load
from keystone_mpi.analysis.run import Run
from keystone_mpi.analysis.statistics import busy_over_time, lanes
from keystone_mpi.core.errors import UserError
from keystone_mpi.core.model import Outcome

FORMATS = ("png", "svg", "pdf")
DOTS_PER_INCH = 150
DETAILED = 20_000
DENSITY_BINS = 600
SIMULATED = 200_000
"""Durations that the prediction of `plot_scaling` is made of, at most."""
FEW = 8

INK, SOFT, LINE = "#1a2028", "#56606d", "#dfe3e8"
COLOURS = {
    Outcome.SUCCESS: "#2a7f9e",
    Outcome.FAILED: "#c2410c",
    Outcome.TIMEOUT: "#d99a1c",
    Outcome.OUT_OF_MEMORY: "#7e3f98",
    Outcome.CANCELLED: "#94a3b8",
    Outcome.WORKER_LOST: "#475569",
    Outcome.INTERRUPTED: "#94a3b8",
}
SERIES = ("#1f5fa8", "#c2410c", "#2f855a", "#7e3f98", "#a16207", "#0f766e", "#be185d", "#475569")


def _figure(width: float = 8.0, height: float = 4.5) -> tuple[Any, Any]:
    figure_module = load("matplotlib.figure", "a picture")
    figure = figure_module.Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=SOFT, labelsize=9)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _label(axes: Any, x: str, y: str, title: str) -> None:
    # A user's text is no mathematics: matplotlib would take a pair of $ for it.
    axes.set_xlabel(_plain(x), color=SOFT, fontsize=10)
    axes.set_ylabel(_plain(y), color=SOFT, fontsize=10)
    axes.set_title(_plain(title), color=INK, fontsize=12, loc="left", fontweight="bold")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def save(figure: Any, path: Path) -> None:
    """Write a figure; its format is the suffix of the file.

    Raises
    ------
    UserError
        The suffix is none of `FORMATS`, or the file cannot be written.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UserError(f"{path}: pictures are written as {', '.join(FORMATS)}; name the file so")
    # Without the date, so that the same run gives the same file.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix, {})
    try:
        figure.savefig(path, dpi=DOTS_PER_INCH, metadata=metadata)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def plot_timeline(run: Run) -> Any:
    """Draw what every worker did when: bars for up to `DETAILED` attempts, else how busy it was."""
    collections = load("matplotlib.collections", "a picture")
    attempts = run.attempt_arrays()
    known = np.flatnonzero(np.isfinite(attempts.started) & np.isfinite(attempts.finished))
    if not len(known):
        raise UserError(f"{run.path}: no attempt has ended yet: there is no timeline")
    shown = attempts.of(known)
    first = float(shown.started.min())
    length_s = float(shown.finished.max()) - first
    unit_s, unit = _time_unit(length_s)
    workers = run.worker_arrays()
    rows = sorted(
        np.unique(shown.worker).tolist(), key=lambda row: (int(workers.rank[row]) if row >= 0 else -1, row)
    )
    detailed = len(known) <= DETAILED
    outcome = run.attempt_column("outcome")[known]
    ticks, labels, base, bars, colours, image = [], [], 0, [], [], []
    for row in rows:
        here = np.flatnonzero(shown.worker == row)
        count = 1
        if detailed:
            lane = lanes(shown.started[here], shown.finished[here])
            count = int(lane.max()) + 1
            for position, line in zip(here.tolist(), lane.tolist(), strict=True):
                start = (float(shown.started[position]) - first) / unit_s
                took = float(shown.finished[position] - shown.started[position]) / unit_s
                low, high = base + line + 0.06, base + line + 0.94
                bars.append([(start, low), (start + took, low), (start + took, high), (start, high)])
                colours.append(COLOURS[Outcome(int(outcome[position]))])
        else:
            side = busy_over_time(
                shown.started[here], shown.finished[here], first, first + length_s, DENSITY_BINS
            )
            slots = max(1, int(workers.slots[row]) if row >= 0 else 1)
            image.append(np.minimum(side / max(slots, float(side.max())), 1.0))
        host = run.hosts[row] if row >= 0 else "unknown"
        labels.append(_plain(host if row < 0 else f"{host} · {int(workers.rank[row])}"))
        ticks.append(base + count / 2)
        base += count
    figure, axes = _figure(9.0, min(12.0, max(2.6, 1.4 + 0.11 * base)))
    axes.grid(visible=False)
    if detailed:
        edge = 0.6 if len(bars) <= 500 else 0.0
        axes.add_collection(
            collections.PolyCollection(bars, facecolors=colours, edgecolors="white", linewidths=edge)
        )
        patches = load("matplotlib.patches", "a picture")
        present = [member for member in Outcome if (outcome == member).any()]
        keys = [
            patches.Patch(color=COLOURS[member], label=member.name.lower().replace("_", " "))
            for member in present
        ]
        axes.legend(handles=keys, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        picture = axes.imshow(
            np.array(image), aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1,
            extent=(0, length_s / unit_s, 0, base), interpolation="nearest",
        )  # fmt: skip
        figure.colorbar(picture, ax=axes, label="share of its slots in use", pad=0.01)
    every = max(1, -(-len(ticks) // 40))
    axes.set_yticks(ticks[::every], labels[::every])
    axes.set_xlim(0, length_s / unit_s or 1)
    axes.set_ylim(base, 0)
    _label(axes, f"time since the first start ({unit})", "worker", f"{run.name}: {len(known):,} attempts")
    return figure


def plot_durations(run: Run) -> Any:
    """Draw the distribution of the wall times of the attempts, by how they ended."""
    took = run.attempt_column("duration_s")
    outcome = run.attempt_column("outcome")
    known = np.isfinite(took) & (took >= 0)
    took, outcome = took[known], outcome[known]
    if not len(took):
        raise UserError(f"{run.path}: no attempt has ended yet: there are no durations")
    low, high = float(took.min()), float(took.max())
    unit_s, unit = _time_unit(float(np.median(took)))
    log = low > 0 and high / low > 100
    bins = int(min(60, max(8, 2 * math.sqrt(len(took)))))
    if high <= low:
        low, high = low * 0.9, high * 1.1 + 1e-9
    edges = (np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)) / unit_s
    figure, axes = _figure()
    present = [member for member in Outcome if (outcome == member).any()]
    axes.hist(
        [took[outcome == member] / unit_s for member in present],
        bins=edges,
        stacked=True,
        color=[COLOURS[member] for member in present],
        label=[member.name.lower().replace("_", " ") for member in present],
        rwidth=0.94,
    )
    median = float(np.median(took))
    axes.axvline(median / unit_s, color=INK, linewidth=1, linestyle="--")
    axes.annotate(
        f"median {median / unit_s:.3g} {unit}", (median / unit_s, 1.0), xycoords=("data", "axes fraction"),
        xytext=(5, -12), textcoords="offset points", color=INK, fontsize=9,
    )  # fmt: skip
    if log:
        axes.set_xscale("log")
    axes.grid(axis="x", visible=False)
    if len(present) > 1:
        axes.legend(frameon=False, fontsize=9)
    _label(
        axes, f"wall time of an attempt ({unit})", "attempts",
        f"{run.name}: {len(took):,} attempts, {_spoken(float(took.sum()))} in all",
    )  # fmt: skip
    return figure


def plot_scaling(runs: Sequence[Run]) -> Any:
    """Draw the measured speedup of one or more runs against their slots, the ideal, and what is possible.

    What is possible is a simulation: the durations of the first run dealt to
    so many slots, the next task to the slot that falls free. It bends where
    the longest tasks, not the slots, decide.
    """
    figure, axes = _figure(6.4, 5.2)
    points = []
    for run in runs:
        stats = run.stats()
        if stats["elapsed_s"] > 0:
            points.append((stats["usable_slots"], stats["speedup"], run.path.name))
    if not points:
        raise UserError(f"{runs[0].path}: no attempt has ended yet: there is no speedup")
    durations = runs[0].values("duration_s")
    durations = durations[np.isfinite(durations)][:SIMULATED]
    most = max(4.0, 2.0 * max(slots for slots, _, _ in points))
    counts = np.unique(np.round(np.geomspace(1, most, 25)).astype(int))
    possible = [_speedup_on(durations, int(count)) for count in counts]
    axes.plot([1, most], [1, most], color=SOFT, linewidth=1, linestyle="--", label="ideal")
    axes.plot(counts, possible, color=SERIES[0], linewidth=1.6, label="possible with these durations")
    for position, (slots, speedup, name) in enumerate(points):
        colour = SERIES[(position + 1) % len(SERIES)]
        label = _plain(f"measured: {name}")
        axes.plot([slots], [speedup], "o", color=colour, markersize=8, label=label, zorder=3)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticker = load("matplotlib.ticker", "a picture")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    _label(
        axes, "slots that the tasks could use", "speedup (task time / elapsed)", f"{runs[0].name}: scaling"
    )
    return figure


def plot_response(
    run: Run, result: str, param: str, *, colour: str | None = None, log_x: bool | None = None,
    log_y: bool | None = None,
) -> Any:  # fmt: skip
    """Draw a result against a parameter, one series per value of `colour`.

    Parameters
    ----------
    run : Run
    result, param : str
        Any result, parameter or column of /tasks.
    colour : str, optional
        Another one to tell the points apart by.
    log_x, log_y : bool, optional
        None: where the values are positive and spread widely.
    """
    x, y = run.values(param), run.values(result)
    for name, values in ((param, x), (result, y)):
        if values.ndim > 1:
            raise UserError(f"{run.path}: {name} is an array per task; a response needs one value per task")
    if y.dtype.kind not in "ifb":
        raise UserError(f"{run.path}: {result} is text; a response needs numbers")
    y = y.astype(float)
    shade = run.values(colour) if colour else None
    categories: list[str] = []
    if x.dtype.kind in "ifb":
        x = x.astype(float)
    else:
        categories = list(dict.fromkeys(map(str, x.tolist())))
        x = np.array([categories.index(str(value)) for value in x.tolist()], float)
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        raise UserError(f"{run.path}: {result} has no value yet")
    figure, axes = _figure(7.2, 4.8)
    x, y = x[known], y[known]
    if shade is not None:
        shade = shade[known]
        distinct = np.unique(shade)
        if len(distinct) <= FEW or shade.dtype == object:
            for position, value in enumerate(distinct[: len(SERIES)].tolist()):
                here = shade == value
                said = f"{value:.6g}" if isinstance(value, float) else str(value)
                _series(axes, x[here], y[here], SERIES[position], _plain(f"{colour} = {said}"))
            axes.legend(frameon=False, fontsize=9)
        else:
            points = axes.scatter(x, y, c=shade, cmap="viridis", s=14, linewidths=0)
            figure.colorbar(points, ax=axes, label=_plain(str(colour)), pad=0.01)
    else:
        _series(axes, x, y, SERIES[0], None)
    if categories:
        axes.set_xticks(range(len(categories)), [_plain(name) for name in categories])
    if (log_x is None and not categories and _spreads(x, 100)) or log_x:
        axes.set_xscale("log")
    if (log_y is None and _spreads(y, 30)) or log_y:
        axes.set_yscale("log")
    distinct = np.unique(x)
    if not categories and len(distinct) <= FEW:
        # Few values: they are the ticks.
        axes.set_xticks(distinct, [f"{value:.6g}" for value in distinct.tolist()])
        axes.set_xticks([], minor=True)
    _label(axes, param, result, f"{run.name}: {result} against {param}")
    return figure


def _series(axes: Any, x: NDArray[Any], y: NDArray[Any], colour: str, label: str | None) -> None:
    order = np.argsort(x, kind="stable")
    single = len(np.unique(x)) == len(x)
    size = 4 if len(x) <= 200 else 2
    line = "-" if single and len(x) <= 400 else ""
    axes.plot(
        x[order], y[order], f"o{line}", color=colour, markersize=size, linewidth=1.2, label=label, alpha=0.85
    )


def _spreads(values: NDArray[Any], ratio: float) -> bool:
    known = np.unique(values)
    if len(known) < 3 or known[0] <= 0:
        return False
    steps = known[1:] / known[:-1]
    # Equal ratios, such as 16, 32, 64, are logarithmic however short.
    equal = len(known) <= 50 and bool((np.abs(steps / steps[0] - 1) < 0.05).all())
    return equal or bool(known[-1] / known[0] >= ratio)


def _speedup_on(durations: NDArray[np.float64], slots: int) -> float:
    """Return the speedup when the tasks are dealt in order to `slots` slots."""
    if not len(durations):
        return 1.0
    ends = [0.0] * min(slots, len(durations))
    for took in durations.tolist():
        heapq.heapreplace(ends, ends[0] + took)
    longest = max(ends)
    return float(durations.sum()) / longest if longest > 0 else 1.0


def _time_unit(length_s: float) -> tuple[float, str]:
    for limit_s, unit_s, unit in ((1.0, 1e-3, "ms"), (300.0, 1.0, "s"), (10800.0, 60.0, "min")):
        if length_s < limit_s:
            return unit_s, unit
    return 3600.0, "h"


def _spoken(seconds: float) -> str:
    unit_s, unit = _time_unit(seconds)
    return f"{seconds / unit_s:.3g} {unit}"
