"""Majority vote: the outcome says which way to step, not how far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.answers import Answers, Rate, Refusal, text_with
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.compression import Stage
from tightwire.compression.votes import VoteMessage

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport


@final
@dataclass(frozen=True)
class MajorityVote(AveragingMethod):
    """Sends each worker's signs, one bit each, to the owner of their part, and back which sign has most votes.

    What takes the place of the mean is 1 or −1 (algorithm 1), so an optimizer's step is its learning rate: give it
    a smaller one. A block in which a worker has only zeros does not vote there, and stays 0 if nobody votes. A
    single zero votes at random, and so is a tie decided: right on average, where the authors' code counts zeros as
    positive. One NaN or Inf makes its block NaN for all. A world of one is plain training, which takes no signs.

    Attributes:
        block: elements that abstain together; a multiple of 8.
    """

    name: ClassVar[str] = "sign"
    title: ClassVar[str] = "signs, by majority vote"
    paper: ClassVar[str] = "Bernstein et al. 2019, arXiv:1810.05291, Algorithm 1"
    promise: ClassVar[str] = (
        "Converges though up to half of the workers are odd, at a bit both ways (Bernstein et al. 2019)."
    )
    seen: ClassVar[str] = "With momentum it comes close here; no study has odd workers."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√T) of the 1-norm of the gradient, squared",
        assumes="smooth loss, noise that is unimodal and symmetric in every element, batches that grow",
        speed_up="√n less noise, as for SGD",
        paper="Bernstein et al. 2019, arXiv:1810.05291, theorem 2",
    )
    example: ClassVar[str] = "sign+momentum:0.9"
    votes: ClassVar[bool] = True
    keeps_optimizer: ClassVar[bool] = False
    weighs: ClassVar[bool] = False

    block: int = 1024

    def __post_init__(self) -> None:
        VoteMessage(self.block)

    @property
    def sender(self) -> VoteMessage:
        """How votes, and their outcome, are written."""
        return VoteMessage(self.block)

    def is_sized(self, shape: Shape) -> bool:
        """Whether the outcome is 1 or -1: always."""
        return True

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of all parts but the own, and of the own outcome n − 1 times; see `AveragingMethod`."""
        sizes = split(sum(map(math.prod, shapes)), workers, PIECE_MULTIPLE)
        parts = [self.sender.wire_bytes(size, itemsize) for size in sizes]
        return sum(parts) + (workers - 2) * parts[rank]

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._majority_vote import MajorityVoteAverager

        shapes = [slot.shape for slot in bucket.slots]
        num_bytes = self.bytes_sent(shapes, bucket.dtype.itemsize, transport.size, transport.rank)
        return MajorityVoteAverager(transport, bucket, self.sender, num_bytes=num_bytes, tag=tag)

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses stages that need a leftover, or that would let means in among votes."""
        if refusal := super().refusal(plan):
            return refusal
        stages = plan.compression[1:]
        kept = [stage for stage in stages if isinstance(stage, Stage) and stage.serves_dense]
        if len(kept) == len(stages):
            return None
        odd = "+".join(str(stage) for stage in stages if stage not in kept)
        scaled = ["doublesqueeze:efsign", *map(str, stages)]
        return Refusal(
            reason=f"{self}+{odd} cannot work: a vote has no leftover to feed back, and its outcome is 1 or -1, which "
            f"does not mix with means in the rounds or tensors that {odd} would send uncompressed.",
            nearest=(
                text_with(plan, compression="+".join(map(str, (self, *kept)))),
                text_with(plan, compression="+".join(scaled)),
            ),
        )
