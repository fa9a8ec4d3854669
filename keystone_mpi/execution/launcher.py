"""The launcher: a small process beside a worker rank that forks slot processes and outlives nobody.

Rule: started before MPI_Init, in a session of its own, with every descriptor
closed but its socket; single-threaded; holds nothing of the rank's stdout. It
is a sub-reaper: what a dead slot process leaves comes here and is killed.

    rank --SlotWanted + socket--> launcher --fork--> slot process
    rank <--SlotEnded------------ launcher <--SIGCHLD-- slot process (dead) --orphans--> killed, reaped
    rank dead: socket closed --> slots end their attempts and themselves --> what is left is killed --> exit
"""

from __future__ import annotations

import gc
import math
import os
import select
import signal
import socket
import time
import traceback

import msgspec

from keystone_mpi.execution.environment import environment_before_launch, scrub
from keystone_mpi.execution.forking import LAUNCHER_NAME, SLOT_NAME, name_process
from keystone_mpi.execution.processes import become_subreaper, descendants, ignore_in_python, signal_each
from keystone_mpi.execution.slot_messages import (
    FromLauncher,
    LauncherTrouble,
    Preparation,
    RecipePrepared,
    SlotEnded,
    SlotWanted,
    ToLauncher,
)
from keystone_mpi.execution.slot_process import run_slot

SLOTS_END_S = 3.0
"""How long slot processes get to end by themselves once the rank is gone."""
_KILL_AGAIN_S = 0.02
_GIVE_UP_S = 5.0
_MESSAGE_BYTES = 1 << 16
LARGEST_ENVIRONMENT_BYTES = 180 << 10
"""What one message of the socket takes."""

# The rank decides what a signal to the whole job means; slots and launcher follow their sockets only.
_IGNORED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGALRM,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCONT,
    signal.SIGXFSZ,
)


