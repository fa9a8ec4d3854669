"""The rank's side of its launcher and slot processes.

Rule: single-threaded and never blocking in `submit` and `read_events`; one
descriptor (an epoll) tells the worker loop that something happened. Every order
that was submitted comes back exactly once: in `AttemptFinished` or in
`OrdersReturned`, whoever is killed.

    start()  configure()  submit(slot, orders)  cancel()  recall()  -- read_events() --  close()

    slot process dead     --> SlotLost + its running attempt WORKER_LOST + the rest returned
    launcher dead         --> slots told to end, sweep by tag, another launcher, LauncherRestarted,
                              and for every slot as above
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from keystone_mpi.core.errors import ClusterError, InternalError
from keystone_mpi.execution import slot_messages
from keystone_mpi.execution.forking import ForkedProcess
from keystone_mpi.execution.launcher_command import fork_launcher, start_launcher
from keystone_mpi.execution.preparations import Preparations
from keystone_mpi.execution.processes import sweep_by_tag
from keystone_mpi.execution.scratch import new_scratch_root, remove_stale_roots
from keystone_mpi.execution.slot_events import (
    AttemptFinished,
    AttemptProgress,
    AttemptStarted,
    LauncherRestarted,
    OrdersReturned,
    RecipePrepared,
    SlotEvent,
    SlotLost,
    last_line,
    worker_lost,
)
from keystone_mpi.execution.slot_messages import (
    CancelOrder,
    FrameChannel,
    FromLauncher,
    FromSlot,
    LauncherTrouble,
    MoreRecipes,
    Preparation,
    RecallOrders,
    SlotEnded,
    SlotOrder,
    SlotSetup,
    SlotStopped,
    SlotTrouble,
    SlotWanted,
    StopSlot,
    ToSlot,
)
from keystone_mpi.execution.slot_state import SlotState
from keystone_mpi.tools.recipe import Recipe

__all__ = [
    "AttemptFinished",
    "AttemptProgress",
    "AttemptStarted",
    "LauncherClient",
    "LauncherRestarted",
    "OrdersReturned",
    "RecipePrepared",
    "SlotEvent",
    "SlotLost",
]

_encode = msgspec.msgpack.Encoder().encode
_decode_slot = msgspec.msgpack.Decoder(list[FromSlot]).decode
_decode_launcher = msgspec.msgpack.Decoder(FromLauncher).decode

_SOCKET_BUFFER_BYTES = 1 << 20
_RESTARTS_WINDOW_S = 10.0
_RESTARTS_LIMIT = 10


class LauncherClient:
    """Starts and speaks to this rank's launcher; the order of calls is in the module's docstring."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._control: socket.socket | None = None
        self._epoll = select.epoll()
        self._setup: SlotSetup | None = None
        self._more: list[MoreRecipes] = []
        self._preparations = Preparations()
        self._tags: set[str] = set()
        """Run ids that this worker's solvers carry."""
        self._slots: dict[int, SlotState] = {}
        self._slot_of_fd: dict[int, int] = {}
        self._generation = 0
        self._events: list[SlotEvent] = []
        self._scratch_root = ""
        self._old_scratch_roots: list[str] = []
        self._restarts: list[float] = []
        self._trouble = ""
        self._closing = False
        self.left_behind = 0
        """Processes that slot processes could not kill."""

    # -- start and end

    def start(self, *, fork: bool = False) -> None:
        """Start the launcher and return at once; call it before MPI_Init.

        Parameters
        ----------
        fork : bool
            This process has done nothing yet, see `fork_apart`: it need not start another Python.

        Raises
        ------
        ClusterError
            The process cannot be started.
        """
        if self._process is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # A started one is in UTF-8 mode, whatever the locale: words reach solvers as they were written.
            may_fork = fork and sys.getfilesystemencoding() == "utf-8"
            self._process = fork_launcher(theirs) if may_fork else start_launcher(theirs)
        except OSError as problem:
            ours.close()
            raise ClusterError(
                f"the launcher process cannot be started ({sys.executable}): {problem.strerror}; "
                "look at the limits on processes and memory (ulimit -u, ulimit -v)"
            ) from problem
        finally:
            theirs.close()
        self._control = ours
        remove_stale_roots()
        self._scratch_root = new_scratch_root()
        self._epoll.register(ours.fileno(), select.EPOLLIN)

    @property
    def scratch_path(self) -> str:
        """Folder on the node's own disk that this client's slot processes use."""
        return self._scratch_root

    @property
    def launcher_pid(self) -> int:
        """Pid of the launcher, 0 when there is none."""
        return self._process.pid if self._process is not None else 0

    def configure(
        self,
        *,
        recipes: Sequence[Recipe],
        run_id: str,
        epoch: int,
        worker: int,
        output_path: str,
        cpus: Sequence[int] = (),
    ) -> None:
        """Say what all orders have in common; once, before the first `submit`.

        Parameters
        ----------
        recipes : sequence of Recipe
            What `SlotOrder.recipe` points into.
        run_id, epoch, worker
            Identity of the run and of this worker; solvers carry them in their environment.
        output_path : str
            Absolute path of the HDF5 file.
        cpus : sequence of int
            Logical cpus for orders that name none; empty: the launcher's affinity.
        """
        if self._setup is not None:
            raise InternalError("LauncherClient.configure was called twice")
        self._setup = SlotSetup(
            slot=0,
            run_id=run_id,
            epoch=epoch,
            worker=worker,
            output_path=output_path,
            recipes=list(recipes),
            cpus=tuple(cpus),
        )
        self._tags.add(run_id)

    def add_recipes(self, recipes: Sequence[Recipe], *, run_id: str, epoch: int, output_path: str) -> None:
        """Say what further orders have in common, whose results are for another file."""
        more = MoreRecipes(list(recipes), output_path, epoch)
        self._more.append(more)
        self._tags.add(run_id)
        self._tell_all(more)

    def prepare(self, wanted: Preparation) -> None:
        """Have a recipe's setup run, once; answered by `RecipePrepared`, and no order of it before."""
        self._preparations.ask(wanted, self._control)

    def _tell_all(self, message: ToSlot) -> None:
        for state in self._slots.values():
            if not state.channel.closed:
                self._send(state, [message])

    def close(self, grace_s: float = 0.0) -> int:
        """Kill what runs, end slot processes and launcher.

        Reports that come in meanwhile are kept for `read_events`.

        Parameters
        ----------
        grace_s : float
            Between SIGTERM and SIGKILL of running solvers; their recipe's own grace if that is shorter.

        Returns
        -------
        int
            Processes left behind; 0 unless something is very wrong.
        """
        self._closing = True
        for slot in self._slots.values():
            self._send(slot, [StopSlot(grace_s)])
        deadline = time.monotonic() + grace_s + 15.0
        while self._slots and time.monotonic() < deadline:
            self._poll(max(0.0, min(0.5, deadline - time.monotonic())))
        for number in list(self._slots):
            self._lose(number, "it did not stop")
        self._end_launcher()
        self._epoll.close()
        return self._sweep() if self._setup is not None else self.left_behind

    def _sweep(self) -> int:
        """Kill what carries this worker's tags; return how many processes are still there."""
        worker = self._setup.worker if self._setup is not None else 0
        return sum(sweep_by_tag(tag, worker) for tag in self._tags)

    def _end_launcher(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        for root in (*self._old_scratch_roots, self._scratch_root):
            if root:
                shutil.rmtree(root, ignore_errors=True)

    # -- what the worker loop uses

    def fileno(self) -> int:
        """Return one descriptor that is readable when `read_events` has something to do."""
        return self._epoll.fileno()

    def submit(self, slot: int, orders: Sequence[SlotOrder]) -> None:
        """Queue orders on a slot; its slot process runs them one after the other.

        Parameters
        ----------
        slot : int
            Any number; its slot process is forked with the first order.
        orders : sequence of SlotOrder
            In the order in which they are to run.
        """
        if not orders:
            return
        state = self._slots.get(slot)
        if state is None:
            state = self._open_slot(slot)
        for order in orders:
            state.orders[order.key] = order
        if state.channel.closed:
            state.never_sent.update(order.key for order in orders)
        else:
            self._send(state, orders)

    def cancel(self, slot: int, index: int, attempt: int, interrupted: bool = False) -> None:
        """Stop an attempt, started or not; its report comes as an event."""
        state = self._slots.get(slot)
        if state is not None:
            self._send(state, [CancelOrder(index, attempt, interrupted)])

    def recall(self, slot: int, keys: list[tuple[int, int]] | None = None) -> None:
        """Ask for the orders that have not started; answered by one `OrdersReturned` per call."""
        state = self._slots.get(slot)
        if state is not None:
            self._send(state, [RecallOrders(keys)])
        else:
            self._events.append(OrdersReturned(slot, []))

    def outstanding(self, slot: int) -> list[tuple[int, int]]:
        """Keys of the orders that have not come back from a slot, oldest first."""
        state = self._slots.get(slot)
        return list(state.orders) if state is not None else []

    def read_events(self, timeout_s: float = 0.0) -> list[SlotEvent]:
        """Return what happened; waits up to `timeout_s` when nothing has.

        Raises
        ------
        ClusterError
            The launcher dies again and again, or cannot be started any more.
        """
        if not self._epoll.closed:
            self._poll(0.0 if self._events else timeout_s)
        events, self._events = self._events, []
        return events

    def _open_slot(self, number: int) -> SlotState:
        if self._setup is None:
            raise InternalError("submit was called before configure")
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        self._generation += 1
        wanted = SlotWanted(number, self._generation, os.path.join(self._scratch_root, str(self._generation)))
        state = SlotState(FrameChannel(ours), self._generation)
        self._slots[number] = state
        self._slot_of_fd[ours.fileno()] = number
        self._epoll.register(ours.fileno(), select.EPOLLIN)
        try:
            if self._control is not None:
                socket.send_fds(self._control, [_encode(wanted)], [theirs.fileno()])
        except OSError:
            # A dead launcher is found, and the slot's orders are given back, by the next read_events.
            pass
        finally:
            theirs.close()
        own = msgspec.structs.replace(self._setup, slot=number)
        self._send(state, [own, *self._more, *self._preparations.ready])
        return state

    def _send(self, slot: SlotState, messages: Sequence[ToSlot]) -> None:
        channel = slot.channel
        channel.send(_encode(messages))
        if channel.unsent_bytes and not channel.closed:
            self._epoll.modify(channel.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _poll(self, timeout_s: float) -> None:
        launcher_spoke = False
        for fd, mask in self._epoll.poll(timeout_s):
            if self._control is not None and fd == self._control.fileno():
                launcher_spoke = True
                continue
            number = self._slot_of_fd.get(fd)
            if number is None:
                continue
            state = self._slots[number]
            if mask & select.EPOLLOUT and state.channel.flush():
                self._epoll.modify(fd, select.EPOLLIN)
            if mask & ~select.EPOLLOUT:
                self._hear_slot(number, state)
        if launcher_spoke:
            self._hear_launcher()

    def _hear_slot(self, number: int, state: SlotState) -> None:
        events = self._events
        for frame in state.channel.receive():
            for message in _decode_slot(frame):
                match message:
                    case slot_messages.AttemptFinished():
                        report = message.report
                        state.orders.pop((report.index, report.attempt), None)
                        events.append(AttemptFinished(number, report))
                    case slot_messages.AttemptStarted():
                        events.append(AttemptStarted(number, message.index, message.attempt, message.at))
                    case slot_messages.AttemptProgress(index=index, attempt=attempt, fraction=fraction):
                        events.append(AttemptProgress(number, index, attempt, fraction))
                    case slot_messages.OrdersReturned():
                        for key in message.keys:
                            state.orders.pop(key, None)
                        events.append(OrdersReturned(number, message.keys))
                    case SlotStopped():
                        state.stopped = True
                        self.left_behind += message.left_behind
                    case SlotTrouble():
                        state.trouble = message.traceback.strip()
                    case _:
                        raise InternalError(f"unknown message {message!r} from slot {number}")
        if state.channel.closed:
            self._epoll.unregister(state.channel.fileno())
            del self._slot_of_fd[state.channel.fileno()]
            state.channel.close()
            # What killed it, and that nothing is left of it, the launcher says.
            if state.ended is not None or self._closing or self._control is None:
                self._bury(number, state)

    def _hear_launcher(self) -> None:
        while self._control is not None:
            try:
                data = self._control.recv(1 << 18, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._replace_launcher()
                return
            message = _decode_launcher(data)
            match message:
                case SlotEnded():
                    state = self._slots.get(message.slot)
                    if state is None or state.generation != message.generation:
                        continue
                    state.ended = message
                    if not state.channel.closed:
                        # What it sent before its end is still in the socket.
                        self._hear_slot(message.slot, state)
                    if message.slot in self._slots and self._slots[message.slot] is state:
                        self._drop_channel(state)
                        self._bury(message.slot, state)
                case slot_messages.RecipePrepared():
                    if self._preparations.answered(message):
                        self._tell_all(message)
                    self._events.append(RecipePrepared(message.recipe, message.error))
                case LauncherTrouble():
                    self._trouble = message.traceback.strip()
                case _:
                    raise InternalError(f"unknown message {message!r} from the launcher")

    def _drop_channel(self, state: SlotState) -> None:
        fd = state.channel.fileno()
        if fd >= 0:
            self._epoll.unregister(fd)
            del self._slot_of_fd[fd]
            state.channel.close()

    def _bury(self, number: int, state: SlotState) -> None:
        reason = "its slot process is gone" if state.ended is None else state.ended.reason()
        if state.trouble and not (state.ended is not None and state.ended.error):
            reason = f"its slot process failed: {last_line(state.trouble)}"
        self._lose(number, reason)

    def _lose(self, number: int, reason: str) -> None:
        """Forget a slot process: the oldest order ran and is lost, the others come back."""
        state = self._slots.pop(number)
        self._drop_channel(state)
        if state.stopped and not state.orders:
            return
        keys = list(state.orders)
        if not state.stopped:
            self._events.append(SlotLost(number, reason))
        if self._closing or state.stopped:
            # It ended in order: what did not report had not begun.
            self._events.append(OrdersReturned(number, keys))
            return
        if keys and keys[0] not in state.never_sent:
            index, attempt = keys.pop(0)
            report = worker_lost(index, attempt, reason, state.trouble or self._trouble)
            self._events.append(AttemptFinished(number, report))
        if keys:
            self._events.append(OrdersReturned(number, keys))

    def _replace_launcher(self) -> None:
        """The launcher is dead: end its slot processes, kill what they leave, start another."""
        assert self._control is not None
        self._epoll.unregister(self._control.fileno())
        self._control.close()
        self._control = None
        status = 0
        if self._process is not None:
            try:
                status = self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                status = self._process.wait()
        self._process = None
        reason = last_line(self._trouble) or (
            f"the launcher was killed (signal {-status})" if status < 0 else f"the launcher ended ({status})"
        )
        for number in list(self._slots):
            state = self._slots[number]
            if not state.channel.closed:
                self._hear_slot(number, state)
        for number in list(self._slots):
            self._lose(number, reason)
        self._trouble = ""
        self._sweep()
        if self._closing:
            return
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < _RESTARTS_WINDOW_S]
        self._restarts.append(now)
        if len(self._restarts) > _RESTARTS_LIMIT:
            raise ClusterError(
                f"the launcher died {len(self._restarts)} times in {_RESTARTS_WINDOW_S:g} s: {reason}"
            )
        self._old_scratch_roots.append(self._scratch_root)
        self.start()
        self._preparations.ask_again(self._control)
        self._events.append(LauncherRestarted(reason))
