"""MuLoCo: DiLoCo with Muon inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tightwire.sync.rounds import OuterRounds


@dataclass(frozen=True)
class MuLoCo(OuterRounds):
    """diloco:H whose inner optimizer is Muon for matrices, and AdamW beside it for the rest.

        muon, adamw = torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=1e-3)
        run = tw.attach(model, [muon, adamw], "muloco:30/allreduce/int2+ef")

    Under another inner optimizer it is `diloco`. What Muon's workers change, orthogonal and of one size, cancels less
    in the mean than AdamW's and bears more compression: the paper sends it in 2 bits with feedback, an eighth of
    DiLoCo's bytes, and reports a better loss than DiLoCo's with AdamW, and no worse one than dense Muon's.

    The defaults are DiLoCo's. The authors' configuration (github.com/facebookresearch/MuLoCo) for two workers is
    `muloco:30,outer_lr=0.9,outer_momentum=0.8` around Muon without Nesterov momentum, and with two bits
    `muloco:30,outer_lr=0.8`, whose feedback decays by 0.9, as in `int2+ef:0.9`.

    Args:
        H: inner steps per round.
        outer_lr: rate of the outer step.
        outer_momentum: Nesterov momentum of the outer step.
        overlap: steps made while the exchange travels; as in `diloco`.
        state: of the inner optimizers.
        quorum: share of the workers with which a round ends without the others; as in `diloco`.
        grace: for how long it waits for them all the same.
    """

    name: ClassVar[str] = "muloco"
    title: ClassVar[str] = "DiLoCo with Muon inside"
    paper: ClassVar[str] = "Thérien et al. 2025, MuLoCo, arXiv:2505.23725; Jordan et al. 2024, Muon"
    promise: ClassVar[str] = (
        "Better than DiLoCo with AdamW inside, also in 2 bits with feedback (Thérien et al. 2025)."
    )
    seen: ClassVar[str] = (
        "Seen beside DiLoCo with SGD inside, by 5 % of the loss; AdamW inside, and 2 bits, were not tried."
    )
    keeps_optimizer: ClassVar[bool] = False
    example: ClassVar[str] = "muloco:30"
