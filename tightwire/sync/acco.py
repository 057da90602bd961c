"""ACCO: two half batches, of which one travels while the other is computed, and no step is late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.sync.sync import EngineKind, PredictorKind, Sync


@dataclass(frozen=True)
class Acco(Sync):
    """The mean of one half batch travels while the other half is computed, and a provisional step hides its lateness.

    Every backward pass is a half batch, every second `optimizer.step()` a whole step. While the mean of g̃ₜ travels, gₜ
    is computed at θₜ; then a provisional step leads to θ̃ = Opt(θₜ, g̃ₜ), where g̃ₜ₊₁ is computed while the mean of gₜ
    travels; then the provisional step is taken back, the optimizer's state with it, and θₜ₊₁ = Opt(θₜ, (gₜ + g̃ₜ)/2).
    So a whole step has half of its gradients from where it starts, and the other half from a guess of that, where
    `delayed:1` has all from one step before. What the paper shards, the optimizer's state, every worker has whole here.
    The paper reports the loss of exact means where delayed ones need a warm-up, at no exposed communication.

    The authors' code (github.com/edouardoyallon/acco) weighs the halves by how many micro-batches each worker managed
    to compute in them; here both have one size. Its schedule of the learning rate moves in whole steps.

    Before the first whole step there is none to take back: the first half batch changes nothing until its mean is here.
    """

    name: ClassVar[str] = "acco"
    title: ClassVar[str] = "one half batch travels while the other is computed; provisional steps"
    paper: ClassVar[str] = (
        "Nabli et al. 2024, ACCO: Accumulate while you communicate, arXiv:2406.02613, algorithm 1"
    )
    promise: ClassVar[str] = "The loss of bsp with exchanges hidden (Nabli et al. 2024)."
    seen: ClassVar[str] = "Not seen here: batches are so small that half of one is noise."
    engine: ClassVar[EngineKind] = "halves"
    predictor: ClassVar[PredictorKind] = "delayed"

    @property
    def steps(self) -> int:
        """How many steps later a mean is used first."""
        return 1

    @property
    def deviation(self) -> float:
        """Half of a step's gradients are a guess."""
        return 1.5

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return 1
