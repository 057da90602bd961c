"""DiLoCo: long rounds, closed by an outer optimizer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.errors import PlanError
from tightwire.sync.rounds import OuterRounds


@dataclass(frozen=True)
class DiLoCo(OuterRounds):
    """H inner steps; then an outer optimizer steps with the mean of x_start − x_end as its gradient (Algorithm 1).

    The outer optimizer is `torch.optim.SGD` with Nesterov momentum, or whatever `attach(…, outer=…)` makes. With rate
    1 and no momentum it is local:H. The inner optimizer (AdamW in the paper) keeps its state.

    With `overlap=H,eager=true` a worker steps at the end of each round with its own change at once, weighted 1/n, and
    with the others' of the round before (eager updates): the same steps, only the others' come late. The paper finds
    this nearly as good as waiting, where a mean that is late as a whole is clearly worse.

    A round that is late as a whole adds to the momentum, inside and outside: a rate that suits waiting may make it
    diverge. On the study's text rounds of 32 steps diverge late at SGD's 0.5 (momentum 0.9) with any outer step, also
    the mean alone; at 0.2 they train (outer momentum 0.6: a loss of 2.29 late, 2.41 eager, where waiting has 2.16 at
    0.5), and at 0.1 with an outer momentum of 0.9 (2.38). The papers' inner AdamW has rates far below such bounds.

    With `quorum=0.75,grace=5s` a round ends when three quarters of the workers have made their H steps, and 5 s have
    passed or all are there (the quorum and the grace window of Decoupled DiLoCo). Nobody waits for the others: they go
    on computing, begin again from the new outer model with what they have changed added to it, and hand that in when
    their H steps are made; it enters the next round. The mean is over those who took part, each weighted by the steps
    behind its change: Σ tᵢΔᵢ / Σ tᵢ. The paper's weight of c tokens in t steps is c·c/t, which is the same where all
    batches have one size; `run.weigh` makes it the tokens. The paper has servers that merge; here every worker's
    communication thread takes part in every round, for a late one with zeros of no weight, so that all hold the same
    outer model at the same bytes. So late *computing* is not waited for; a slow line, or a process that is stopped, is.

    Eager updates and weights are from summaries of their papers, whose text could not be read.

    Args:
        H: inner steps per round.
        outer_lr: rate of the outer step.
        outer_momentum: Nesterov momentum of the outer step.
        overlap: steps made while the exchange travels; what they changed is added to the outer model when it lands. H:
            the outer step comes one round late.
        eager: whether a worker's own part of it does not.
        state: of the inner optimizer.
        quorum: share of the workers with which a round ends without the others; 1: all are waited for.
        grace: for how long it waits for them all the same, from when so many are there.
    """

    name: ClassVar[str] = "diloco"
    title: ClassVar[str] = "H inner steps, then an outer Nesterov step with the averaged change"
    paper: ClassVar[str] = (
        "Douillard et al., DiLoCo, arXiv:2311.08105; streaming: arXiv:2501.18512; eager: Kale et al. 2025, "
        "arXiv:2502.12996; quorum and grace: Decoupled DiLoCo, 2026, arXiv:2604.21428"
    )
    promise: ClassVar[str] = "As good as bsp with 500 times fewer exchanges (Douillard et al. 2023)."
    seen: ClassVar[str] = (
        "Nearly seen, and better than local steps alone: 25 rounds are few for an outer momentum, which has"
        " to be shorter."
    )
    example: ClassVar[str] = "diloco:64"

    _: KW_ONLY
    eager: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eager and self.overlap != self.H:
            raise PlanError(
                f"{self}: an eager worker steps with its own change while means travel for a whole round; write "
                f"overlap={self.H}, or leave out eager."
            )

    @property
    def is_eager(self) -> bool:  # noqa: D102
        return self.eager
