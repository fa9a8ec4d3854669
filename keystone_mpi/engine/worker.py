"""The worker: takes orders from the master, keeps its slots busy, sends reports.

Rule: it decides nothing about tasks, only which of its slot processes runs
what. It never waits for the master while it holds work, and sleeps otherwise.

    master --Assign--> backlog --SlotPool--> slot process --report--> master
    master --Recall--> what has not started goes back
    master --CallsGiven--> function_seats.py --CallReplies--> master
    slot process or launcher dead --> its running attempt is reported WORKER_LOST, another is started
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec

from keystone_mpi.core.errors import InternalError, KeystoneError, MasterSilentError
from keystone_mpi.core.model import AttemptKey, AttemptReport, Outcome
from keystone_mpi.engine.function_seats import FunctionSeats, Outgoing
from keystone_mpi.engine.liveness import Liveness, silence_limit_s
from keystone_mpi.engine.recipes_here import RecipesHere
from keystone_mpi.engine.slot_pool import Placement, SlotPool
from keystone_mpi.engine.unrun_reports import impossible, never_started
from keystone_mpi.execution import launcher_client
from keystone_mpi.execution.function_frames import SharedBlock
from keystone_mpi.execution.launcher_client import LauncherClient
from keystone_mpi.execution.processes import sharpen_timers, sweep_earlier_epochs
from keystone_mpi.execution.scratch import local_scratch_path
from keystone_mpi.execution.slot_messages import SlotOrder
from keystone_mpi.execution.slots import NodeResources, divide
from keystone_mpi.tools.recipe import Recipe
from keystone_mpi.tools.render import RenderContext, Renderer
from keystone_mpi.transport.channel import Delivered, WorkerEnd
from keystone_mpi.transport.messages import (
    PROTOCOL_VERSION,
    Assign,
    AttemptProgress,
    AttemptsFinished,
    AttemptsProgress,
    AttemptsStarted,
    AttemptStart,
    Beat,
    BookClosed,
    BookOpened,
    CallsGiven,
    CallsRecalled,
    Cancel,
    Dismissal,
    Farewell,
    FromWorker,
    FunctionDefined,
    Goodbye,
    Hello,
    Recall,
    RecipeRefused,
    RecipesAdded,
    SeatClosing,
    TaskOrder,
    TasksReturned,
    ToWorker,
    Welcome,
    WorkerFailed,
)

MASTER = 0
"""Name of the master among those whose signs of life a worker expects."""
PATIENCE_S = 3600.0
"""Upper bound of one sleep; messages and slot processes end it."""
RELIEF_AFTER_S = 0.02
"""A task may wait behind another on a slot process for so long while a slot is free."""
FAREWELL_GRACE_S = 1.0
FUNCTION_TOOL = "function"
"""`Recipe.tool` of function processes."""


class Worker:
    """Serves one master until it says farewell.

    Parameters
    ----------
    end : WorkerEnd
        This worker's end of the transport.
    launcher : LauncherClient
        Started already.
    rank : int
        MPI rank; 0 for the worker beside the master.
    resources : NodeResources
        What the node has.
    local_index, local_workers : int
        Position among the workers of this node, and how many they are.
    trouble : str
        Why this worker cannot work; it only says so and leaves.
    """

    def __init__(
        self,
        end: WorkerEnd,
        launcher: LauncherClient,
        *,
        rank: int,
        resources: NodeResources,
        local_index: int,
        local_workers: int,
        trouble: str = "",
    ) -> None:
        self._trouble = trouble
        self._end = end
        self._launcher = launcher
        self._rank = rank
        self._resources = resources
        self._local_index = local_index
        self._local_workers = local_workers
        self._gpus: tuple[int, ...] = tuple(range(resources.gpus))
        """Positions of this worker's devices in the lists of the node's."""
        if not resources.gpus_alone and local_workers > 1:
            self._gpus = divide(self._gpus, local_workers, local_index)
        self._pool = SlotPool(1, ())
        self._books: dict[int, BookOpened] = {}
        self._renderers: list[Renderer] = []
        self._failed_folders_left: list[int] = []
        self._cancelled: dict[AttemptKey, bool] = {}
        """Attempts that were cancelled before they reached a slot process: interrupted or not."""
        self._recalled_by_master: set[AttemptKey] = set()
        self._relieved: set[int] = set()
        """Slot processes that were asked to give back what waits there."""
        self._relief_at: float | None = None
        self._seats = FunctionSeats()
        self._recipes_here = RecipesHere()
        self._worker = 0
        self._leaving = False
        self._liveness: Liveness | None = None
        """Of the master; None until it gives a first sign of life."""

    def serve(self) -> None:
        """Work until the farewell; an internal error is told to the master first."""
        try:
            self._end.send(self._hello())
            if self._trouble:
                self._wait_for_dismissal()
                return
            self._end.watch(self._launcher.fileno())
            self._end.watch(self._seats.fileno())
            self._end.allocate_parts_with(SharedBlock)
            self._serve()
        except MasterSilentError:
            self._launcher.close()
            raise
        except Exception as error:  # tell the master before leaving: it prints, with rank and host
            text = str(error) if isinstance(error, KeystoneError) else traceback.format_exc()
            self._launcher.close()
            self._end.send(WorkerFailed(text))
            self._wait_for_dismissal()
        finally:
            self._seats.close()
            self._end.close()

    def _hello(self) -> Hello:
        resources = self._resources
        return Hello(
            protocol_version=PROTOCOL_VERSION,
            rank=self._rank,
            host=socket.gethostname(),
            cpus=resources.cpus,
            threads=resources.allowed_cpus,
            local_index=self._local_index,
            local_workers=self._local_workers,
            memory_bytes=resources.memory_bytes,
            gpus=len(self._gpus),
            slots=resources.slots,
            thread_slots=resources.thread_slots,
            alone=resources.alone,
            pid=os.getpid(),
            source=resources.source,
            error=self._trouble,
        )

    def _serve(self) -> None:
        while not self._leaving:
            outgoing: list[FromWorker] = []
            received = self._end.receive(self._sleep_s(), unhurried=bool(self._pool.backlog))
            outgoing += self._give_sign(heard=bool(received))
            for message in received:
                match message:
                    case Delivered(message=content, parts=parts):
                        outgoing += self._on_message(content, parts)
                    case content:
                        outgoing += self._on_message(content, ())
            self._tell(self._seats.poll())
            outgoing += self._on_slots()
            self._dispatch(outgoing)
            for reply in outgoing:
                self._end.send(reply)
        self._end.unwatch(self._launcher.fileno())
        left_behind = self._launcher.close(FAREWELL_GRACE_S)
        self._end.send(Goodbye(left_behind))
        self._wait_for_dismissal()

    def _wait_for_dismissal(self) -> None:
        """Wait for the end of MPI; rank 0 writes its file meanwhile, and gives signs of life."""
        self._relief_at = None
        self._end.unwatch(self._seats.fileno())  # function processes that were ended would keep it ready
        if self._leaving:
            self._expect_signs()
        while True:
            received = self._end.receive(self._sleep_s())
            for message in received:
                if isinstance(message, Dismissal):
                    return
                if isinstance(message, Beat | Farewell):
                    self._expect_signs()
            for reply in self._give_sign(heard=bool(received)):
                self._end.send(reply)

    def _expect_signs(self) -> None:
        """The master gave a sign of life: from now on it gives them regularly, and expects ours."""
        if self._liveness is None:
            now = time.monotonic()
            self._liveness = Liveness(now, silence_limit_s())
            self._liveness.heard(MASTER, now)

    def _tell(self, outgoing: list[Outgoing]) -> None:
        for message, parts in outgoing:
            self._end.send(message, parts)

    def _sleep_s(self) -> float:
        now = time.monotonic()
        patience_s = PATIENCE_S if self._liveness is None else self._liveness.next_look_s(now)
        if self._relief_at is None:
            return patience_s
        return max(0.0, min(patience_s, self._relief_at - now))

    def _give_sign(self, *, heard: bool) -> list[FromWorker]:
        """Give the master a sign of life when one is due; leave when it has given none for too long."""
        if self._liveness is None:
            return []
        now = time.monotonic()
        if heard:
            self._liveness.heard(MASTER, now)
        if self._liveness.silent(now):
            raise MasterSilentError(
                f"rank 0 has not been heard of for {self._liveness.silence_s:.0f} s: its node is gone or cut "
                "off. What it had acknowledged is safe; run the same command again to continue"
            )
        return [Beat()] if self._liveness.beat_due(now) else []

    # --- from the master -----------------------------------------------------

    def _on_message(self, message: ToWorker, parts: Sequence[Any]) -> list[FromWorker]:
        match message:
            case CallsGiven(seat=seat, calls=calls):
                self._seats.give(seat, calls, parts)
            case Assign(orders=orders):
                self._pool.backlog.extend(self._recipes_here.let_through(orders))
            case Recall(attempts=attempts):
                return self._recall(attempts)
            case Cancel(index=index, attempt=attempt, interrupted=interrupted):
                return self._cancel(AttemptKey(index, attempt), interrupted)
            case Welcome():
                self._begin(message)
            case FunctionDefined(function=function, data=data):
                self._seats.define(function, data, parts)
                sharpen_timers()
            case CallsRecalled(seat=seat):
                self._tell(self._seats.recall(seat))
            case SeatClosing(seat=seat):
                self._seats.close_seat(seat)
            case BookOpened(book=book):
                sweep_earlier_epochs(message.run_id, message.epoch)
                self._books[book] = message
            case RecipesAdded(book=book, recipes=recipes):
                self._add_recipes(self._books[book], recipes)
            case BookClosed(book=book):
                del self._books[book]
            case Beat():
                self._expect_signs()
            case Farewell() | Dismissal():
                self._leaving = True
            case other:
                raise InternalError(f"the master sent {other!r}")
        return []

    def _begin(self, welcome: Welcome) -> None:
        # What an earlier start of this run left on the node must not go on beside the new one.
        sweep_earlier_epochs(welcome.run_id, welcome.epoch)
        self._pool = SlotPool(welcome.slots, welcome.cpus, self._gpus)
        self._launcher.configure(
            recipes=welcome.recipes,
            run_id=welcome.run_id,
            epoch=welcome.epoch,
            worker=welcome.worker,
            output_path=welcome.output_path,
        )
        self._prepare(welcome.recipes, 0, welcome.run_id, welcome.worker)
        self._worker = welcome.worker
        self._renderers = [
            Renderer(
                recipe,
                output_path=welcome.output_path,
                scratch_dir=local_scratch_path(),
                run_id=welcome.run_id,
                epoch=welcome.epoch,
            )
            for recipe in welcome.recipes
        ]
        self._failed_folders_left = [recipe.keep_failed for recipe in welcome.recipes]

    def _add_recipes(self, book: BookOpened, recipes: list[Recipe]) -> None:
        """Take in recipes of a results file of the program, behind those known so far."""
        for recipe in recipes:
            if recipe.tool == FUNCTION_TOOL:
                self._pool.staying.add(len(self._renderers))
            self._renderers.append(
                Renderer(
                    recipe,
                    output_path=book.output_path,
                    scratch_dir=local_scratch_path(),
                    run_id=book.run_id,
                    epoch=book.epoch,
                )
            )
            self._failed_folders_left.append(recipe.keep_failed)
        self._prepare(
            recipes, len(self._renderers) - len(recipes), book.run_id, self._worker, of_program=True
        )
        self._launcher.add_recipes(
            recipes, run_id=book.run_id, epoch=book.epoch, output_path=book.output_path
        )

    def _prepare(
        self, recipes: list[Recipe], first: int, run_id: str, worker: int, *, of_program: bool = False
    ) -> None:
        """Have the setup of recipes run; their orders wait for it."""
        for wanted in self._recipes_here.add(recipes, first, run_id, worker, of_program=of_program):
            self._launcher.prepare(wanted)

    def _recall(self, attempts: list[AttemptKey]) -> list[FromWorker]:
        wanted = {AttemptKey(*key) for key in attempts}
        withdrawn = self._pool.withdraw(wanted) + self._recipes_here.withdraw(wanted)
        returned = [AttemptKey(order.index, order.attempt) for order in withdrawn]
        # What waits on a slot process is asked back, too; what has started ends in its report.
        for key in wanted.difference(returned):
            slot = self._pool.slot_of(key)
            if slot is not None:
                self._launcher.recall(slot, [key])
                self._recalled_by_master.add(key)
        return [TasksReturned(returned)] if returned else []

    def _cancel(self, key: AttemptKey, interrupted: bool) -> list[FromWorker]:
        if self._pool.withdraw({key}) or self._recipes_here.withdraw({key}):
            return [AttemptsFinished([never_started(key, interrupted)])]
        slot = self._pool.slot_of(key)
        if slot is not None:
            self._cancelled[key] = interrupted
            self._launcher.cancel(slot, key.task, key.attempt, interrupted)
        return []

    # --- from the slot processes ---------------------------------------------

    def _on_slots(self) -> list[FromWorker]:
        reports: list[AttemptReport] = []
        starts: list[AttemptStart] = []
        progress: list[AttemptProgress] = []
        outgoing: list[FromWorker] = []
        for event in self._launcher.read_events():
            match event:
                case launcher_client.AttemptFinished(slot=slot, report=report):
                    key = AttemptKey(report.index, report.attempt)
                    # What its process still answered comes before the news of its end.
                    if self._seats.any_open:
                        self._tell(self._seats.ended(report.index))
                    order = self._pool.finish(slot, key, report.duration_s)
                    self._cancelled.pop(key, None)
                    self._recalled_by_master.discard(key)
                    if report.work_path and report.outcome != Outcome.SUCCESS:
                        self._failed_folders_left[order.recipe] -= 1
                    reports.append(report)
                case launcher_client.AttemptStarted(index=index, attempt=attempt, at=at):
                    starts.append(AttemptStart(index, attempt, at))
                case launcher_client.AttemptProgress(index=index, attempt=attempt, fraction=fraction):
                    progress.append(AttemptProgress(index, attempt, fraction))
                case launcher_client.RecipePrepared(recipe=recipe, error=error):
                    self._pool.backlog.extend(self._recipes_here.answered(recipe, error))
                    if error:
                        outgoing.append(RecipeRefused(recipe, error))
                case launcher_client.OrdersReturned(slot=slot, keys=keys):
                    self._relieved.discard(slot)
                    outgoing += self._take_back(slot, [AttemptKey(*key) for key in keys])
                case launcher_client.SlotLost() | launcher_client.LauncherRestarted():
                    pass  # its attempts come back as events of their own
                case other:
                    raise InternalError(f"the launcher reports {other!r}")
        if starts:
            outgoing.append(AttemptsStarted(starts))
        if progress:
            outgoing.append(AttemptsProgress(progress))
        if reports:
            outgoing.append(AttemptsFinished(reports))
        return outgoing

    def _take_back(self, slot: int, keys: list[AttemptKey]) -> list[FromWorker]:
        """Orders that had not started: to the master if it asked, to the backlog otherwise."""
        to_master: list[AttemptKey] = []
        cancelled: list[AttemptReport] = []
        for key in reversed(keys):
            if key in self._cancelled:
                self._pool.finish(slot, key, float("nan"))
                cancelled.append(never_started(key, self._cancelled.pop(key)))
            elif key in self._recalled_by_master:
                self._recalled_by_master.discard(key)
                self._pool.finish(slot, key, float("nan"))
                to_master.append(key)
            else:
                self._pool.put_back(slot, key)
        outgoing: list[FromWorker] = []
        if to_master:
            outgoing.append(TasksReturned(to_master))
        if cancelled:
            outgoing.append(AttemptsFinished(cancelled))
        return outgoing

    # --- to the slot processes -----------------------------------------------

    def _dispatch(self, outgoing: list[FromWorker]) -> None:
        by_slot: dict[int, list[SlotOrder]] = {}
        refused: list[AttemptReport] = []
        for placement in self._pool.place():
            try:
                by_slot.setdefault(placement.slot, []).append(self._spell_out(placement))
            except KeystoneError as error:
                order = placement.order
                key = AttemptKey(order.index, order.attempt)
                self._pool.finish(placement.slot, key, float("nan"))
                refused.append(impossible(key, str(error)))
        for slot, orders in by_slot.items():
            if orders:
                self._launcher.submit(slot, orders)
        if refused:
            outgoing.append(AttemptsFinished(refused))
        self._relieve()

    def _spell_out(self, placement: Placement) -> SlotOrder:
        order: TaskOrder = placement.order
        self._recipes_here.refuse(order.recipe)
        launch = self._renderers[order.recipe].render(
            order.params,
            RenderContext(
                index=int(order.task_id) if order.task_id.isdigit() else order.index,
                attempt=order.attempt,
                task_id=order.task_id,
                seed=order.seed,
                cores=order.cores,
            ),
        )
        if order.recipe in self._pool.staying:
            launch = self._seats.open(order.index, launch)
        if placement.gpus:
            devices = {
                name: ",".join(listed[position] for position in placement.gpus)
                for name, listed in self._resources.gpu_lists
            }
            launch = msgspec.structs.replace(launch, env={**devices, **launch.env})
        return SlotOrder(
            index=order.index,
            attempt=order.attempt,
            launch=launch,
            recipe=order.recipe,
            timeout_s=order.timeout_s,
            memory_bytes=order.memory_bytes,
            cpus=placement.cpus,
            keep_failed=self._failed_folders_left[order.recipe] > 0,
        )

    def _relieve(self) -> None:
        """Take back what waits behind a task that turned out to be long, when a slot is free."""
        slot = self._pool.slot_to_relieve()
        if slot is None or slot in self._relieved:
            self._relief_at = None
            return
        now = time.monotonic()
        if self._relief_at is None:
            self._relief_at = now + RELIEF_AFTER_S
        elif now >= self._relief_at:
            self._relief_at = None
            self._relieved.add(slot)
            self._launcher.recall(slot)
