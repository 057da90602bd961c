"""A stage that raises sparsity in the first rounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import Answers, Refusal, Sender
from tightwire.compression.dense_rounds import DenseFirst, _require_rounds
from tightwire.compression.stage import Stage, refuse


@final
@dataclass(frozen=True)
class WarmUp(Stage):
    """Raises sparsity in four equal stretches, 75, 93.75, 98.4 and 99.6 %, up to the codec's own.

    >>> from tightwire.compression import TopK
    >>> [str(WarmUp(100).sender_at(TopK(0.001), n)) for n in (1, 26, 100, 101)]
    ['topk:0.25', 'topk:0.0625', 'topk:0.00390625', 'topk:0.001']

    Attributes:
        rounds: of the four stretches together.
    """

    name: ClassVar[str] = "warmup"
    title: ClassVar[str] = "sparsity that grows in the first rounds"
    paper: ClassVar[str] = "Lin et al. 2018, Deep Gradient Compression, arXiv:1712.01887, section 3.3"
    promise: ClassVar[str] = "Sparsity that grows keeps the first steps from being lost (Lin et al. 2018)."
    seen: ClassVar[str] = "Seen."
    example: ClassVar[str] = "topk:0.001+ef+warmup:1000"
    place: ClassVar[int] = 3

    rounds: int

    def __post_init__(self) -> None:
        _require_rounds(self, self.rounds)

    def sender_at(self, sender: Sender, round_number: int) -> Sender:
        """Returns the codec at the ratio of this round; its own where that keeps more."""
        if round_number > self.rounds:
            return sender
        stretch = 4 * (round_number - 1) // self.rounds
        ratio: float = vars(sender)["ratio"]  # refused where there is none
        return dataclasses.replace(sender, ratio=max(ratio, 0.25 ** (stretch + 1)))  # type: ignore[call-arg]

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a codec that keeps no share of its elements."""
        sender = plan.compression[0]
        if (refusal := super().refusal(plan)) or hasattr(sender, "ratio"):
            return refusal
        stages = [DenseFirst(self.rounds) if stage == self else stage for stage in plan.compression[1:]]
        return refuse(plan, f"{sender} has no ratio that {self} could bring down.", stages)
