"""SlowMo: local SGD with a slow momentum on top."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.answers import Rate
from tightwire.sync.rounds import Outer, Rounds, State, require_state, require_steps


@dataclass(frozen=True)
class SlowMo(Rounds):
    """local:H, then u ← βu + (x_start − mean)/γ and x ← x_start − αγu (Wang et al., Algorithm 1).

    γ is the inner optimizer's rate at the round's end, that of its first parameter group (in the authors' code,
    fairscale, each group's own): only its change from round to round matters. β = 0 and α = 1 is local:H; block-wise
    model-update filtering (BMUF, Chen & Huo 2016) is its ancestor.

    Args:
        H: local steps per round (the paper's τ).
        beta: slow momentum.
        alpha: slow rate.
        state: what becomes of the optimizer's state in a round; the paper's default for SGD is `reset`, and it keeps
            Adam's.
    """

    name: ClassVar[str] = "slowmo"
    title: ClassVar[str] = "local SGD with a slow momentum step on the averaged change"
    paper: ClassVar[str] = "Wang et al., SlowMo, arXiv:1910.00643"
    promise: ClassVar[str] = (
        "Better in loss and accuracy than local SGD at the same rounds (Wang et al. 2020)."
    )
    seen: ClassVar[str] = (
        "Not seen: its slow momentum over 100 rounds wants a smaller rate, which 800 steps do not make up "
        "for."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT))",
        assumes="smooth non-convex loss, bounded variance; T large against n and H",
        speed_up="linear: n",
        paper="Wang et al. 2020, arXiv:1910.00643, corollary 1",
    )
    example: ClassVar[str] = "slowmo:8"
    by_fragment: ClassVar[bool] = True

    H: int
    beta: float = 0.7
    _: KW_ONLY
    alpha: float = 1.0
    state: str = "reset"

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_state(self, self.state)
        _ = self.outer

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)

    @property
    def outer(self) -> Outer:  # noqa: D102
        return Outer(lr=self.alpha, momentum=self.beta, in_steps=True)
