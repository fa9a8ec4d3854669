"""From a solver's end to the attempt's report: judged, results collected, folder settled.

Rule: what a solver or a full disk does wrong becomes part of the report, never
an exception of the slot process.

    wait status, verdict --judge--> outcome --collect--> results --large ones--> shard
                                            --settle---> work folder kept or removed
    a quiet success (exit 0, nothing printed, no rules) takes the short way: `quiet_report`
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator

import msgspec

from keystone_mpi.core.model import ArrayValue, AttemptReport, Outcome, ShardValue, Why
from keystone_mpi.execution.capture import OutputStream, PackedOutput
from keystone_mpi.execution.memory_watch import OomKills
from keystone_mpi.execution.shards import LARGE_BYTES, ShardWriter
from keystone_mpi.execution.slot_messages import SlotOrder
from keystone_mpi.execution.solver_run import SolverRun
from keystone_mpi.execution.starting import NotStartedError, explain_exit
from keystone_mpi.execution.workfolder import NOTHING_KEPT, Kept, settle
from keystone_mpi.tools.collect import NOTHING, STDOUT_WINDOW_BYTES, Collected, Collection, CollectPlan

TAIL_BYTES = 1 << 16
"""Output tail in the report of an attempt that did not succeed."""
TAIL_OF_SUCCESS_BYTES = 1 << 13
_INLINE_TOTAL_BYTES = 4 << 20
"""All inline arrays of one report together."""
_BIG_RESIDENT_BYTES = 64 << 20

PackedPair = tuple[PackedOutput, PackedOutput]


class QuietSuccess:
    """An attempt that exited with 0, printed nothing and has no rules: reported later, in a batch."""

    __slots__ = ("cpus", "duration_s", "max_rss_bytes", "order", "started", "system_s", "user_s")

    def __init__(
        self,
        order: SlotOrder,
        started: float,
        duration_s: float,
        user_s: float,
        system_s: float,
        max_rss_bytes: int,
        cpus: tuple[int, ...],
    ) -> None:
        self.order = order
        self.started = started
        self.duration_s = duration_s
        self.user_s = user_s
        self.system_s = system_s
        self.max_rss_bytes = max_rss_bytes
        self.cpus = cpus


class Reporter:
    """Makes the reports of one slot process.

    Parameters
    ----------
    scratch_path : str
        Where solvers write their KEYSTONE_RESULT.
    shard : ShardWriter
        For what is too large for a report; of the results file that the first attempt is for.
    stdout, stderr : OutputStream
        The slot's captured output.
    run : SolverRun
        The slot's solver.
    """

    def __init__(
        self,
        scratch_path: str,
        shard: ShardWriter,
        stdout: OutputStream,
        stderr: OutputStream,
        run: SolverRun,
    ) -> None:
        self._scratch = scratch_path
        self.shard = shard
        """Of the results file that the present attempt is for."""
        self._stdout = stdout
        self._stderr = stderr
        self._run = run
        self.oom = OomKills()

    def result_path(self, order: SlotOrder) -> str:
        """Return what KEYSTONE_RESULT says."""
        return f"{self._scratch}/{order.index}-{order.attempt}.json"

    def _written_result(self, order: SlotOrder) -> str:
        """Find what the solver wrote (numpy appends .npz to a name without it); empty: nothing."""
        path = self.result_path(order)
        for candidate in (path, path[: -len("json")] + "npz", path + ".npz"):
            if os.access(candidate, os.F_OK):
                return candidate
        return ""

    def not_started(
        self, order: SlotOrder, plan: CollectPlan, problem: Exception, at: float
    ) -> AttemptReport:
        """Report an attempt whose program did not start."""
        kept = NOTHING_KEPT
        if plan.recipe.workdir != "none" and os.path.isdir(order.launch.cwd):
            kept, _ = self._settle(order, plan, Outcome.FAILED)
        return AttemptReport(
            order.index,
            order.attempt,
            Outcome.FAILED,
            started=at,
            finished=at,
            duration_s=0.0,
            why=Why.NOT_STARTED,
            error=problem.text if isinstance(problem, NotStartedError) else _text_of(problem),
            work_path=kept.work_path,
            command=shlex.join(order.launch.argv),
        )

    def quiet_reports(
        self,
        waiting: list[QuietSuccess],
        plans: list[CollectPlan],
        shard_of: Callable[[int], ShardWriter],
    ) -> Iterator[AttemptReport]:
        """Report a batch of quiet successes; one look into the scratch folder serves them all.

        `shard_of` tells the shard of a recipe's file: by now `shard` may be that of the next attempt.
        """
        results = os.listdir(self._scratch)
        next_shard = self.shard
        for quiet in waiting:
            order = quiet.order
            collected, outcome, why, error = NOTHING, Outcome.SUCCESS, Why.NONE, ""
            large: dict[str, ShardValue] = {}
            if results and (path := self._written_result(order)):
                self.shard = shard_of(order.recipe)
                collected, large, trouble = self._collect(plans[order.recipe].start({}), b"", path)
                self.shard = next_shard
                if not collected.ok or trouble:
                    outcome = Outcome.FAILED
                    why, error = (Why.RESULTS, trouble) if trouble else (collected.why, collected.error)
            yield AttemptReport(
                index=order.index,
                attempt=order.attempt,
                outcome=outcome,
                started=quiet.started,
                finished=quiet.started + quiet.duration_s,
                duration_s=quiet.duration_s,
                exit_code=0,
                why=why,
                user_s=quiet.user_s,
                system_s=quiet.system_s,
                max_rss_bytes=quiet.max_rss_bytes,
                cpus=quiet.cpus,
                error=error,
                scalars=collected.scalars,
                arrays=collected.arrays,
                large=large,
                command=shlex.join(order.launch.argv) if error else "",
            )

    def report(
        self,
        order: SlotOrder,
        plan: CollectPlan,
        collection: Collection | None,
        packed: PackedPair | None,
        started: float,
        duration_s: float,
        cpus: tuple[int, ...],
    ) -> AttemptReport:
        """Report the attempt that `SolverRun` has just ended."""
        run = self._run
        outcome, why, error, code, number = self._judge(order)
        result_path = self._written_result(order)
        collected = NOTHING
        large: dict[str, ShardValue] = {}
        inline: dict[str, bytes] = {}
        if outcome is Outcome.SUCCESS and (collection is not None or result_path or self._stdout.total_bytes):
            tail = self._stdout.tail(STDOUT_WINDOW_BYTES)
            collected, large, trouble = self._collect(collection or plan.start({}), tail, result_path)
            if trouble:
                outcome, why, error = Outcome.FAILED, Why.RESULTS, trouble
            elif not collected.ok:
                outcome, why, error = Outcome.FAILED, collected.why, collected.error
        elif result_path:
            _remove(result_path)
        if packed is not None:
            trouble = self._pack(packed, outcome, plan, inline, large)
            if trouble and outcome is Outcome.SUCCESS:
                outcome, why, error = Outcome.FAILED, Why.RESULTS, trouble
        kept = NOTHING_KEPT
        if plan.recipe.workdir != "none":
            kept, trouble = self._settle(order, plan, outcome)
            if trouble and outcome is Outcome.SUCCESS:
                outcome, why, error = Outcome.FAILED, Why.RESULTS, trouble
        limit = TAIL_OF_SUCCESS_BYTES if outcome is Outcome.SUCCESS else TAIL_BYTES
        if run.max_rss_bytes > _BIG_RESIDENT_BYTES:
            _forget_own_peak()
        return AttemptReport(
            index=order.index,
            attempt=order.attempt,
            outcome=outcome,
            started=started,
            finished=started + duration_s,
            duration_s=duration_s,
            exit_code=code,
            signal=number,
            why=why,
            user_s=run.user_s,
            system_s=run.system_s,
            max_rss_bytes=run.max_rss_bytes,
            cpus=cpus,
            stdout_tail=self._stdout.tail_text(limit),
            stderr_tail=self._stderr.tail_text(limit),
            stdout_bytes=self._stdout.total_bytes,
            stderr_bytes=self._stderr.total_bytes,
            error=error,
            scalars=collected.scalars,
            arrays=collected.arrays,
            large=large,
            packed=inline,
            artifacts=kept.artifacts,
            work_path=kept.work_path,
            command="" if outcome is Outcome.SUCCESS else shlex.join(order.launch.argv),
        )

    def _judge(self, order: SlotOrder) -> tuple[Outcome, Why, str, int, int]:
        """Outcome, why, error, exit code, signal: before results are looked at."""
        run = self._run
        code = os.waitstatus_to_exitcode(run.status) if run.status is not None else -signal.SIGKILL
        number = 0
        if code < 0:
            number, code = -code, -1
        if run.verdict is not None:
            why = Why.NONE
            if run.verdict is Outcome.CANCELLED:
                why = Why.BY_USER
            elif run.verdict is Outcome.OUT_OF_MEMORY:
                why = Why.OUT_OF_MEMORY
            error = run.error
            if run.left_behind:
                error += f"; {run.left_behind} of its processes could not be killed"
            return run.verdict, why, error, -1, int(number)
        if code == 0:
            return Outcome.SUCCESS, Why.NONE, "", 0, 0
        if (number == signal.SIGKILL or code == 128 + signal.SIGKILL) and self.oom.happened():
            error = "killed by the kernel: out of memory"
            return Outcome.OUT_OF_MEMORY, Why.OUT_OF_MEMORY, error, code, int(number)
        last_line = self._stderr.last_line() or self._stdout.last_line()
        error = explain_exit(code, int(number), order.launch.argv, last_line)
        return Outcome.FAILED, Why.SIGNAL if number else Why.EXIT_CODE, error, code, int(number)

    def _collect(
        self, collection: Collection, stdout_tail: bytes, result_path: str
    ) -> tuple[Collected, dict[str, ShardValue], str]:
        """Results, those in the shard, and what kept them from getting there."""
        collected = collection.finish(stdout_tail, result_path)
        if result_path:
            _remove(result_path)
        large: dict[str, ShardValue] = {}
        if not collected.arrays:
            return collected, large, ""
        small: dict[str, ArrayValue] = {}
        room = _INLINE_TOTAL_BYTES
        trouble = ""
        total = 0
        for name, array in collected.arrays.items():
            size_bytes = len(array.data)
            total += size_bytes
            if size_bytes <= LARGE_BYTES and size_bytes <= room:
                small[name] = array
                room -= size_bytes
                continue
            try:
                large[name] = self.shard.append((array.data,), array.dtype, array.shape)
            except OSError as problem:
                trouble = f"result {name!r} could not be written to the shard: {problem.strerror}"
        if total > _BIG_RESIDENT_BYTES:
            _forget_own_peak()
        return msgspec.structs.replace(collected, arrays=small), large, trouble

    def _pack(
        self,
        packed: PackedPair,
        outcome: Outcome,
        plan: CollectPlan,
        inline: dict[str, bytes],
        large: dict[str, ShardValue],
    ) -> str:
        """Keep the whole output where that is asked for; return what went wrong."""
        wanted = plan.recipe.keep_output == "all" or outcome is not Outcome.SUCCESS
        streams = (("@stdout", packed[0], self._stdout), ("@stderr", packed[1], self._stderr))
        try:
            for name, output, stream in streams:
                if not wanted or not stream.total_bytes:
                    continue
                data = output.inline()
                if output.problem:
                    raise OSError(errno.ENOSPC, output.problem)
                if data is not None:
                    inline[name] = data
                else:
                    large[name] = self.shard.append(output.chunks(), "bytes")
        except OSError as problem:
            return f"its output could not be kept: {problem.strerror}"
        finally:
            for _, output, _ in streams:
                output.discard()
        return ""

    def _settle(self, order: SlotOrder, plan: CollectPlan, outcome: Outcome) -> tuple[Kept, str]:
        try:
            os.chdir("/")
            kept = settle(
                order,
                plan.recipe,
                self.shard.output_path,
                succeeded=outcome is Outcome.SUCCESS,
                discard=outcome is Outcome.INTERRUPTED,
            )
        except (OSError, shutil.Error) as problem:
            return Kept(order.launch.cwd), f"its files could not be brought back: {problem}"
        return kept, ""


def _text_of(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return f"cannot start: {problem.strerror}: {problem.filename}"
    return f"cannot start: {problem}"


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        # A folder in its place: the scratch folder goes as a whole at the end.
        return


def _forget_own_peak() -> None:
    """Reset this process's peak size, which a spawned process would show as its own."""
    try:
        with open("/proc/self/clear_refs", "wb") as file:
            file.write(b"5")
    except OSError:
        return
