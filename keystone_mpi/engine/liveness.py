"""Signs of life between master and workers: a node that is gone says nothing, and MPI may not either.

Rule: pure bookkeeping; the caller brings the time. Only who has given a sign
once can be missed, and a process that was itself stopped for a while (a
suspended job, a laptop's lid) blames nobody.

    master --Beat--> worker --Beat--> master ...     silence > limit --> lost (worker) | leave (master)
"""

from __future__ import annotations

from keystone_mpi.engine.settings import seconds_from

SILENCE_VARIABLE = "KEYSTONE_SILENCE"
DEFAULT_SILENCE_S = 120.0
SHORTEST_SILENCE_S = 3.0
BEATS_PER_SILENCE = 6.0


def silence_limit_s() -> float:
    """Return after how long a silence somebody is taken for gone: ``$KEYSTONE_SILENCE`` seconds, or 120."""
    return seconds_from(SILENCE_VARIABLE, default_s=DEFAULT_SILENCE_S, least_s=SHORTEST_SILENCE_S)


class Liveness:
    """Who was heard of when, and when the next beat of one's own is due.

    Parameters
    ----------
    now : float
        Monotonic time.
    silence_s : float
        The limit.
    """

    def __init__(self, now: float, silence_s: float) -> None:
        self.silence_s = silence_s
        self.beat_s = silence_s / BEATS_PER_SILENCE
        """How often `silent` and `beat_due` want to be asked."""
        self._heard: dict[int, float] = {}
        self._looked_at = now
        self._next_beat = now

    def heard(self, who: int, now: float) -> None:
        """Somebody gave a sign of life; from now on more are expected."""
        self._heard[who] = now

    def knows(self, who: int) -> bool:
        """Tell whether somebody ever gave a sign and was not forgotten."""
        return who in self._heard

    def forget(self, who: int) -> None:
        """Expect nothing more of somebody."""
        self._heard.pop(who, None)

    def silent(self, now: float) -> list[int]:
        """Return who has been silent for too long; to be called at least once per beat."""
        gap_s = now - self._looked_at
        self._looked_at = now
        if gap_s > 2.0 * self.beat_s:
            # It was us who did not listen: what was sent meanwhile is still to be read.
            self._heard = {who: min(now, at + gap_s) for who, at in self._heard.items()}
        return [who for who, at in self._heard.items() if now - at > self.silence_s]

    def beat_due(self, now: float) -> bool:
        """Tell whether a beat is due, and count it as given."""
        if now < self._next_beat:
            return False
        self._next_beat = now + self.beat_s
        return True

    def next_look_s(self, now: float) -> float:
        """Return how long one may sleep until the next beat."""
        return max(0.0, self._next_beat - now)
