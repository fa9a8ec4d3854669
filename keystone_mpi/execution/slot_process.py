"""A slot process: runs one solver at a time, one after the other, for its worker rank.

Rule: forked by the launcher, single-threaded, asleep unless something happens;
everything below it in the process tree belongs to its present attempt; when
the rank's socket closes it ends its attempt and itself.

    orders --(environment made)--> local queue --> prepare --> spawn --> wait --> report
                                                      \\__ reports before it go out while this one runs

Short tasks never wait for the rank: the next queued order is spawned before
the reports of those before are made, in batches. After each solver the caches
are cold, so what is done between two spawns is what counts: as little as possible.
"""

from __future__ import annotations

import gc
import math
import os
import select
import shutil
import signal
import socket
import time
import traceback
from collections import deque

import msgspec

from keystone_mpi.core.model import AttemptReport, Outcome, Why
from keystone_mpi.execution.attempt_report import TAIL_BYTES, PackedPair, QuietSuccess, Reporter
from keystone_mpi.execution.capture import OutputStream, PackedOutput
from keystone_mpi.execution.processes import become_subreaper, descendants, signal_each
from keystone_mpi.execution.queued_order import Environments, QueuedOrder, cache_home
from keystone_mpi.execution.shards import ShardWriter
from keystone_mpi.execution.slot_messages import (
    STARTED_AFTER_S,
    AttemptFinished,
    AttemptProgress,
    AttemptStarted,
    CancelOrder,
    FrameChannel,
    FromSlot,
    MoreRecipes,
    OrdersReturned,
    RecallOrders,
    RecipePrepared,
    SlotOrder,
    SlotSetup,
    SlotStopped,
    SlotTrouble,
    StopSlot,
    ToSlot,
)
from keystone_mpi.execution.solver_run import SolverRun
from keystone_mpi.execution.starting import NotStartedError, Programs
from keystone_mpi.execution.workfolder import prepare
from keystone_mpi.tools.collect import STDOUT_WINDOW_BYTES, Collection, CollectPlan
from keystone_mpi.tools.jit_cache import JitCache
from keystone_mpi.tools.recipe import Recipe

ORPHAN_GRACE_S = 1.0
"""Grace of solvers whose rank is gone."""