class Launcher:
    """The launcher's loop.

    Parameters
    ----------
    control : socket.socket
        To the rank; messages keep their bounds (SOCK_SEQPACKET).
    base_env : dict of bytes to bytes
        The scrubbed environment of all solvers.
    """

    def __init__(self, control: socket.socket, base_env: dict[bytes, bytes]) -> None:
        self._control = control
        self._base_env = base_env
        self._slots: dict[int, SlotWanted] = {}
        """Slot processes by pid."""
        self._ended: list[SlotEnded] = []
        """Dead slot processes whose orphans may still be there."""
        self._orphans: set[int] = set()
        self._killing_since = 0.0
        self._hopeless: set[int] = set()
        """Orphans that SIGKILL does not end (they hang in the kernel)."""
        self._wakeup_fd, self._wakeup_write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, ignore_in_python)
        signal.set_wakeup_fd(self._wakeup_write_fd, warn_on_full_buffer=False)
        self._scratch_roots: set[str] = set()

    def serve(self) -> None:
        """Fork slot processes and look after them until the rank is gone."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wakeup_fd, select.POLLIN)
        while True:
            for fd, _ in poller.poll(None if not self._ended else _KILL_AGAIN_S * 1000):
                if fd == self._wakeup_fd:
                    os.read(self._wakeup_fd, 512)
                elif not self._take_message():
                    self._leave()
                    return
            self._reap()
            if self._ended:
                self._kill_orphans()

    def _take_message(self) -> bool:
        """Handle one message; False when the rank is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 4)
        except OSError:
            return False
        if not data:
            return False
        wanted = msgspec.msgpack.decode(data, type=ToLauncher)
        if isinstance(wanted, Preparation):
            self._prepare(wanted)
            return True
        sock = socket.socket(fileno=fds[0])
        # A received descriptor is inheritable: a solver that holds it would hide its rank's death.
        sock.set_inheritable(False)
        try:
            self._fork_slot(wanted, sock)
        except OSError as problem:
            text = f"cannot fork a slot process: {problem.strerror}"
            self._send(SlotEnded(wanted.slot, wanted.generation, error=text))
        finally:
            sock.close()
        return True

    def _prepare(self, wanted: Preparation) -> None:
        from keystone_mpi.execution.preparing import prepare_worker

        # Its children are waited for by themselves, not by `_reap`, which runs after this.
        answer = prepare_worker(wanted, self._base_env, self._rank_is_gone)
        size_bytes = sum(len(name) + len(value) for name, value in answer.env.items())
        if size_bytes > LARGEST_ENVIRONMENT_BYTES:
            error = f"the setup leaves an environment of {size_bytes >> 10} KiB; unset what no solver needs"
            answer = RecipePrepared(wanted.recipe, error)
        self._send(answer)

    def _rank_is_gone(self) -> bool:
        poller = select.poll()
        poller.register(self._control, 0)
        return bool(poller.poll(0))

    def _fork_slot(self, wanted: SlotWanted, sock: socket.socket) -> None:
        root = os.path.dirname(wanted.scratch_path)
        if root not in self._scratch_roots:
            os.mkdir(root, 0o700)
            self._scratch_roots.add(root)
        os.mkdir(wanted.scratch_path, 0o700)
        pid = os.fork()
        if pid:
            self._slots[pid] = wanted
            return
        code = 70
        try:
            os.setsid()
            name_process(SLOT_NAME)
            self._control.close()
            os.close(self._wakeup_fd)
            os.close(self._wakeup_write_fd)
            code = run_slot(sock, self._base_env, wanted.scratch_path)
        finally:
            # Never back into the launcher's loop, whatever happened.
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            wanted = self._slots.pop(pid, None)
            if wanted is not None:
                code = os.waitstatus_to_exitcode(status)
                self._ended.append(
                    SlotEnded(wanted.slot, wanted.generation, exit_code=max(code, -1), signal=max(-code, 0))
                )
                _remove_tree(wanted.scratch_path)

    def _kill_orphans(self) -> None:
        """Kill what is below the launcher and not below a living slot process; report once all is gone."""
        orphans = descendants(os.getpid(), without=self._slots.keys() | self._hopeless)
        signal_each(orphans, signal.SIGKILL)
        self._reap()
        if orphans:
            now = time.monotonic()
            if not self._orphans:
                self._killing_since = now
            self._orphans.update(orphans)
            if now - self._killing_since > _GIVE_UP_S:
                self._hopeless.update(orphans)
        else:
            for message in self._ended:
                self._send(msgspec.structs.replace(message, orphans=len(self._orphans)))
            self._ended.clear()
            self._orphans.clear()

    def _send(self, message: FromLauncher) -> None:
        try:
            self._control.send(msgspec.msgpack.encode(message))
        except OSError:
            # The rank is gone; its closed socket ends the loop next.
            return

    def _leave(self) -> None:
        """End with the rank: let the slots clean up, then kill what is left."""
        begun = time.monotonic()
        kill_at = begun + SLOTS_END_S
        give_up_at = math.inf
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid:
                    self._slots.pop(pid, None)
                    continue
            except ChildProcessError:
                break
            now = time.monotonic()
            if now >= kill_at or not self._slots:
                give_up_at = min(give_up_at, now + _GIVE_UP_S)
                signal_each(descendants(os.getpid()), signal.SIGKILL)
            if now >= give_up_at:
                break
            select.select([self._wakeup_fd], [], [], _KILL_AGAIN_S)
        for root in self._scratch_roots:
            _remove_tree(root)


def _remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def main(control_fd: int) -> int:
    """Be the launcher; `control_fd` is its end of the socket pair."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    name_process(LAUNCHER_NAME)
    become_subreaper()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN if number in _IGNORED else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    try:
        before = environment_before_launch(os.getppid())
        base_env = {
            os.fsencode(k): os.fsencode(v) for k, v in scrub(os.environ, before_launch=before).items()
        }
        # Forks share what is here now; a collection in one would copy it all. Slot processes collect
        # when they choose to: on its own it costs 3% of the rate of quick tasks.
        gc.freeze()
        gc.disable()
        Launcher(control, base_env).serve()
    except Exception:
        try:
            control.send(msgspec.msgpack.encode(LauncherTrouble(traceback.format_exc())))
        except OSError:
            return 70
        return 70
    return 0
