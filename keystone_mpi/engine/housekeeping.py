"""What a master does on the shared file system beside its journal: the lease, the request to drain.

Rule: a file system that does not answer stops nothing else. A thread does it,
never two at a time; the master asks for it and is told at the next turn.

    turn(now, facts) --> thread: is there a drain file?, lease.renew(facts)      --> troubles, LeaseHeldError
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from keystone_mpi.core.errors import ClusterError
from keystone_mpi.engine.troubles import Troubles
from keystone_mpi.records.lease import Lease

RENEWAL_S = 5.0
SLOW_S = 10.0
"""A turn that takes longer is told to the user."""


class Housekeeping:
    """Turns of house-keeping for one run.

    Parameters
    ----------
    lease : Lease
        To be renewed.
    look : callable
        Looks for a request to drain.
    troubles : Troubles
        Told of what fails.
    """

    def __init__(self, lease: Lease, look: Callable[[], None], troubles: Troubles) -> None:
        self._lease = lease
        self._look = look
        self._troubles = troubles
        self._thread: threading.Thread | None = None
        self._began_at = 0.0
        self._next_renewal = 0.0
        self._renewed = False
        self._error: BaseException | None = None

    def turn(self, now: float, facts: Callable[[], dict[str, Any]]) -> None:
        """Begin what is due, unless the last turn has not ended.

        Parameters
        ----------
        now : float
            Monotonic time.
        facts : callable
            Makes what readers of the lease are to know; called when it is renewed.

        Raises
        ------
        LeaseHeldError
            The lease is another's now: this master has to stop at once.
        """
        if self._thread is not None and self._thread.is_alive():
            if now - self._began_at > SLOW_S:
                self._troubles.hold(
                    "lease", f"lease {self._lease.path}: its file system does not answer", now
                )
            return
        self._tell(now)
        told = None
        if now >= self._next_renewal:
            self._next_renewal = now + RENEWAL_S
            told = facts()
        self._began_at = now
        self._thread = threading.Thread(target=self._work, args=(told,), name="keystone-house", daemon=True)
        self._thread.start()

    def _tell(self, now: float) -> None:
        error, self._error = self._error, None
        renewed, self._renewed = self._renewed, False
        if isinstance(error, ClusterError) and type(error) is ClusterError:
            self._troubles.hold("lease", str(error), now)
        elif error is not None:
            raise error
        elif renewed:
            self._troubles.ended("lease")

    def _work(self, facts: dict[str, Any] | None) -> None:
        try:
            self._look()
            if facts is not None:
                self._lease.renew(facts)
                self._renewed = True
        except OSError as error:
            self._error = ClusterError(f"{self._lease.path.parent}: cannot be looked at: {error.strerror}")
        except BaseException as error:  # raised again by the next turn, in the master's thread
            self._error = error