_BATCH_REPORTS = 64
_BATCH_S = 0.020
_LOW_QUEUE = 2
"""With so few orders left the rank must hear what has ended, or the slot would soon wait for it."""
_UNSENT_LIMIT_BYTES = 16 << 20
_COLLECT_EVERY = 5000
"""Attempts between two garbage collections of a slot process."""
_MADE_AHEAD = 64
"""Orders of the queue whose environment is made when they come."""

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
    """

    __slots__ = (
        "_cache",
        "_channel",
        "_cpus",
        "_current",
        "_cwd",
        "_ending",
        "_environments",
        "_flush_at",
        "_notice_at",
        "_orders",
        "_plain_recipes",
        "_plans",
        "_programs",
        "_reporter",
        "_run",
        "_scratch",
        "_setup",
        "_shard_of",
        "_shards",
        "_since_collection",
        "_started_mono",
        "_started_wall",
        "_stderr",
        "_stdout",
        "_unsent",
        "_waits_to_write",
    )

    def __init__(
        self, channel: FrameChannel, setup: SlotSetup, base_env: dict[bytes, bytes], scratch_path: str
    ) -> None:
        self._channel = channel
        self._setup = setup
        self._environments = Environments(setup, base_env)
        self._scratch = scratch_path
        self._cache = JitCache(os.path.join(os.path.dirname(scratch_path), "cache"), scratch_path)
        self._plans = [CollectPlan(recipe) for recipe in setup.recipes]
        self._plain_recipes = [_is_plain(plan) for plan in self._plans]
        self._stdout = OutputStream(STDOUT_WINDOW_BYTES)
        self._stderr = OutputStream(TAIL_BYTES)
        self._run = SolverRun(self, channel.fileno(), self._stdout, self._stderr)
        self._shards = [self._make_shard(setup.output_path, setup.epoch)]
        """One per results file."""
        self._shard_of = [0] * len(setup.recipes)
        """Recipe -> position in `_shards`."""
        self._reporter = Reporter(scratch_path, self._shards[0], self._stdout, self._stderr, self._run)
        self._programs = Programs(os.defpath.encode())
        self._orders: deque[QueuedOrder] = deque()
        self._current: SlotOrder | None = None
        self._unsent: list[FromSlot | QuietSuccess] = []
        self._flush_at = math.inf
        self._started_wall = 0.0
        self._started_mono = 0.0
        self._notice_at = math.inf
        """When the running attempt is old enough for `AttemptStarted`."""
        self._cwd = ""  # unknown: where the rank stood may be gone by now
        self._cpus: tuple[int, ...] = ()
        self._waits_to_write = False
        self._ending = False
        self._since_collection = 0

    # -- the loop

    def serve(self, waiting: list[ToSlot]) -> None:
        """Run orders until told to stop or the rank is gone.

        Parameters
        ----------
        waiting : list of messages
            What the rank sent together with the setup.
        """
        for message in waiting:
            self._handle(message)
        job_signals = self._run.job_signals
        while not self._ending:
            held_s: float | None = None
            if self._orders and self._channel.unsent_bytes < _UNSENT_LIMIT_BYTES:
                held_s = job_signals.ask_to_start()
                if not held_s:
                    self._attempt(self._orders.popleft())
                    continue
            if self._unsent:
                self._flush()
            if not self._ending:
                self._run.wait_idle(held_s)

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
            self._reporter.oom.note()
            self._unsent.append(
                AttemptStarted(self._current.index, self._current.attempt, self._started_wall)
            )
            self._flush_at = now
        fraction, again = self._stdout.take_progress(now)
        if fraction is not None and self._current is not None:
            self._unsent.append(AttemptProgress(*self._current.key, fraction))
            self._flush_at = now
        if now >= self._flush_at:
            self._flush()
        return min(self._notice_at, self._flush_at, again)

    def _handle(self, message: ToSlot) -> None:
        match message:
            case SlotOrder():
                message, argv = self._environments.command_of(message, self._plans[message.recipe].recipe)
                env = self._environment(message) if len(self._orders) < _MADE_AHEAD else None
                self._orders.append(QueuedOrder(message, env, self._is_plain_order(message), argv))
            case RecipePrepared():
                self._environments.prepared(message)
            case CancelOrder():
                self._cancel(message)
            case RecallOrders():
                wanted = None if message.keys is None else set(message.keys)
                back = [item for item in self._orders if wanted is None or item.order.key in wanted]
                for item in back:
                    self._orders.remove(item)
                self._tell(OrdersReturned([item.order.key for item in back]))
            case StopSlot():
                self._end(message.grace_s)
            case MoreRecipes():
                self._shard_of += [len(self._shards)] * len(message.recipes)
                self._shards.append(self._make_shard(message.output_path, message.epoch))
                plans = [CollectPlan(recipe) for recipe in message.recipes]
                self._plans += plans
                self._plain_recipes += [_is_plain(plan) for plan in plans]
            case SlotSetup():
                raise ValueError("a slot process is set up once")
            case _:
                raise ValueError(f"unknown message {message!r}")

    def _cancel(self, message: CancelOrder) -> None:
        key = (message.index, message.attempt)
        outcome = Outcome.INTERRUPTED if message.interrupted else Outcome.CANCELLED
        current = self._current
        if current is not None and current.key == key:
            self._run.stop(outcome, outcome.name.lower())
            return
        for item in self._orders:
            if item.order.key == key:
                self._orders.remove(item)
                why = Why.NONE if message.interrupted else Why.BY_USER
                error = f"{outcome.name.lower()} before it started"
                self._tell(AttemptFinished(AttemptReport(*key, outcome, why=why, error=error)))
                return

    def _end(self, grace_s: float) -> None:
        self._ending = True
        self._orders.clear()
        if self._current is not None:
            recipe = self._plans[self._current.recipe].recipe
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
        messages: list[FromSlot] = [item for item in self._unsent if not isinstance(item, QuietSuccess)]
        quiet = [item for item in self._unsent if isinstance(item, QuietSuccess)]
        self._unsent.clear()
        if quiet:
            messages += map(AttemptFinished, self._reporter.quiet_reports(quiet, self._plans, self._shard))
        for shard in self._shards:
            shard.sync()
        channel = self._channel
        channel.send(_encode(messages))
        if channel.unsent_bytes and not self._waits_to_write and not channel.closed:
            self._waits_to_write = True
            self._run.poller.modify(channel.fileno(), select.POLLIN | select.POLLOUT)

    # -- one attempt

    def _attempt(self, item: QueuedOrder) -> None:
        self._since_collection += 1
        if self._since_collection >= _COLLECT_EVERY:
            self._since_collection = 0
            gc.collect()
        order = item.order
        plan = self._plans[order.recipe]
        self._current = order
        self._reporter.shard = self._shard(order.recipe)
        try:
            collection, packed = self._start(item, plan)
        except (OSError, ValueError) as problem:
            self._current = None
            self._cwd = ""
            self._keep(AttemptFinished(self._reporter.not_started(order, plan, problem, time.time())))
            return
        run = self._run
        started_mono = self._started_mono
        run.limit(started_mono, order.timeout_s, plan.recipe.grace_s, order.memory_bytes)
        unsent = self._unsent
        if unsent and (
            started_mono >= self._flush_at or len(self._orders) <= _LOW_QUEUE or len(unsent) >= _BATCH_REPORTS
        ):
            self._flush()
        self._notice_at = notice_at = started_mono + STARTED_AFTER_S
        run.wait(notice_at if notice_at < self._flush_at else self._flush_at)
        self._notice_at = math.inf
        self._current = None
        duration_s = run.ended_mono - started_mono
        if item.plain and run.quiet_success:
            self._keep(
                QuietSuccess(
                    order,
                    self._started_wall,
                    duration_s,
                    run.user_s,
                    run.system_s,
                    run.max_rss_bytes,
                    self._cpus,
                )
            )
            return
        report = self._reporter.report(
            order, plan, collection, packed, self._started_wall, duration_s, self._cpus
        )
        if plan.recipe.workdir != "none":
            self._cwd = ""
        if plan.recipe.jit_cache:
            self._cache.end(report.outcome is Outcome.SUCCESS)
        self._keep(AttemptFinished(report))
        if run.left_behind:
            self._ending = True

    def _keep(self, item: FromSlot | QuietSuccess) -> None:
        self._unsent.append(item)
        if self._flush_at == math.inf:
            self._flush_at = time.monotonic() + _BATCH_S

    def _shard(self, recipe: int) -> ShardWriter:
        return self._shards[self._shard_of[recipe]]

    def _make_shard(self, output_path: str, epoch: int) -> ShardWriter:
        return ShardWriter(output_path, f"e{epoch}-w{self._setup.worker}-s{self._setup.slot}.bin")

    def _environment(self, order: SlotOrder) -> dict[bytes, bytes]:
        return self._environments.make(order, self._reporter.result_path(order))

    def _is_plain_order(self, order: SlotOrder) -> bool:
        launch = order.launch
        return self._plain_recipes[order.recipe] and not (
            launch.writes or launch.copies or launch.links or launch.stdin
        )

    def _start(self, item: QueuedOrder, plan: CollectPlan) -> tuple[Collection | None, PackedPair | None]:
        order = item.order
        launch = order.launch
        cpus = order.cpus or self._setup.cpus
        if cpus and cpus != self._cpus:
            self._pin(cpus)
        env = item.env if item.env is not None else self._environment(order)
        collection: Collection | None = None
        packed: PackedPair | None = None
        stdin_fd = -1
        if item.plain:
            self._stdout.begin(None, None)
            self._stderr.begin(None, None)
        else:
            recipe = plan.recipe
            if recipe.jit_cache and "XDG_CACHE_HOME" not in launch.env:
                env[b"XDG_CACHE_HOME"] = os.fsencode(self._cache.begin(order.attempt, cache_home(env)))
            if recipe.workdir != "none" or launch.writes or launch.copies or launch.links:
                prepare(order, recipe)
            if plan.has_rules:
                collection = plan.start(launch.collect_files, launch.cwd)
            if recipe.keep_output != "tail":
                packed = PackedOutput(self._scratch), PackedOutput(self._scratch)
            self._begin_capture(plan, collection, packed)
        if launch.cwd != self._cwd:
            self._enter(launch.cwd)
        argv = item.argv
        program = self._programs.find(argv[0], env.get(b"PATH", b""))
        if launch.stdin:
            stdin_fd = os.open(launch.stdin, os.O_RDONLY | os.O_CLOEXEC)
        self._started_wall = time.time()
        self._started_mono = time.monotonic()
        try:
            self._run.spawn(program, argv, env, stdin_fd)
        except (OSError, ValueError) as problem:
            raise NotStartedError(self._programs.explain(argv[0], program, problem)) from None
        finally:
            if stdin_fd >= 0:
                os.close(stdin_fd)
        return collection, packed

    def _begin_capture(
        self, plan: CollectPlan, collection: Collection | None, packed: PackedPair | None
    ) -> None:
        watch_out = collection.feed_stdout if collection is not None and plan.watches_stdout else None
        watch_err = collection.feed_stderr if collection is not None and plan.watches_stderr else None
        self._stdout.begin(watch_out, packed[0] if packed is not None else None)
        self._stderr.begin(watch_err, packed[1] if packed is not None else None)

    def _pin(self, cpus: tuple[int, ...]) -> None:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:
            # The cgroup has lost one of them since: better unpinned than not at all.
            cpus = ()
        self._cpus = cpus

    def _enter(self, folder: str) -> None:
        try:
            os.chdir(folder)
        except OSError as problem:
            raise NotStartedError(f"cannot enter the folder {folder}: {problem.strerror}") from None
        self._cwd = folder


def _is_plain(plan: CollectPlan) -> bool:
    recipe: Recipe = plan.recipe
    return (
        recipe.workdir == "none"
        and recipe.keep_output == "tail"
        and not plan.has_rules
        and not recipe.jit_cache
    )


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
        setup, waiting = _receive_setup(channel)
        if setup is None:
            return 0
        slot = SlotProcess(channel, setup, base_env, scratch_path)
        slot.serve(waiting)
        return 0 if slot.finish() == 0 else 1
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


def _receive_setup(channel: FrameChannel) -> tuple[SlotSetup | None, list[ToSlot]]:
    while not channel.closed:
        select.select([channel.fileno()], [], [])
        messages: list[ToSlot] = [m for frame in channel.receive() for m in _decode(frame)]
        if messages:
            setup, *waiting = messages
            if not isinstance(setup, SlotSetup):
                raise ValueError(f"expected a setup, got {setup!r}")
            return setup, waiting
    return None, []
