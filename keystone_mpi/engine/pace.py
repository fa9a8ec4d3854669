"""How fast a run goes and when it will end, from what has been seen.

Rule: pure; the caller brings the time. The rate is that of the recent past,
so that a slow start or a pause does not colour it for ever.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
SAMPLES = 64


class Pace:
    """Completions over time."""

    def __init__(self, now: float) -> None:
        self._started = now
        self._done = 0
        self._busy_s = 0.0
        self._samples: deque[tuple[float, int]] = deque([(now, 0)], maxlen=SAMPLES)

    @property
    def done(self) -> int:
        """Tasks that ended."""
        return self._done

    def add(self, duration_s: float) -> None:
        """One task ended after `duration_s` of work."""
        self._done += 1
        if duration_s == duration_s:
            self._busy_s += duration_s

    def sample(self, now: float) -> None:
        """Remember how far the run has come; a few times a second at most."""
        if now - self._samples[-1][0] >= WINDOW_S / SAMPLES:
            self._samples.append((now, self._done))

    def rate_per_s(self, now: float) -> float:
        """Completions per second over the last minute; 0.0 when unknown."""
        recent = [sample for sample in self._samples if now - sample[0] <= WINDOW_S]
        then, done = recent[0] if recent else self._samples[-1]
        return (self._done - done) / (now - then) if now > then else 0.0

    def eta_s(self, now: float, remaining: int, slots: int) -> float:
        """Seconds until `remaining` tasks have run; NaN when nothing has ended yet."""
        if remaining == 0:
            return 0.0
        if self._done == 0:
            return float("nan")
        by_duration_s = self._busy_s / self._done * remaining / max(1, min(slots, remaining))
        rate = self.rate_per_s(now)
        return max(by_duration_s, remaining / rate) if rate > 0 else by_duration_s

    def elapsed_s(self, now: float) -> float:
        """Seconds since the start."""
        return now - self._started
