"""A launcher client for one test, and short ways to run solvers with it."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from keystone_mpi.core.model import AttemptReport
from keystone_mpi.execution.launcher_client import AttemptFinished, LauncherClient, SlotEvent
from keystone_mpi.execution.processes import find_by_tag
from keystone_mpi.execution.slot_messages import SlotOrder
from keystone_mpi.tools.recipe import Launch, Recipe

LIMIT_S = 30.0
"""No single wait of a test takes longer, however busy the machine is."""

Event = TypeVar("Event")


class Bench:
    """One `LauncherClient` with its run id, and what came back from it."""

    def __init__(
        self,
        folder: Path,
        recipes: Sequence[Recipe] = (Recipe(),),
        worker: int = 7,
        run_id: str = "",
    ) -> None:
        self.folder = folder
        self.output_path = folder / "out.h5"
        self.run_id = run_id or uuid.uuid4().hex
        self.client = LauncherClient()
        self.client.start()
        self.client.configure(
            recipes=recipes, run_id=self.run_id, epoch=1, worker=worker, output_path=str(self.output_path)
        )
        self.events: list[SlotEvent] = []
        self.next_index = 0
        self.closed = False

    def order(self, *argv: str, **options: object) -> SlotOrder:
        """An order for the next task; launch options and order options by name."""
        launch_names = {"env", "cwd", "stdin", "writes", "copies", "links", "collect_files"}
        of_launch = {name: options.pop(name) for name in list(options) if name in launch_names}
        of_launch.setdefault("cwd", str(self.folder))
        of_launch.setdefault("env", {})
        index = options.pop("index", self.next_index)
        attempt = options.pop("attempt", 1)
        self.next_index += 1
        return SlotOrder(index, attempt, Launch(argv=argv, **of_launch), **options)

    def shell(self, script: str, **options: object) -> SlotOrder:
        return self.order("/bin/sh", "-c", script, **options)

    def python(self, script: str, **options: object) -> SlotOrder:
        return self.order(sys.executable, "-S", "-c", script, **options)

    def run(self, order: SlotOrder, slot: int = 0) -> AttemptReport:
        """Run one order to its end."""
        self.client.submit(slot, [order])
        return self.report(order)

    def report(self, order: SlotOrder) -> AttemptReport:
        """Wait for the report of an order."""
        return self.wait_for(
            lambda event: (
                isinstance(event, AttemptFinished) and (event.report.index, event.report.attempt) == order.key
            )
        ).report

    def wait_for(self, wanted: Callable[[SlotEvent], bool]) -> SlotEvent:
        """Wait until an event comes (or has come) that is wanted."""
        end = time.monotonic() + LIMIT_S
        seen = 0
        while True:
            for event in self.events[seen:]:
                if wanted(event):
                    return event
            seen = len(self.events)
            assert time.monotonic() < end, f"it did not come: {self.events}"
            self.events += self.client.read_events(0.5)

    def wait_for_kind(self, kind: type[Event]) -> Event:
        event = self.wait_for(lambda event: isinstance(event, kind))
        assert isinstance(event, kind)
        return event

    def tagged(self) -> list[int]:
        """Pids that carry this run's tag."""
        return find_by_tag(self.run_id)

    def wait_gone(self, limit_s: float = 5.0) -> None:
        """Wait until no process carries this run's tag: 5 s is what is promised."""
        end = time.monotonic() + limit_s
        while left := self.tagged():
            assert time.monotonic() < end, f"still there: {left}"
            time.sleep(0.02)

    def close(self, grace_s: float = 0.0) -> int:
        if self.closed:
            return 0
        self.closed = True
        left = self.client.close(grace_s)
        self.events += self.client.read_events()
        return left


def wait_until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Poll until the condition holds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come to hold"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def slot_pids(client: LauncherClient) -> list[int]:
    """Slot processes: the launcher's children."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            fields = text.rpartition(")")[2].split()
            if int(fields[1]) == client.launcher_pid and fields[0] != "Z":
                found.append(int(name))
    return sorted(found)
