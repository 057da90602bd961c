"""AdaComm: agree more often as the loss falls."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.answers import Rate
from tightwire.errors import PlanError
from tightwire.sync.rounds import Rounds, State, require_state, require_steps


@dataclass(frozen=True)
class AdaComm(Rounds):
    """H local steps, then average; H follows the loss: ⌈H0·√(F/F_0)⌉, and γ·H where that is not below H any more.

    The first rule is equation 17 of Wang & Joshi, and the second, equation 18, keeps H falling while the loss stays
    where it is: without it the error of long rounds would remain. F is the mean over workers of what `run.report_loss`
    was told since H was chosen, F_0 that of the first round; the sums travel with rounds, so that all ranks agree on H.
    The paper chooses H anew every 60 seconds; here it is every `interval` steps, at the end of a round, so that runs
    can be repeated. Its third rule, by which H grows with √(η_0/η) where the learning rate η falls, belongs to
    schedules that wait for H = 1 before the rate falls, and is left out (PaddlePaddle's adaptive local SGD has that
    one, and not the second). Equations 17 and 18 and γ are from memory of the paper.

    Args:
        H0: local steps in the first rounds.
        gamma: γ, in (0, 1]; 1 is the first rule alone.
        interval: steps after which H is chosen anew.
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
    gamma: float = 0.5
    interval: int = 100
    state: str = "kept"

    def __post_init__(self) -> None:
        require_steps(self, "H0", self.H0)
        require_steps(self, "interval", self.interval)
        require_state(self, self.state)
        if not 0 < self.gamma <= 1:
            raise PlanError(
                f"{self}: gamma is by what rounds shorten while the loss stays where it is, above 0 and at most 1."
            )

    @property
    def steps_per_round(self) -> int:
        """H0: at most, while the loss falls."""
        return self.H0

    def steps_after(self, loss_ratio: float, last: int) -> int:
        """Returns H from now on.

        >>> [AdaComm(8).steps_after(ratio, 8) for ratio in (1.0, 0.81, 0.25, 0.01, 0.0)]
        [4, 4, 4, 1, 1]
        >>> [AdaComm(8).steps_after(0.25, last) for last in (6, 5, 4, 3, 1)]
        [4, 4, 2, 2, 1]
        """
        wanted = max(1, math.ceil(self.H0 * math.sqrt(max(loss_ratio, 0.0))))
        return wanted if wanted < last else math.ceil(self.gamma * last)

    @property
    def steps_between_lengths(self) -> int:  # noqa: D102
        return self.interval

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)
