"""EDiT: DiLoCo whose mean is guarded against odd pseudo-gradients."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from tightwire.sync.rounds import NormGuard, Outer, Rounds, require_steps


@dataclass(frozen=True)
class EDiT(Rounds):
    """diloco:H whose pseudo-gradients are dropped if their norm is odd, weighted by it, and clipped (algorithm 2).

    A worker whose norm G = ‖x_start − x_end‖ is `z` standard deviations above the moving mean counts nothing; if all
    are, the round is dropped and all go back to its start. The others count exp(−G)/Σ exp(−G), and a mean longer than
    `clip` is shortened to it. The paper takes norms module by module, as its shards synchronise layer by layer, and
    each worker keeps statistics of its own; here they are the model's (under streaming the fragment's) and shared:
    they travel with the message that begins a round. Moving means take 0.02 of a new norm, and 3 deviations are odd, as
    in the authors' code (DLRover's ATorch), which waits for 120 norms before it calls anything odd, and
    raises the three where recent norms spread more; here it is 10 rounds, with norms of all workers in each. It reports
    better loss than DiLoCo and local SGD on language models, and none of their spikes on unclean data.

    Args:
        H: inner steps per round.
        z: standard deviations above which a norm is odd.
        clip: longest step of the mean.
        outer_lr: rate of the outer step.
        outer_momentum: Nesterov momentum of the outer step.
    """

    name: ClassVar[str] = "edit"
    title: ClassVar[str] = "DiLoCo guarded against odd pseudo-gradients"
    paper: ClassVar[str] = "Cheng et al. 2024, EDiT, arXiv:2412.07210, algorithm 2"
    promise: ClassVar[str] = (
        "DiLoCo's loss on clean data, and steady where some workers' gradients are odd (Cheng et al. 2024)."
    )
    seen: ClassVar[str] = "The first is seen here; no study has odd workers, a test has."
    example: ClassVar[str] = "edit:64"
    by_fragment: ClassVar[bool] = True

    H: int
    _: KW_ONLY
    z: float = 3.0
    clip: float = 10.0
    outer_lr: float = 0.7
    outer_momentum: float = 0.9

    def __post_init__(self) -> None:
        require_steps(self, "H", self.H)
        _ = self.outer, self.guard

    @property
    def steps_per_round(self) -> int:  # noqa: D102
        return self.H

    @property
    def outer(self) -> Outer:  # noqa: D102
        return Outer(lr=self.outer_lr, momentum=self.outer_momentum, nesterov=self.outer_momentum > 0)

    @property
    def guard(self) -> NormGuard:  # noqa: D102
        return NormGuard(z=self.z, clip=self.clip)
