"""What a run says while it goes on: a live bar on a terminal, spaced lines elsewhere.

Rule: the number of lines in a job's log is bounded by time, not by tasks; what
must be seen (the first failures, a lost worker, the end) is said at once. Time
comes with each `Progress`, never from a clock, and the bar has no thread of its
own: between two snapshots watching a run costs nothing.

    engine --(telling)------> PlainProgress --> lines, after 2 s, then every 10 s, growing to 60 s
                              LiveProgress  --> rich bar, at most twice a second
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, TextIO

from keystone_mpi.cli import wording
from keystone_mpi.cli.terminal import watched_columns
from keystone_mpi.engine.observer import Progress, RunClosing, RunInfo

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

FIRST_LINE_S = 2.0
SHORTEST_INTERVAL_S = 10.0
LONGEST_INTERVAL_S = 60.0
INTERVAL_GROWTH = 1.25
FAILURE_LINES = 10
"""Failures beyond this many no longer get a line of their own between the spaced ones."""
NOTICE_LINES = 200
"""Notices beyond this many are only counted."""
BAR_INTERVAL_S = 0.5


class PlainProgress:
    """Lines for a job's log.

    Parameters
    ----------
    stream : TextIO or None
        Where to write; None: standard output.
    quiet : bool
        Say only notices and the end.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._quiet = quiet
        self._next_line_s = FIRST_LINE_S
        self._interval_s = SHORTEST_INTERVAL_S
        self._failed_said = 0
        self._failed_line_s = -math.inf
        self._failure_lines = 0
        self._notices = 0
        self._last_notice = ""
        self._nothing_to_do = False

    def run_opened(self, info: RunInfo) -> None:
        """Say what is about to run."""
        self._nothing_to_do = info.to_run == 0
        if not self._quiet:
            self.say(opening_line(info))

    def progress(self, progress: Progress) -> None:
        """Say how far it is, if it is time to or something went wrong for the first time."""
        if self._quiet:
            return
        # One line a second at most for failures: a broken sweep fails a thousand times a second.
        failed_now = progress.failed > self._failed_said and self._failure_lines < FAILURE_LINES
        if failed_now and progress.elapsed_s - self._failed_line_s >= 1.0:
            self._failure_lines += 1
            self._failed_line_s = progress.elapsed_s
        elif progress.elapsed_s >= self._next_line_s:
            self._next_line_s = progress.elapsed_s + self._interval_s
            self._interval_s = min(LONGEST_INTERVAL_S, self._interval_s * INTERVAL_GROWTH)
        else:
            return
        self._failed_said = progress.failed
        self.say(progress_line(progress))

    def notice(self, text: str) -> None:
        """Say one thing at once; the same thing twice in a row only once."""
        if text == self._last_notice:
            return
        self._last_notice = text
        self._notices += 1
        if self._notices <= NOTICE_LINES:
            self.say(text)
        elif self._notices == NOTICE_LINES + 1:
            self.say("further notices are only counted")

    def run_closed(self, closing: RunClosing) -> None:
        """Say how it ended."""
        if self._notices > NOTICE_LINES:
            self.say(f"{wording.count(self._notices - NOTICE_LINES, 'notice')} not shown")
        if self._nothing_to_do and not closing.failed and not closing.file_problem:
            return
        for line in closing_lines(closing):
            self.say(line)

    def flush(self, limit_s: float) -> None:
        """Nothing waits here: each line is written at once."""

    def close(self) -> None:
        """Leave the terminal as it was; may be called at any time."""

    def say(self, text: str) -> None:
        """Write one line at once: an mpiexec that dies takes its buffers with it."""
        encoding = self._stream.encoding or "utf-8"
        # A solver's error line may hold what a C locale cannot say.
        sayable = text.encode(encoding, errors="backslashreplace").decode(encoding)
        try:
            self._stream.write(f"{sayable}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # The log's disk is full or its reader is gone. The run goes on; its records are elsewhere.
            pass


class LiveProgress(PlainProgress):
    """A bar on a terminal, with lines above it for what must be seen.

    Parameters
    ----------
    stream : TextIO or None
        Where to write; None: standard output.
    columns : int
        Width of the terminal.
    """

    def __init__(self, stream: TextIO | None = None, *, columns: int = 80) -> None:
        super().__init__(stream)
        self._columns = columns
        self._bar: Bar | None = None
        self._drawn_s = -math.inf

    def run_opened(self, info: RunInfo) -> None:
        """Say what is about to run and draw the bar."""
        super().run_opened(info)
        if not info.to_run:
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        # Without a thread of its own: it is drawn when a snapshot comes.
        self._bar = Bar(
            TextColumn("{task.percentage:3.0f}%"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[counts]}"),
            # Under mpiexec the stream itself is a pipe; whoever made this knows of the terminal.
            console=Console(file=self._stream, force_terminal=True, width=self._columns),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar.add_task("", total=max(info.total, 1), completed=info.already_done, counts="starting")
        self._bar.start()

    def progress(self, progress: Progress) -> None:
        """Draw the bar anew, if it is time to."""
        if self._bar is None or progress.elapsed_s - self._drawn_s < BAR_INTERVAL_S:
            return
        self._drawn_s = progress.elapsed_s
        self._bar.update(
            self._bar.task_ids[0],
            completed=progress.succeeded + progress.failed + sum(progress.task_progress.values()),
            total=max(progress.total, 1),
            counts=_counts(progress),
        )
        self._bar.refresh()

    def run_closed(self, closing: RunClosing) -> None:
        """Take the bar away and say how it ended."""
        self.close()
        super().run_closed(closing)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.stop()

    def say(self, text: str) -> None:
        """Write one line above the bar."""
        if self._bar is None:
            super().say(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_observer(*, quiet: bool = False, stream: TextIO | None = None) -> PlainProgress:
    """Return the observer that suits `stream` (standard output when None)."""
    target = sys.stdout if stream is None else stream
    columns = None if quiet else watched_columns(target)
    return PlainProgress(target, quiet=quiet) if columns is None else LiveProgress(target, columns=columns)


def opening_line(info: RunInfo) -> str:
    """Return the one line that tells a fresh run from a continued one."""
    output = wording.path(info.output_path)
    total = wording.count(info.total, "task")
    if not info.continued:
        return f"{info.name}: {total} -> {output}"
    changes = wording.joined(
        (
            f"{info.added:,} new in the sweep" if info.added else "",
            f"{info.dropped:,} no longer in the sweep (kept in the file)" if info.dropped else "",
        )
    )
    changes = f" ({changes})" if changes else ""
    if not info.to_run:
        return f"{info.name}: nothing to do: all {total} of {output} are done{changes}"
    done = f"{info.already_done:,} of {total} done, {info.to_run:,} to run"
    return f"{info.name}: continuing {output}: {done}{changes}"


def progress_line(progress: Progress) -> str:
    """Return one line for a job's log."""
    done = progress.succeeded + progress.failed
    share = 100.0 * done / progress.total if progress.total else 100.0
    # Rounded down: 100% is only said when it is true.
    where = f"{done:,}/{progress.total:,} ({math.floor(share)}%)"
    return f"[{wording.clock(progress.elapsed_s)}] {where} {_counts(progress)}"


def _counts(progress: Progress) -> str:
    """Return everything that changes, in the order of what people look for."""
    return wording.joined(
        (
            f"done {progress.succeeded:,}",
            f"failed {progress.failed:,}",
            f"running {progress.running:,}{_how_far(progress.task_progress)}",
            wording.rate(progress.rate_per_s),
            f"about {wording.duration(progress.eta_s)} left" if math.isfinite(progress.eta_s) else "",
            "draining" if progress.draining else "",
            # What it is was said once, by a notice.
            "waiting for the disk" if progress.problem else "",
        )
    )


def _how_far(task_progress: dict[str, float]) -> str:
    """Say how far the running tasks are, as their solvers say."""
    said = wording.task_progress(task_progress, 3)
    return f" ({said})" if said else ""


def closing_lines(closing: RunClosing) -> list[str]:
    """Return the summary: counts, where the results are, the first failures, what to do next."""
    output = wording.path(closing.output_path)
    done = closing.succeeded + closing.failed
    if closing.state == "complete":
        lines = [
            f"complete: {closing.succeeded:,} of {wording.count(closing.total, 'task')} succeeded"
            f" in {wording.duration(closing.elapsed_s)}"
        ]
    else:
        reason = f" ({closing.reason})" if closing.reason else ""
        lines = [
            f"stopped{reason} after {wording.duration(closing.elapsed_s)}: {done:,} of "
            f"{wording.count(closing.total, 'task')} done, {closing.pending:,} left; "
            f"run the same command again to continue"
        ]
    if closing.failed:
        causes = wording.joined(
            (
                f"{closing.timed_out:,} timed out" if closing.timed_out else "",
                f"{closing.out_of_memory:,} out of memory" if closing.out_of_memory else "",
            )
        )
        lines.append(f"{closing.failed:,} did not succeed{f' ({causes})' if causes else ''}:")
        lines += [f"  task {task_id}: {error}" for task_id, error in closing.first_failures]
        unsaid = closing.failed - len(closing.first_failures)
        if closing.first_failures and unsaid > 0:
            lines.append(f"  and {unsaid:,} more: {wording.command('keystone-mpi', 'status', output)}")
        example = closing.first_failures[0][0] if closing.first_failures else "TASK"
        lines.append(f"  look at one:    {wording.command('keystone-mpi', 'show', output, example)}")
        lines.append(f"  run it here:    {wording.command('keystone-mpi', 'rerun', output, example)}")
        lines.append("  run all again:  the same command with --retry-failed")
    lines.append(f"results: {output}")
    if closing.file_problem:
        lines.append(
            f"the file does not hold all of them yet ({closing.file_problem}); nothing is lost: "
            f"{wording.command('keystone-mpi', 'status', output)} or the next run completes it"
        )
    return lines
