"""DiLoCo: long rounds, closed by an outer optimizer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.sync.rounds import Outer, Rounds, State, require_late, require_state, require_steps


@dataclass(frozen=True)
class DiLoCo(Rounds):
    """H inner steps; then an outer optimizer steps with the mean of x_start − x_end as its gradient (Algorithm 1).

    The outer optimizer is `torch.optim.SGD` with Nesterov momentum, or whatever `attach(…, outer=…)` makes. With rate
    1 and no momentum it is local:H. The inner optimizer (AdamW in the paper) keeps its state.

    With `overlap=H,eager=true` a worker steps at the end of each round with its own change at once, weighted 1/n, and
    with the others' of the round before (eager updates): the same steps, only the others' come late. The paper finds
    this nearly as good as waiting, where a mean that is late as a whole is clearly worse.

    Args:
        H: inner steps per round.
        outer_lr: rate of the outer step.
        outer_momentum: Nesterov momentum of the outer step.
        overlap: steps made while the exchange travels; what they changed is added to the outer model when it lands. H:
            the outer step comes one round late.
        eager: whether a worker's own part of it does not.
        state: of the inner optimizer.
    """

    name: ClassVar[str] = "diloco"
    title: ClassVar[str] = "H inner steps, then an outer Nesterov step with the averaged change"
    paper: ClassVar[str] = (
        "Douillard et al., DiLoCo, arXiv:2311.08105; streaming: arXiv:2501.18512; eager: Kale et al. 2025, "
        "arXiv:2502.12996"
    )
    example: ClassVar[str] = "diloco:64"
    by_fragment: ClassVar[bool] = True

    H: int
    _: KW_ONLY
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    overlap: int = 0
    state: str = "kept"
    eager: bool = False

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_late(self, self.overlap, self.H)
        require_state(self, self.state, self.overlap)
        _ = self.outer
        if self.eager and self.overlap != self.H:
            raise PlanError(
                f"{self}: an eager worker steps with its own change while means travel for a whole round; write "
                f"overlap={self.H}, or leave out eager."
            )

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H

    @property
    def steps_late(self) -> int:  # noqa: D102
        return self.overlap

    @property
    def is_eager(self) -> bool:  # noqa: D102
        return self.eager

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)

    @property
    def outer(self) -> Outer:  # noqa: D102
        return Outer(lr=self.outer_lr, momentum=self.outer_momentum, nesterov=self.outer_momentum > 0)
