"""How long a task will take, from those that have run: longest first shortens the end of a run.

Rule: a guess, never a promise. Nothing depends on it but the order among
tasks of equal priority; where the parameters do not explain the durations seen,
there is no expectation and submission order holds.

    (params, duration) --learn--> normal equations --settle--> expect(params)

The model is linear in the logarithms: ``log d = b0 + sum_i b_i log p_i``, since
solver cost grows as a power of sizes and step counts; values that are not
positive enter as minus the logarithm of their distance from 1, and text by which
of a few words it is. Ridge regression over running sums: learning costs
microseconds and no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from keystone_mpi.deferred_numpy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHORTEST_S = 0.05
"""Below this the order of tasks does not matter."""
SAMPLES_NEEDED = 20
WORDS = 8
"""Text values told apart per parameter."""
RIDGE = 1e-3
EXPLAINED = 0.25
"""Part of the variance that the parameters must explain."""
THINNING_SAMPLES = 1000
"""After so many samples only every second is learned, then every fourth, and so on."""


class DurationModel:
    """Learns durations and tells expectations.

    Parameters
    ----------
    names : sequence of str
        Parameters to learn from.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._words: dict[str, dict[str, int]] = {name: {} for name in names}
        self._size = 1 + len(names) * WORDS
        self._xtx: Any = 0.0
        """Matrix, once there is a sample; `_xty`: vector."""
        self._xty: Any = 0.0
        self._yty = 0.0
        self._seen = 0
        self._short = 0
        self._samples = 0
        self._solved_at = 0
        self._beta: NDArray[np.float64] | None = None

    @property
    def settled(self) -> bool:
        """Enough has been seen to say something, or to say that nothing need be said."""
        return self._samples >= SAMPLES_NEEDED or self._short >= SAMPLES_NEEDED

    @property
    def knows(self) -> bool:
        """Whether `expect` may say more than 0."""
        return self._samples >= SAMPLES_NEEDED

    def learn(self, duration_s: float, params: Callable[[], Mapping[str, Any]]) -> None:
        """Take in one successful attempt; its parameters are asked for only where they are looked at."""
        if not duration_s >= SHORTEST_S:
            self._short += 1
            return
        self._seen += 1
        if self._seen % (1 << (self._samples // THINNING_SAMPLES)):
            return
        features = self._features(params())
        log_duration = math.log(duration_s)
        self._xtx = self._xtx + np.outer(features, features)
        self._xty = self._xty + features * log_duration
        self._yty += log_duration * log_duration
        self._samples += 1

    def expect(self, params: Mapping[str, Any]) -> float:
        """Return the expected duration in seconds; 0.0: unknown."""
        if self._samples < SAMPLES_NEEDED:
            return 0.0
        if self._beta is None or self._samples >= 1.25 * self._solved_at:
            self._solve()
        if self._beta is None:
            return 0.0
        exponent = float(self._features(params) @ self._beta)
        return math.exp(min(exponent, 50.0))

    def _features(self, params: Mapping[str, Any]) -> NDArray[np.float64]:
        features = np.zeros(self._size)
        features[0] = 1.0
        for position, name in enumerate(self._names):
            value = params.get(name)
            start = 1 + position * WORDS
            match value:
                case bool():
                    features[start] = float(value)
                case int() | float():
                    number = float(value)
                    # Symmetric beyond zero, so that no value however large drowns the sums.
                    features[start] = math.log(number) if number > 0 else -math.log1p(-number)
                case str():
                    words = self._words[name]
                    if value in words or len(words) < WORDS:
                        features[start + words.setdefault(value, len(words))] = 1.0
                case _:
                    continue
        return features

    def _solve(self) -> None:
        self._solved_at = self._samples
        penalty = np.full(self._size, RIDGE * self._samples)
        penalty[0] = 1e-9
        beta = np.linalg.solve(self._xtx + np.diag(penalty), self._xty)
        mean = self._xty[0] / self._samples
        total = self._yty - self._samples * mean * mean
        left = self._yty - 2.0 * float(beta @ self._xty) + float(beta @ self._xtx @ beta)
        explained = total > 1e-12 * self._samples and left <= (1.0 - EXPLAINED) * total
        self._beta = np.asarray(beta, dtype=np.float64) if explained else None
