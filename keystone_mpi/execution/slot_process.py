"""A slot process: runs one solver at a time, one after the other, for its worker rank.

Rule: forked by the launcher, single-threaded, asleep unless something happens;
everything below it in the process tree belongs to its present attempt; when
the rank's socket closes it ends its attempt and itself.

    orders --> local queue --> prepare --> spawn --> wait --> collect --> settle --> report
                                             \\__ the reports before go out while this one runs

Short tasks never wait for the rank: the next queued order is spawned before
the report of the one before is encoded, and reports travel in batches.
"""

from __future__ import annotations

import errno
import math
import os
import select
import shlex
import shutil
import signal
import socket
import time
import traceback
from collections import deque

import msgspec

from keystone_mpi.core.model import AttemptReport, Outcome, ShardValue, Why
from keystone_mpi.execution.capture import OutputStream, PackedOutput
from keystone_mpi.execution.memory_watch import OomKills
from keystone_mpi.execution.processes import RUN_TAG, WORKER_TAG, become_subreaper, descendants, signal_each
from keystone_mpi.execution.shards import LARGE_BYTES, ShardWriter
from keystone_mpi.execution.slot_messages import (
    STARTED_AFTER_S,
    AttemptFinished,
    AttemptStarted,
    CancelOrder,
    FrameChannel,
    FromSlot,
    OrdersReturned,
    RecallOrders,
    SlotOrder,
    SlotSetup,
    SlotStopped,
    SlotTrouble,
    StopSlot,
    ToSlot,
)
from keystone_mpi.execution.solver_run import SolverRun
from keystone_mpi.execution.starting import NotStarted, Programs, explain_exit
from keystone_mpi.execution.workfolder import NOTHING_KEPT, Kept, prepare, settle
from keystone_mpi.tools.collect import NOTHING, STDOUT_WINDOW_BYTES, Collected, Collection, CollectPlan

TAIL_BYTES = 1 << 16
"""Output tail in the report of an attempt that did not succeed."""
TAIL_OF_SUCCESS_BYTES = 1 << 13
ORPHAN_GRACE_S = 1.0
"""Grace of solvers whose rank is gone."""

_BATCH_REPORTS = 16
_BATCH_S = 0.005
_INLINE_TOTAL_BYTES = 4 << 20
"""All inline arrays of one report together."""
_UNSENT_LIMIT_BYTES = 16 << 20
_BIG_RESIDENT_BYTES = 64 << 20

_decode = msgspec.msgpack.Decoder(list[ToSlot]).decode
_encode = msgspec.msgpack.Encoder().encode


