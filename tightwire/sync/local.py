"""Local SGD: several steps alone, then agree on the mean of the parameters."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.sync.rounds import Rounds, State, require_late, require_state, require_steps


@dataclass(frozen=True)
class Local(Rounds):
    """H local steps, then average the parameters.

    What travels is the pseudo-gradient x_start − x_end, so any codec serves; every worker then continues from
    x_start − mean (Stich, Algorithm 1, written as a difference).

    Args:
        H: local steps per round; 1 is bsp, up to rounding, for an optimizer that is linear in the gradient.
        overlap: steps made while the exchange travels; what they changed is added to the mean when it lands. H is
            CoCoD-SGD (Shen et al., arXiv:1906.12043, Algorithm 1): the mean comes one round late.
        state: what becomes of the optimizer's state in a round: each worker's own is `kept` (the default: both papers
            analyse SGD, which has none), `averaged` like the parameters, or `reset`.
    """

    name: ClassVar[str] = "local"
    title: ClassVar[str] = "H local steps, then average the parameters"
    paper: ClassVar[str] = (
        "Stich, Local SGD Converges Fast, arXiv:1805.09767; Yu et al., PR-SGD, arXiv:1807.06629; overlapped: "
        "Shen et al., CoCoD-SGD, arXiv:1906.12043"
    )
    example: ClassVar[str] = "local:8"
    needs_agreement: ClassVar[bool] = False
    by_fragment: ClassVar[bool] = True

    H: int
    _: KW_ONLY
    overlap: int = 0
    state: str = "kept"

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_late(self, self.overlap, self.H)
        require_state(self, self.state, self.overlap)

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H

    @property
    def steps_late(self) -> int:  # noqa: D102
        return self.overlap

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)
