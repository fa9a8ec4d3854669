"""The worker: takes orders from the master, keeps its slots busy, sends reports.

Rule: it decides nothing about tasks, only which of its slot processes runs
what. It never waits for the master while it holds work, and sleeps otherwise.

    master --Assign--> backlog --SlotPool--> slot process --report--> master
    master --Recall--> what has not started goes back
    launcher lost ---> its attempts are reported WORKER_LOST, another is started
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import InternalError, KeystoneError
from keystone_mpi.core.model import AttemptKey, AttemptReport, Outcome, Why
from keystone_mpi.engine.slot_pool import Placement, SlotPool
from keystone_mpi.execution.launcher_client import LauncherClient
from keystone_mpi.execution.slots import NodeResources
from keystone_mpi.tools.render import Renderer
from keystone_mpi.transport.channel import WorkerEnd
from keystone_mpi.transport.messages import (
    PROTOCOL_VERSION,
    Assign,
    AttemptsFinished,
    AttemptsStarted,
    AttemptStart,
    Cancel,
    Farewell,
    Goodbye,
    Hello,
    Recall,
    TaskOrder,
    TasksReturned,
    Welcome,
    WorkerFailed,
)
