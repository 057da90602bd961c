"""AdaComm: agree more often as the loss falls."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.answers import Rate
from tightwire.sync.rounds import Rounds, State, require_state, require_steps


@dataclass(frozen=True)
class AdaComm(Rounds):
    """H local steps, then average; H = ceil(H0·sqrt(F_t/F_0)) follows the loss (Wang & Joshi, eq. 17).

    F is the mean over workers of what `run.report_loss` was told in a round; the mean travels with the round, so that
    all ranks agree on H. The paper renews H at intervals of time, here it is renewed in every round.

    Args:
        H0: local steps in the first round.
        state: of the optimizer, as in `local`.
    """

    name: ClassVar[str] = "adacomm"
    title: ClassVar[str] = "local SGD whose rounds shorten as the loss falls"
    paper: ClassVar[str] = "Wang & Joshi, Adaptive Communication Strategies, arXiv:1810.08313"
    proven: ClassVar[Rate | None] = Rate(
        bound="→ 0 for rates with Σητ = ∞, Ση²τ < ∞, Ση³τ² < ∞",
        assumes="smooth non-convex loss, bounded variance",
        speed_up="not stated",
        paper="Wang & Joshi 2019, arXiv:1810.08313, theorem 3",
    )
    example: ClassVar[str] = "adacomm:8"
    follows_loss: ClassVar[bool] = True

    H0: int
    _: KW_ONLY
    state: str = "kept"

    def __post_init__(self) -> None:
        require_steps(self, "H0", self.H0)
        require_state(self, self.state)

    @property
    def steps_per_round(self) -> int:
        """H0: at most, while the loss falls."""
        return self.H0

    def steps_after(self, loss_ratio: float) -> int:
        """Returns the length of the next round.

        >>> [AdaComm(8).steps_after(ratio) for ratio in (1.0, 0.25, 0.01, 0.0)]
        [8, 4, 1, 1]
        """
        return max(1, math.ceil(self.H0 * math.sqrt(max(loss_ratio, 0.0))))

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)
