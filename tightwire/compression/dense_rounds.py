"""Stages that send some rounds uncompressed.

Which ones is a function of the round's number alone, so that all ranks agree and bytes are known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import Sender
from tightwire.compression.casts import Identity
from tightwire.compression.stage import Stage
from tightwire.errors import PlanError


@final
@dataclass(frozen=True)
class DenseFirst(Stage):
    """Sends everything in the first rounds, until gradients have calmed down.

    Attributes:
        rounds: how many.
    """

    name: ClassVar[str] = "dense-first"
    title: ClassVar[str] = "uncompressed in the first rounds"
    paper: ClassVar[str] = (
        "Vogels, Karimireddy and Jaggi 2019, arXiv:1905.13727 (start_powerSGD_iter in PyTorch)"
    )
    promise: ClassVar[str] = (
        "Variance, or factors, are learnt before anything is compressed (Vogels et al. 2019; Tang et al. "
        "2021)."
    )
    seen: ClassVar[str] = "Seen within 1-bit Adam."
    example: ClassVar[str] = "int4+ef+dense-first:1000"
    place: ClassVar[int] = 4

    rounds: int

    def __post_init__(self) -> None:
        _require_rounds(self, self.rounds)

    def sender_at(self, sender: Sender, round_number: int) -> Sender:
        """Returns the identity in the first rounds."""
        return Identity() if round_number <= self.rounds else sender


@final
@dataclass(frozen=True)
class DenseEvery(Stage):
    """Sends everything in every k-th round, leftovers included, so that nothing stays behind for longer.

    Attributes:
        rounds: k, at least 2.
    """

    name: ClassVar[str] = "dense-every"
    title: ClassVar[str] = "uncompressed in every k-th round"
    paper: ClassVar[str] = "Renggli et al. 2019, SparCML, arXiv:1802.08021 (periodic full exchange)"
    promise: ClassVar[str] = (
        "Full exchanges now and then keep replicas of lossy rounds together (Renggli et al. 2019)."
    )
    example: ClassVar[str] = "topk:0.01+ef+dense-every:100"
    place: ClassVar[int] = 5
    mixes: ClassVar[bool] = True

    rounds: int

    def __post_init__(self) -> None:
        _require_rounds(self, self.rounds, least=2)

    def sender_at(self, sender: Sender, round_number: int) -> Sender:
        """Returns the identity in every k-th round."""
        return Identity() if round_number % self.rounds == 0 else sender


@final
@dataclass(frozen=True)
class DenseGrowing(Stage):
    """Sends everything in rounds that grow ever further apart: after every `kappa` of them the distance doubles.

    >>> from tightwire.compression import Int8
    >>> [n for n in range(1, 20) if isinstance(DenseGrowing(3).sender_at(Int8(), n), Identity)]
    [1, 2, 3, 4, 6, 8, 10, 14, 18]

    Attributes:
        kappa: how many at one distance; 16 in the paper.
        until: the last round that may be one; 0: there is no last one. The authors' code ends them where the learning
            rate's warm-up does, or never (`var_freeze_step`).
    """

    name: ClassVar[str] = "dense-growing"
    title: ClassVar[str] = "uncompressed in rounds ever further apart"
    paper: ClassVar[str] = "Lu et al. 2022, 0/1 Adam, arXiv:2202.06009, section 6 (the policy T_v)"
    promise: ClassVar[str] = "Exact rounds may be ever rarer (Lu et al. 2022)."
    seen: ClassVar[str] = "Seen: 0/1 Adam within 0.5 % of 1-bit Adam."
    example: ClassVar[str] = "doublesqueeze+ef+ema:0.9+dense-growing:16"
    place: ClassVar[int] = 5
    mixes: ClassVar[bool] = True

    kappa: int
    until: int = 0

    def __post_init__(self) -> None:
        _require_rounds(self, self.kappa)
        _require_rounds(self, self.until, least=0)

    def sender_at(self, sender: Sender, round_number: int) -> Sender:
        """Returns the identity in rounds 1 + Σ 2^⌊j/κ⌋."""
        if 0 < self.until < round_number:
            return sender
        past, distance = round_number - 1, 1
        while past > self.kappa * distance:  # κ rounds at each distance
            past -= self.kappa * distance
            distance *= 2
        return Identity() if past % distance == 0 else sender


def _require_rounds(stage: Stage, rounds: int, least: int = 1) -> None:
    if rounds < least:
        raise PlanError(f"{stage} has too few rounds to do anything: give at least {least}.")
