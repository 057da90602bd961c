"""Federated averaging: some workers per round, weighted by what they have seen."""

from __future__ import annotations

import math
import random
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.answers import Rate
from tightwire.errors import PlanError
from tightwire.sync.rounds import Rounds, State, require_state, require_steps


@dataclass(frozen=True)
class FedAvg(Rounds):
    """A sampled fraction of workers takes part in each round, weighted by samples (McMahan et al., Algorithm 1).

    A worker that is not sampled counts nothing in that round and goes on from the others' mean. Samples are what
    `run.report_samples(n)` was told in the round; told nothing, every worker counts alike. A program has messages of
    one size, so the others pass theirs on as zeros: sampling saves no bytes of an all-reduce.

    Args:
        H: local steps per round.
        fraction: of the workers (the paper's C), at least one of them.
        state: of the optimizer; the paper's clients have none when they begin, so it is `reset`.
    """

    name: ClassVar[str] = "fedavg"
    title: ClassVar[str] = "local SGD of a sampled fraction of workers, weighted by samples"
    paper: ClassVar[str] = (
        "McMahan et al., Communication-Efficient Learning of Deep Networks, arXiv:1602.05629"
    )
    promise: ClassVar[str] = "10 to 100 times fewer rounds than federated SGD (McMahan et al. 2017)."
    seen: ClassVar[str] = "Half of the workers rest in every round here, which costs their batches."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(H²/T) of the distance to the optimum's value",
        assumes="smooth strongly convex loss, bounded gradients, unlike data, rates that fall",
        speed_up="none proven where a fraction takes part",
        paper="Li et al. 2020, arXiv:1907.02189, theorems 1 to 3",
    )
    example: ClassVar[str] = "fedavg:8,fraction=0.5"
    weighs_samples: ClassVar[bool] = True

    H: int
    fraction: float = 1.0
    _: KW_ONLY
    state: str = "reset"

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_state(self, self.state)
        if not 0 < self.fraction <= 1:
            raise PlanError(f"{self}: fraction is a share of the workers, above 0 and at most 1.")

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)

    def takes_part(self, rank: int, workers: int, seed: int) -> bool:
        """Whether `rank` is among max(ceil(fraction · workers), 1) drawn with this seed, the same on every rank.

        >>> [sum(FedAvg(8, 0.5).takes_part(r, 5, seed) for r in range(5)) for seed in range(3)]
        [3, 3, 3]
        """
        chosen = random.Random(f"fedavg {seed}").sample(range(workers), math.ceil(self.fraction * workers))
        return rank in chosen