class SlotProcess:
    """The state of one slot process.

    Parameters
    ----------
    channel : FrameChannel
        To the worker rank.
    setup : SlotSetup
        What all orders have in common.
    base_env : dict of bytes to bytes
        The scrubbed environment.
    scratch_path : str
        Private folder on the node's own disk, made by the launcher.
    waiting : list of messages
        What the rank sent together with the setup.
    """

    def __init__(
        self,
        channel: FrameChannel,
        setup: SlotSetup,
        base_env: dict[bytes, bytes],
        scratch_path: str,
        waiting: list[ToSlot],
    ) -> None:
        self._channel = channel
        self._setup = setup
        self._env = dict(base_env)
        self._env[RUN_TAG.encode()] = setup.run_id.encode()
        self._env[WORKER_TAG.encode()] = str(setup.worker).encode()
        self._scratch = scratch_path
        self._plans = [CollectPlan(recipe) for recipe in setup.recipes]
        self._stdout = OutputStream(STDOUT_WINDOW_BYTES)
        self._stderr = OutputStream(TAIL_BYTES)
        self._run = SolverRun(self, channel.fileno(), self._stdout, self._stderr)
        self._oom = OomKills()
        self._programs = Programs(self._env.get(b"PATH", os.defpath.encode()))
        self._shard = ShardWriter(
            setup.output_path, f"e{setup.epoch}-w{setup.worker}-s{setup.slot}.bin"
        )
        self._orders: deque[SlotOrder] = deque()
        self._current: SlotOrder | None = None
        self._unsent: list[FromSlot] = []
        self._flush_at = math.inf
        self._started_wall = 0.0
        self._started_mono = 0.0
        self._notice_at = math.inf
        """When the running attempt is old enough for `AttemptStarted`."""
        self._cwd = os.getcwd()
        self._cpus: tuple[int, ...] = ()
        self._waits_to_write = False
        self._ending = False
        for message in waiting:
            self._handle(message)

    # -- the loop

    def serve(self) -> None:
        """Run orders until told to stop or the rank is gone."""
        while not self._ending:
            if self._orders and self._channel.unsent_bytes < _UNSENT_LIMIT_BYTES:
                self._attempt(self._orders.popleft())
            else:
                if self._unsent:
                    self._flush()
                if not self._ending:
                    self._run.wait_idle()

    def on_control(self) -> None:
        """Take what the rank sent, and send what it can take."""
        channel = self._channel
        if self._waits_to_write and channel.flush():
            self._waits_to_write = False
            self._run.poller.modify(channel.fileno(), select.POLLIN)
        for frame in channel.receive():
            for message in _decode(frame):
                self._handle(message)
        if channel.closed:
            self._run.poller.unregister(channel.fileno())
            self._end(ORPHAN_GRACE_S)

    def on_time(self, now: float) -> float:
        """Send what is due."""
        if now >= self._notice_at and self._current is not None:
            self._notice_at = math.inf
            self._oom.note()
            self._unsent.append(
                AttemptStarted(self._current.index, self._current.attempt, self._started_wall)
            )
            self._flush_at = now
        if now >= self._flush_at:
            self._flush()
        return min(self._notice_at, self._flush_at)

    def _handle(self, message: ToSlot) -> None:
        match message:
            case SlotOrder():
                self._orders.append(message)
            case CancelOrder():
                self._cancel(message)
            case RecallOrders():
                wanted = None if message.keys is None else set(message.keys)
                back = [order for order in self._orders if wanted is None or order.key in wanted]
                for order in back:
                    self._orders.remove(order)
                self._tell(OrdersReturned([order.key for order in back]))
            case StopSlot():
                self._end(message.grace_s)
            case SlotSetup():
                raise ValueError("a slot process is set up once")
            case _:
                raise ValueError(f"unknown message {message!r}")

    def _cancel(self, message: CancelOrder) -> None:
        key = (message.index, message.attempt)
        outcome = Outcome.INTERRUPTED if message.interrupted else Outcome.CANCELLED
        current = self._current
        if current is not None and current.key == key:
            error = "interrupted" if message.interrupted else "cancelled"
            self._run.stop(outcome, error)
            return
        for order in self._orders:
            if order.key == key:
                self._orders.remove(order)
                why = Why.NONE if message.interrupted else Why.BY_USER
                report = AttemptReport(*key, outcome, why=why, error=f"{outcome.name.lower()} before it started")
                self._tell(AttemptFinished(report))
                return

    def _end(self, grace_s: float) -> None:
        self._ending = True
        self._orders.clear()
        if self._current is not None:
            recipe = self._setup.recipes[self._current.recipe]
            self._run.stop(Outcome.INTERRUPTED, "the run stopped", min(grace_s, recipe.grace_s))

    def finish(self) -> int:
        """Say goodbye; return how many processes could not be killed."""
        left = self._run.left_behind
        self._tell(SlotStopped(left))
        self._flush()
        deadline = time.monotonic() + 5.0
        while not self._channel.flush() and time.monotonic() < deadline:
            select.select([], [self._channel.fileno()], [], 0.5)
        return left

    # -- sending

    def _tell(self, message: FromSlot) -> None:
        self._unsent.append(message)
        self._flush_at = 0.0

    def _flush(self) -> None:
        self._flush_at = math.inf
        if not self._unsent:
            return
        self._shard.sync()
        payload = _encode(self._unsent)
        self._unsent.clear()
        channel = self._channel
        channel.send(payload)
        if channel.unsent_bytes and not self._waits_to_write and not channel.closed:
            self._waits_to_write = True
            self._run.poller.modify(channel.fileno(), select.POLLIN | select.POLLOUT)

    # -- one attempt

    def _attempt(self, order: SlotOrder) -> None:
        plan = self._plans[order.recipe]
        self._current = order
        try:
            collection, packed = self._start(order, plan)
        except (OSError, ValueError) as problem:
            self._current = None
            self._keep_report(self._not_started(order, plan, problem))
            return
        run = self._run
        started_mono = self._started_mono
        run.limit(started_mono, order.timeout_s, plan.recipe.grace_s, order.memory_bytes)
        self._notice_at = started_mono + STARTED_AFTER_S
        if started_mono >= self._flush_at or len(self._unsent) >= _BATCH_REPORTS:
            self._flush()
        run.wait(min(self._notice_at, self._flush_at))
        self._notice_at = math.inf
        self._current = None
        self._keep_report(self._report(order, plan, collection, packed, run.ended_mono - started_mono))
        if run.left_behind:
            self._ending = True

    def _start(
        self, order: SlotOrder, plan: CollectPlan
    ) -> tuple[Collection | None, tuple[PackedOutput, PackedOutput] | None]:
        launch = order.launch
        recipe = plan.recipe
        if recipe.workdir != "none" or launch.writes or launch.copies or launch.links:
            prepare(order, recipe)
        if launch.cwd != self._cwd:
            self._enter(launch.cwd)
        cpus = order.cpus or self._setup.cpus
        if cpus and cpus != self._cpus:
            os.sched_setaffinity(0, cpus)
            self._cpus = cpus
        env = self._env.copy()
        for name, value in launch.env.items():
            env[name.encode("utf-8", "surrogateescape")] = value.encode("utf-8", "surrogateescape")
        path = env.get(b"PATH", b"")
        result_path = f"{self._scratch}/{order.index}-{order.attempt}.json"
        env[b"KEYSTONE_RESULT"] = result_path.encode("utf-8", "surrogateescape")
        program = self._programs.find(launch.argv[0], path)
        collection = plan.start(launch.collect_files) if plan.has_rules else None
        packed = None
        if recipe.keep_output != "tail":
            packed = PackedOutput(self._scratch), PackedOutput(self._scratch)
        self._stdout.begin(
            collection.feed_stdout if collection is not None and plan.watches_stdout else None,
            packed[0] if packed is not None else None,
        )
        self._stderr.begin(
            collection.feed_stderr if collection is not None and plan.watches_stderr else None,
            packed[1] if packed is not None else None,
        )
        stdin_fd = -1
        if launch.stdin:
            stdin_fd = os.open(launch.stdin, os.O_RDONLY | os.O_CLOEXEC)
        self._started_wall = time.time()
        self._started_mono = time.monotonic()
        try:
            self._run.spawn(program, launch.argv, env, stdin_fd)
        except (OSError, ValueError) as problem:
            raise NotStarted(self._programs.explain(launch.argv[0], program, problem)) from None
        finally:
            if stdin_fd >= 0:
                os.close(stdin_fd)
        return collection, packed

    def _enter(self, folder: str) -> None:
        try:
            os.chdir(folder)
        except OSError as problem:
            self._cwd = ""
            raise NotStarted(f"cannot enter the folder {folder}: {problem.strerror}") from None
        self._cwd = folder

    def _keep_report(self, report: AttemptReport) -> None:
        self._unsent.append(AttemptFinished(report))
        if self._flush_at == math.inf:
            self._flush_at = time.monotonic() + _BATCH_S

    # -- what became of it

    def _not_started(self, order: SlotOrder, plan: CollectPlan, problem: Exception) -> AttemptReport:
        now = time.time()
        kept = NOTHING_KEPT
        if plan.recipe.workdir != "none" and os.path.isdir(order.launch.cwd):
            kept, _ = self._settle(order, plan, Outcome.FAILED)
        return AttemptReport(
            order.index,
            order.attempt,
            Outcome.FAILED,
            started=now,
            finished=now,
            duration_s=0.0,
            why=Why.NOT_STARTED,
            cpus=self._cpus,
            error=problem.text if isinstance(problem, NotStarted) else _text_of(problem),
            work_path=kept.work_path,
            command=shlex.join(order.launch.argv),
        )

    def _report(
        self,
        order: SlotOrder,
        plan: CollectPlan,
        collection: Collection | None,
        packed: tuple[PackedOutput, PackedOutput] | None,
        duration_s: float,
    ) -> AttemptReport:
        run = self._run
        outcome, why, error, code, number = self._judge(order)
        result_path = self._result_path(order)
        collected = NOTHING
        if outcome is Outcome.SUCCESS and (collection is not None or result_path or self._stdout.total_bytes):
            if collection is None:
                collection = plan.start({})
            tail = self._stdout.tail(STDOUT_WINDOW_BYTES)
            collected = collection.finish(tail, result_path)
            if not collected.ok:
                outcome, why, error = Outcome.FAILED, collected.why, collected.error
        if result_path:
            _remove(result_path)
        large: dict[str, ShardValue] = {}
        arrays = collected.arrays
        inline: dict[str, bytes] = {}
        try:
            if arrays:
                collected, large = self._without_large(collected)
                arrays = collected.arrays
            if packed is not None:
                self._pack(packed, outcome, plan, inline, large)
        except OSError as problem:
            outcome, why = Outcome.FAILED, Why.RESULTS
            error = f"its results could not be written to the shard: {problem.strerror}"
        kept = NOTHING_KEPT
        if plan.recipe.workdir != "none":
            kept, trouble = self._settle(order, plan, outcome)
            if trouble and outcome is Outcome.SUCCESS:
                outcome, why, error = Outcome.FAILED, Why.RESULTS, trouble
        limit = TAIL_OF_SUCCESS_BYTES if outcome is Outcome.SUCCESS else TAIL_BYTES
        if run.max_rss_bytes > _BIG_RESIDENT_BYTES or self._stdout.total_bytes > _BIG_RESIDENT_BYTES:
            _forget_own_peak()
        return AttemptReport(
            order.index,
            order.attempt,
            outcome,
            self._started_wall,
            self._started_wall + duration_s,
            duration_s,
            code,
            number,
            why,
            run.user_s,
            run.system_s,
            run.max_rss_bytes,
            self._cpus,
            self._stdout.tail_text(limit),
            self._stderr.tail_text(limit),
            self._stdout.total_bytes,
            self._stderr.total_bytes,
            error,
            collected.scalars,
            arrays,
            large,
            inline,
            kept.artifacts,
            kept.work_path,
            "" if outcome is Outcome.SUCCESS else shlex.join(order.launch.argv),
        )

    def _judge(self, order: SlotOrder) -> tuple[Outcome, Why, str, int, int]:
        """Outcome, why, error, exit code, signal: before results are looked at."""
        run = self._run
        code = os.waitstatus_to_exitcode(run.status) if run.status is not None else -1
        number = 0
        if code < 0:
            number, code = (-code if run.status is not None else signal.SIGKILL), -1
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
        if (number == signal.SIGKILL or code == 128 + signal.SIGKILL) and self._oom.happened():
            error = "killed by the kernel: out of memory"
            return Outcome.OUT_OF_MEMORY, Why.OUT_OF_MEMORY, error, code, int(number)
        last_line = self._stderr.last_line() or self._stdout.last_line()
        error = explain_exit(code, int(number), order.launch.argv, last_line)
        return Outcome.FAILED, Why.SIGNAL if number else Why.EXIT_CODE, error, code, int(number)

    def _result_path(self, order: SlotOrder) -> str:
        """Find what the solver wrote for KEYSTONE_RESULT (numpy appends .npz to a name without it)."""
        stem = f"{self._scratch}/{order.index}-{order.attempt}"
        for path in (stem + ".json", stem + ".npz", stem + ".json.npz"):
            if os.access(path, os.F_OK):
                return path
        return ""

    def _without_large(self, collected: Collected) -> tuple[Collected, dict[str, ShardValue]]:
        small = dict(collected.arrays)
        large: dict[str, ShardValue] = {}
        room = _INLINE_TOTAL_BYTES
        for name, array in collected.arrays.items():
            size_bytes = len(array.data)
            if size_bytes > LARGE_BYTES or size_bytes > room:
                large[name] = self._shard.append((array.data,), array.dtype, array.shape)
                del small[name]
            else:
                room -= size_bytes
        return msgspec.structs.replace(collected, arrays=small), large

    def _pack(
        self,
        packed: tuple[PackedOutput, PackedOutput],
        outcome: Outcome,
        plan: CollectPlan,
        inline: dict[str, bytes],
        large: dict[str, ShardValue],
    ) -> None:
        wanted = plan.recipe.keep_output == "all" or outcome is not Outcome.SUCCESS
        streams = (("@stdout", packed[0], self._stdout), ("@stderr", packed[1], self._stderr))
        try:
            for name, output, stream in streams:
                if not wanted or not stream.total_bytes:
                    continue
                if output.problem:
                    raise OSError(errno.ENOSPC, output.problem)
                data = output.inline()
                if data is not None:
                    inline[name] = data
                else:
                    large[name] = self._shard.append(output.chunks(), "bytes")
        finally:
            for _, output, _ in streams:
                output.discard()

    def _settle(self, order: SlotOrder, plan: CollectPlan, outcome: Outcome) -> tuple[Kept, str]:
        self._cwd = ""
        os.chdir("/")
        try:
            kept = settle(
                order,
                plan.recipe,
                self._setup.output_path,
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


def run_slot(sock: socket.socket, base_env: dict[bytes, bytes], scratch_path: str) -> int:
    """Be a slot process, in a fresh fork of the launcher; return its exit code.

    Parameters
    ----------
    sock : socket.socket
        One end of the pair that the rank made.
    base_env : dict of bytes to bytes
        The scrubbed environment.
    scratch_path : str
        Private folder of this slot process, made by the launcher; removed here.
    """
    channel = FrameChannel(sock)
    launcher_pid = os.getppid()
    try:
        become_subreaper()
        slot = _set_up(channel, base_env, scratch_path)
        if slot is None:
            return 0
        slot.serve()
        left = slot.finish()
        return 0 if left == 0 else 1
    except Exception:
        channel.send(_encode([SlotTrouble(traceback.format_exc())]))
        channel.flush()
        signal_each(descendants(os.getpid()), signal.SIGKILL)
        return 70
    finally:
        shutil.rmtree(scratch_path, ignore_errors=True)
        if os.getppid() != launcher_pid:
            # The launcher is dead: the last slot process takes its folder away.
            try:
                os.rmdir(os.path.dirname(scratch_path))
            except OSError:
                pass


def _set_up(channel: FrameChannel, base_env: dict[bytes, bytes], scratch_path: str) -> SlotProcess | None:
    while not channel.closed:
        select.select([channel.fileno()], [], [])
        messages: list[ToSlot] = [m for frame in channel.receive() for m in _decode(frame)]
        if messages:
            setup, *waiting = messages
            if not isinstance(setup, SlotSetup):
                raise ValueError(f"expected a setup, got {setup!r}")
            return SlotProcess(channel, setup, base_env, scratch_path, waiting)
    return None
