"""AdaComm: agree more often as the loss falls."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.answers import Rate
from tightwire.errors import PlanError
from tightwire.sync.rounds import Rounds, State, Trend, require_state, require_steps


@dataclass(frozen=True)
class AdaComm(Rounds):
    """H local steps, then average; H follows the loss: ⌈H0·√(F/F_0)⌉, and γ·H where that is not below H any more.

    The first rule is equation 17 of Wang & Joshi, and the second, equation 18, keeps H falling while the loss stays
    where it is: without it the error of long rounds would remain. F is the mean over workers of what `run.report_loss`
    was told since H was chosen, F_0 that of the first round; the sums travel with rounds, so that all ranks agree on H.
    The paper chooses H anew every 60 seconds; here it is every `interval` steps, at the end of a round, so that runs
    can be repeated.

    With `coupled=true` the learning rate η bears on H too: where it fell since H was chosen, H is ⌈H0·√(η_0/η·F/F_0)⌉,
    for the smaller steps are, the less replicas drift apart. The paper derives (η_0/η)³ under the root (equation 19),
    and takes η_0/η (equation 20), for with the former tenfold smaller rates made rounds of a thousand steps, which
    diverged. Here η_0 is the highest rate so far, so that a warm-up shortens no rounds, and H never exceeds H0, by
    which a round's cost is predicted. It is no default: in the paper the rate falls only once H is 1, and under a
    schedule that does not wait for that, rounds end as long as they began. Equations are from memory of the paper.

    Args:
        H0: local steps in the first rounds.
        gamma: γ, in (0, 1]; 1 is the first rule alone.
        interval: steps after which H is chosen anew.
        coupled: whether H also follows the learning rate.
        state: of the optimizer, as in `local`.
    """

    name: ClassVar[str] = "adacomm"
    title: ClassVar[str] = "local SGD whose rounds shorten as the loss falls"
    paper: ClassVar[str] = "Wang & Joshi, Adaptive Communication Strategies, arXiv:1810.08313"
    promise: ClassVar[str] = (
        "Reaches bsp's loss in about a third of its time, and a lower one than a fixed H (Wang and Joshi "
        "2019)."
    )
    seen: ClassVar[str] = "In equal steps it is a little better than local:8 here, with more rounds."
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
    coupled: bool = False
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

    def steps_after(self, trend: Trend, last: int) -> int:
        """Returns H from now on.

        >>> [AdaComm(8).steps_after(Trend(loss=loss), 8) for loss in (1.0, 0.81, 0.25, 0.01, 0.0)]
        [4, 4, 4, 1, 1]
        >>> [AdaComm(8).steps_after(Trend(loss=0.25), last) for last in (6, 5, 4, 3, 1)]
        [4, 4, 2, 2, 1]
        >>> fallen = Trend(loss=0.16, rate=0.25, rate_fell=True)
        >>> AdaComm(8).steps_after(fallen, 2), AdaComm(8, coupled=True).steps_after(fallen, 2)
        (1, 7)
        """
        grown = trend.rate if self.coupled and trend.rate > 0 else 1.0
        wanted = max(1, math.ceil(self.H0 * math.sqrt(max(trend.loss, 0.0) / grown)))
        if self.coupled and trend.rate_fell:
            return min(self.H0, wanted)
        return wanted if wanted < last else math.ceil(self.gamma * last)

    @property
    def steps_between_lengths(self) -> int:  # noqa: D102
        return self.interval

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)
