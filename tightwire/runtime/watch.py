"""Odd pseudo-gradients: statistics of their norms, by which a worker's counts in a mean or does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

from tightwire.sync.rounds import NormGuard

# What a round teaches, and rounds before anything is taken for odd.
LEARNS, LEAST_ROUNDS = 0.02, 10
# Norms of a run that is quiet differ by less than is worth a word.
LEAST_SPREAD = 0.01
# Weights are powers of e, and float32 adds them up.
LARGEST_POWER = 60.0


@final
class NormWatch:
    """Weighs a worker's pseudo-gradient by its norm, as EDiT does: exp(−G), and nothing if it is odd.

    All workers hold the same statistics: they learn from sums over all.
    """

    def __init__(self, guard: NormGuard) -> None:
        """Takes what is odd."""
        self._guard = guard
        self._rounds = 0
        self._mean = self._square = 0.0
        self._norm: float | None = None

    def weigh(self, norm: float) -> float:
        """Returns the weight of a pseudo-gradient of this norm, relative to that of the mean norm.

        There is no mean in the first round: norms of more than `LARGEST_POWER` weigh alike there.
        """
        spread = math.sqrt(max(self._square - self._mean**2, (LEAST_SPREAD * self._mean) ** 2))
        is_known = self._rounds >= LEAST_ROUNDS
        if not math.isfinite(norm) or (is_known and norm > self._mean + self._guard.z * spread):
            self._norm = None
            return 0.0
        self._norm = norm
        return math.exp(max(-LARGEST_POWER, min(LARGEST_POWER, self._mean - norm)))

    def told(self) -> list[float]:
        """Returns what this worker adds to the sums: how many norms, their sum, that of their squares. Once."""
        norm, self._norm = self._norm, None
        return [0.0, 0.0, 0.0] if norm is None else [1.0, norm, norm * norm]

    def learn(self, sums: Sequence[float]) -> None:
        """Takes in a round's sums over all workers."""
        count, norms, squares = sums
        if count < 0.5:
            return
        share = 1.0 if self._rounds == 0 else LEARNS
        self._mean += share * (norms / count - self._mean)
        self._square += share * (squares / count - self._square)
        self._rounds += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns plain numbers."""
        return {"rounds": self._rounds, "mean": self._mean, "square": self._square}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self._rounds, self._mean, self._square = state["rounds"], state["mean"], state["square"]
