"""TERM and INT that come to a slot process, and so to all processes of its job: solvers, too.

Rule: nobody sends these to a slot process alone. Slurm signals every process of
a step, one after the other and children before parents, so a solver may be
ended by the signal before this process knows of it, and what a solver does
after it counts for nothing: a shell whose command was killed goes on to its
last line, a solver that saves a checkpoint exits with 0. An attempt that ends
after such a signal was interrupted, whatever it says.

    signal --> note --> running attempt: interrupted when it ends
                    --> attempt that has only just begun: stopped, for it may have been missed
                    --> nothing starts for `START_NOTHING_S`: by then the master stops, or was not meant
"""

from __future__ import annotations

import math
import os
import select
import signal
import time

START_NOTHING_S = 5.0
_TO_ALL = (signal.SIGTERM, signal.SIGINT)
_SAME_SIGNAL_S = 1.0
"""The signal goes through all processes of the job within this time."""
_YOUNG_S = 0.2
"""An attempt of this age may have begun after the list of whom to signal was made."""
_PATIENCE_SHARE = 0.005
_PATIENCE_S = 0.050
_LEAST_PATIENCE_S = 0.001
"""No shorter wait is worth its system call."""
_PATIENCE_AWAY_S = 0.1


class JobSignals:
    """What came to this process; installs its handlers when made.

    Parameters
    ----------
    wakeup_fd : int
        Read end of the pipe that `signal.set_wakeup_fd` fills.
    """

    __slots__ = ("_allowed_mono", "_in_job", "_number", "_signalled_mono", "_wakeup_fd", "is_unheeded")

    def __init__(self, wakeup_fd: int) -> None:
        self._wakeup_fd = wakeup_fd
        self._in_job = "SLURM_JOB_ID" in os.environ
        self._number = 0
        self._signalled_mono = -math.inf
        self._allowed_mono = 0.0
        """When the present attempt was allowed to start."""
        self.is_unheeded = False
        """A signal came, and nothing has looked whether the running attempt is to be stopped."""
        for number in _TO_ALL:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self._number = number
        self._signalled_mono = time.monotonic()
        self.is_unheeded = True

    def ask_to_start(self) -> float:
        """Begin an attempt; return 0, or how long nothing may be started yet, in s."""
        self._allowed_mono = now = time.monotonic()
        return max(0.0, self._signalled_mono + START_NOTHING_S - now)

    @property
    def came(self) -> bool:
        """Whether one came since the present attempt was allowed to start."""
        return self._signalled_mono >= self._allowed_mono

    def heed(self) -> bool:
        """Return whether the running attempt is so young that the signal may have missed it."""
        self.is_unheeded = False
        return self.came and self._signalled_mono - self._allowed_mono < _YOUNG_S

    @property
    def error(self) -> str:
        """What a person is told."""
        return f"{signal.Signals(self._number).name} was sent to all processes of the job"

    def came_to(self, status: int, ended_mono: float) -> bool:
        """Tell an attempt that the job's signal ended from one that ended by itself.

        Waits a little for a signal that is on its way: longest where the solver seems to have died of one.

        Parameters
        ----------
        status : int
            Wait status of the solver.
        ended_mono : float
            When it was reaped.
        """
        if not (status or self._in_job):
            return self.came
        code = os.waitstatus_to_exitcode(status)
        until = ended_mono + patience_of(code, ended_mono - self._allowed_mono, in_job=self._in_job)
        while not self.came and (left_s := until - time.monotonic()) >= _LEAST_PATIENCE_S:
            if select.select([self._wakeup_fd], (), (), left_s)[0]:
                os.read(self._wakeup_fd, 512)
        return self.came


def patience_of(exit_code: int, age_s: float, *, in_job: bool) -> float:
    """Return for how long a signal may be on its way after an attempt has ended, in s.

    Parameters
    ----------
    exit_code : int
        Of the solver; negative: minus the signal that ended it.
    age_s : float
        How long the attempt took.
    in_job : bool
        A batch system is there that signals whole jobs.
    """
    if -exit_code in _TO_ALL or exit_code - 128 in _TO_ALL:
        return _SAME_SIGNAL_S if in_job else _PATIENCE_AWAY_S
    if not in_job:
        return 0.0
    # In proportion: it takes half a percent of no solver's time.
    return min(_PATIENCE_S, _PATIENCE_SHARE * age_s)
