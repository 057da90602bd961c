"""MuLoCo: DiLoCo with Muon inside."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.sync.rounds import Outer, Rounds, State, require_late, require_state, require_steps


@dataclass(frozen=True)
class MuLoCo(Rounds):
    """diloco:H whose inner optimizer is Muon for matrices, and AdamW beside it for the rest.

        muon, adamw = torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=1e-3)
        run = tw.attach(model, [muon, adamw], "muloco:30/allreduce/int2+ef")

    Under another inner optimizer it is `diloco`. What Muon's workers change, orthogonal and of one size, cancels less
    in the mean than AdamW's and bears more compression: the paper sends it in 2 bits with feedback, an eighth of
    DiLoCo's bytes, and reports a better loss than DiLoCo's with AdamW, and no worse one than dense Muon's.

    Args:
        H: inner steps per round.
        outer_lr: rate of the outer step.
        outer_momentum: Nesterov momentum of the outer step.
        overlap: steps made while the exchange travels; as in `diloco`.
        state: of the inner optimizers.
    """

    name: ClassVar[str] = "muloco"
    title: ClassVar[str] = "DiLoCo with Muon inside"
    paper: ClassVar[str] = "Thérien et al. 2025, MuLoCo, arXiv:2505.23725; Jordan et al. 2024, Muon"
    example: ClassVar[str] = "muloco:30"
    by_fragment: ClassVar[bool] = True

    H: int
    _: KW_ONLY
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    overlap: int = 0
    state: str = "kept"

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        require_late(self, self.overlap, self.H)
        require_state(self, self.state, self.overlap)
        _ = self.outer

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H

    @property
    def steps_late(self) -> int:  # noqa: D102
        return self.overlap

    @property
    def optimizer_state(self) -> State:  # noqa: D102
        return require_state(self, self.state)

    @property
    def outer(self) -> Outer:  # noqa: D102
        return Outer(lr=self.outer_lr, momentum=self.outer_momentum, nesterov=self.outer_momentum > 0)
