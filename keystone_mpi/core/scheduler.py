"""The scheduler: a pure state machine, events in, actions out.

Rule: nothing here does I/O, reads a clock, waits or rolls dice. `now` is an
argument that never goes back. A call handles its events in order and then
makes one dispatch pass, so several events at once cost one pass.

    events -> tasks change phase (transitions.py) -> records, notices
           -> one pass: retries due, refill from the source, place, prefetch, recall
           -> Assign, Recall, Finish

What it holds grows with what is active: the look-ahead window, what workers
have, what waits for a retry or for another task. A task that ended leaves one
byte (final_states.py).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

import msgspec

from keystone_mpi.core import actions, admission, events
from keystone_mpi.core.actions import Action, FinishReason
from keystone_mpi.core.durations import DurationMean
from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.events import Event
from keystone_mpi.core.final_states import FinalStates
from keystone_mpi.core.model import Assignment, AttemptReport, Outcome, TaskRequest, TaskSource, TaskState, Why
from keystone_mpi.core.placement import Placement
from keystone_mpi.core.ready_queue import ReadyQueue
from keystone_mpi.core.transitions import Ledger, Phase, Task
from keystone_mpi.core.verdicts import judge
from keystone_mpi.core.workers import Worker, WorkerPool, recallable

_PARKED_WINDOWS = 8
"""So many windows of tasks that no present worker can run may lie beside the window itself."""
