"""One solver process and everything that descends from it, from spawn to the proof that none is left.

Rule: single-threaded, no timer of its own when no limit is set, and `wait`
returns only when wait4 has said ECHILD: all that a slot process has below it
belongs to its present attempt, because orphans come back to it (subreaper).

    spawn --> poll [wakeup of SIGCHLD, control socket, stdout, stderr] until the solver is reaped
          deadline | memory | cancel --> TERM to all --> grace --> KILL to all, again and again
          solver gone, others left   --> TERM to all --> 1 s   --> KILL
          TERM or INT came to this process, too --> interrupted: meant for the job (job_signals)
    ECHILD --> ended
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from typing import Protocol

from keystone_mpi.core.model import Outcome
from keystone_mpi.execution.capture import OutputStream
from keystone_mpi.execution.job_signals import JobSignals
from keystone_mpi.execution.memory_watch import MemoryWatch, text_of_bytes
from keystone_mpi.execution.processes import descendants, ignore_in_python, signal_each

LEFTOVER_GRACE_S = 1.0
"""What a solver leaves behind gets this long after TERM."""
_KILL_AGAIN_S = 0.02
_GIVE_UP_S = 10.0
_LONGEST_POLL_S = 1e6

# Python and the launcher ignore some signals, and ignoring is inherited: solvers start with the defaults.
_DEFAULTED = tuple(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP})
# Slurm signals every process of a step. Its warning before the end must not kill what is to be finished.
_DEFAULTED_IN_JOB = tuple(set(_DEFAULTED) - {signal.SIGUSR1})

_TO_STDIN, _TO_STDOUT, _TO_STDERR = 0, 1, 2


class Host(Protocol):
    """The slot process around a run."""

    def on_control(self) -> None:
        """The control socket wants attention."""

    def on_time(self, now: float) -> float:
        """Do what is due; return the monotonic time of the next thing."""


class SolverRun:
    """Runs one solver at a time; made once per slot process.

    Parameters
    ----------
    host : Host
        Told of the control socket and of time.
    control_fd : int
        Descriptor of the control socket.
    stdout, stderr : OutputStream
        The slot's output pipes.
    """

    __slots__ = (
        "_actions",
        "_childless",
        "_control_fd",
        "_deadline",
        "_defaulted",
        "_give_up_at",
        "_grace_s",
        "_host",
        "_kill_at",
        "_limited",
        "_look_at",
        "_null_fd",
        "_output_actions",
        "_pid_of_slot",
        "_reaped_others",
        "_stderr",
        "_stdout",
        "_terminated",
        "_timeout_s",
        "_wake_at",
        "_wakeup_fd",
        "_watch",
        "ended_mono",
        "error",
        "job_signals",
        "left_behind",
        "max_rss_bytes",
        "pid",
        "poller",
        "status",
        "system_s",
        "user_s",
        "verdict",
    )

    def __init__(self, host: Host, control_fd: int, stdout: OutputStream, stderr: OutputStream) -> None:
        self._host = host
        self._control_fd = control_fd
        self._stdout = stdout
        self._stderr = stderr
        self._pid_of_slot = os.getpid()
        self._null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._wakeup_fd, wakeup_write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, ignore_in_python)
        signal.set_wakeup_fd(wakeup_write_fd, warn_on_full_buffer=False)
        self.job_signals = JobSignals(self._wakeup_fd)
        self._defaulted = _DEFAULTED_IN_JOB if "SLURM_JOB_ID" in os.environ else _DEFAULTED
        self.poller = select.poll()
        self.poller.register(self._wakeup_fd, select.POLLIN)
        self.poller.register(control_fd, select.POLLIN)
        self._register_pipes()
        self.pid = 0
        self.status: int | None = None
        """Wait status of the solver itself; None while it runs."""
        self.user_s = 0.0
        self.system_s = 0.0
        self.max_rss_bytes = 0
        self.ended_mono = 0.0
        self.left_behind = 0
        """Processes that survived SIGKILL for long; the slot is of no use then."""
        self._childless = True
        self._reaped_others = False
        self._grace_s = 0.0
        self._timeout_s = 0.0
        self._wake_at = math.inf
        self._forget()

    def _forget(self) -> None:
        """Forget the limits and the end of the attempt before."""
        self.verdict: Outcome | None = None
        """Why the slot ended it; None when it ended by itself."""
        self.error = ""
        self._terminated = False
        self._deadline = math.inf
        self._look_at = math.inf
        self._kill_at = math.inf
        self._give_up_at = math.inf
        self._watch: MemoryWatch | None = None
        self._limited = False
        """Something of the above has been set."""

    def _register_pipes(self) -> None:
        self.poller.register(self._stdout.read_fd, select.POLLIN)
        self.poller.register(self._stderr.read_fd, select.POLLIN)
        outputs = [
            (os.POSIX_SPAWN_DUP2, self._stdout.write_fd, _TO_STDOUT),
            (os.POSIX_SPAWN_DUP2, self._stderr.write_fd, _TO_STDERR),
        ]
        self._actions = [(os.POSIX_SPAWN_DUP2, self._null_fd, _TO_STDIN), *outputs]
        self._output_actions = outputs

    def _renew_pipes(self) -> None:
        # Something else may hold the old ones (passed on to a process that is none of ours).
        for stream in (self._stdout, self._stderr):
            self.poller.unregister(stream.read_fd)
            stream.close()
            stream.open()
        self._register_pipes()

    def spawn(self, program: str, argv: tuple[str, ...], env: dict[bytes, bytes], stdin_fd: int) -> None:
        """Start the solver in a session of its own, with a clean signal mask.

        Raises
        ------
        OSError
            The program cannot be started.
        ValueError
            An argument or a variable holds a NUL.
        """
        # A pipe outlives its attempt, and the one before may have left it non-blocking (node.js does).
        os.set_blocking(self._stdout.write_fd, True)
        os.set_blocking(self._stderr.write_fd, True)
        actions = self._actions
        if stdin_fd >= 0:
            actions = [(os.POSIX_SPAWN_DUP2, stdin_fd, _TO_STDIN), *self._output_actions]
        self.pid = os.posix_spawn(
            program,
            argv,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=self._defaulted,
        )
        self.status = None
        self.user_s = self.system_s = 0.0
        self.max_rss_bytes = 0
        self._childless = self._reaped_others = False
        if self._limited:
            self._forget()

    @property
    def running(self) -> bool:
        """Whether the solver or a descendant of it is there."""
        return not self._childless

    @property
    def quiet_success(self) -> bool:
        """Whether the solver ended by itself with exit code 0 and printed nothing."""
        return (
            self.status == 0
            and self.verdict is None
            and not self._stdout.total_bytes
            and not self._stderr.total_bytes
        )

    def limit(self, started_mono: float, timeout_s: float, grace_s: float, memory_bytes: int) -> None:
        """Set the limits of the attempt just spawned; 0: none."""
        self._grace_s = grace_s
        if timeout_s > 0:
            self._limited = True
            self._timeout_s = timeout_s
            self._deadline = started_mono + timeout_s
        if memory_bytes > 0:
            self._limited = True
            self._watch = MemoryWatch(memory_bytes, self._tree)
            self._look_at = started_mono + self._watch.first_look_s()

    def _tree(self) -> list[int]:
        return descendants(self._pid_of_slot)

    def wait(self, wake_at: float) -> None:
        """Return when the solver is reaped and no descendant is left.

        Parameters
        ----------
        wake_at : float
            Monotonic time at which the host first wants `on_time`.
        """
        self._wake_at = min(wake_at, self._deadline, self._look_at) if self._limited else wake_at
        poll = self.poller.poll
        monotonic = time.monotonic
        wakeup_fd, out_fd, err_fd = self._wakeup_fd, self._stdout.read_fd, self._stderr.read_fd
        printed = False
        job_signals = self.job_signals
        while True:
            if job_signals.is_unheeded and job_signals.heed():
                self.stop(Outcome.INTERRUPTED, job_signals.error, min(self._grace_s, LEFTOVER_GRACE_S))
            now = monotonic()
            if now >= self._wake_at:
                self._on_time(now)
                if self.left_behind:
                    self.ended_mono = monotonic()
                    break
                now = monotonic()
            wait_s = self._wake_at - now
            for fd, _ in poll(None if wait_s > _LONGEST_POLL_S else max(0, int(wait_s * 1000) + 1)):
                if fd == wakeup_fd:
                    os.read(wakeup_fd, 512)
                    self._reap()
                elif fd == out_fd:
                    printed = True
                    self._stdout.read_some()
                    if self._stdout.progress is not None:
                        self._wake_at = 0.0
                elif fd == err_fd:
                    printed = True
                    self._stderr.read_some()
                else:
                    self._host.on_control()
                    self._wake_at = 0.0
            if self._childless and self.status is not None:
                break
        if (
            self.verdict is None
            and self.status is not None
            and job_signals.came_to(self.status, self.ended_mono)
        ):
            self._limited = True
            self.verdict = Outcome.INTERRUPTED
            self.error = job_signals.error
        # The poll that saw the end also saw what had been printed before it, unless others printed, too.
        if printed or self._reaped_others:
            self._stdout.drain()
            self._stderr.drain()
        if self._terminated:
            self._renew_pipes()

    def wait_idle(self, limit_s: float | None = None) -> None:
        """Sleep until the control socket has something or the limit has passed; no wake-ups otherwise."""
        for fd, _ in self.poller.poll(None if limit_s is None else math.ceil(limit_s * 1000)):
            if fd == self._control_fd:
                self._host.on_control()
            elif fd == self._wakeup_fd:
                os.read(self._wakeup_fd, 512)
            else:
                # Nobody is left who could write; a stray writer must not fill the pipe's reader with work.
                self._renew_pipes()

    def _reap(self) -> None:
        try:
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    break
                self.user_s += usage.ru_utime
                self.system_s += usage.ru_stime
                self.max_rss_bytes = max(self.max_rss_bytes, usage.ru_maxrss * 1024)
                if pid == self.pid:
                    self.status = status
                    self.ended_mono = time.monotonic()
                else:
                    self._reaped_others = True
        except ChildProcessError:
            self._childless = True
            return
        if self.status is not None and not self._terminated:
            self._terminate(min(self._grace_s, LEFTOVER_GRACE_S))

    def stop(self, verdict: Outcome, error: str, grace_s: float | None = None) -> None:
        """Begin to end the attempt; the first verdict counts, the shortest grace too."""
        if self._childless:
            return
        self._limited = True
        if self.status is None and self.verdict is None:
            self.verdict = verdict
            self.error = error
        self._terminate(self._grace_s if grace_s is None else grace_s)

    def _terminate(self, grace_s: float) -> None:
        self._limited = True
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)
        self._wake_at = min(self._wake_at, self._kill_at)
        if not self._terminated:
            self._terminated = True
            if grace_s > 0:
                tree = self._tree()
                signal_each(tree, signal.SIGTERM)
                # A stopped process would not see its TERM.
                signal_each(tree, signal.SIGCONT)

    def _on_time(self, now: float) -> None:
        if now >= self._deadline:
            self._deadline = math.inf
            self.stop(Outcome.TIMEOUT, f"timed out after {self._timeout_s:g} s")
        if now >= self._look_at and self._watch is not None:
            over, pause_s = self._watch.look()
            self._look_at = now + pause_s
            if over:
                self._look_at = math.inf
                used, limit = map(text_of_bytes, (self._watch.used_bytes, self._watch.limit_bytes))
                self.stop(Outcome.OUT_OF_MEMORY, f"used {used} of memory, limit {limit}", 0.0)
        if now >= self._kill_at:
            self._kill_at = now + _KILL_AGAIN_S
            if self._give_up_at == math.inf:
                self._give_up_at = now + _GIVE_UP_S
            tree = self._tree()
            signal_each(tree, signal.SIGKILL)
            if now >= self._give_up_at:
                self.left_behind = len(tree)
        next_of_host = self._host.on_time(now)
        self._wake_at = min(next_of_host, self._deadline, self._look_at, self._kill_at)
