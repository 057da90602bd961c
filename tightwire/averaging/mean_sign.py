"""The mean of signs: each worker's in one bit, and back how many voted which way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.compression.votes import VoteMessage

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport


@final
@dataclass(frozen=True)
class MeanSign(AveragingMethod):
    """Sends each worker's signs, one bit each, to the owner of their part, and their sum back in ⌈log₂(2n + 2)⌉ bits.

    The mean, from −1 to 1, takes the place of that of gradients, so that an optimizer's step is its learning rate or
    less; see `sign`, which sends back one bit, for who abstains. What is left over, x − sign(x), is a matter of size
    and not to be fed back. A world of one is plain training, which takes no signs.

    Attributes:
        block: elements that abstain together; a multiple of 8.
    """

    name: ClassVar[str] = "meansign"
    title: ClassVar[str] = "the mean of signs"
    paper: ClassVar[str] = "Liu et al. 2024, Distributed Lion, arXiv:2404.00438, Algorithm 1 (averaging)"
    promise: ClassVar[str] = "As good as voting, with log n bits (Liu et al. 2024)."
    seen: ClassVar[str] = "Not seen; see lion."
    example: ClassVar[str] = "meansign+lion"
    keeps_optimizer: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    no_feedback: ClassVar[str] = "signs have no leftover to feed back"

    block: int = 1024

    def __post_init__(self) -> None:
        VoteMessage(self.block)

    def sum_bits(self, workers: int) -> int:
        """Returns in how many bits a sum travels: one of −n to n, or that there is none."""
        return (2 * workers + 1).bit_length()

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of all parts but the own, and of the own sums n − 1 times; see `AveragingMethod`."""
        sizes = split(sum(map(math.prod, shapes)), workers, PIECE_MULTIPLE)
        votes = [VoteMessage(self.block).wire_bytes(size) for size in sizes]
        return sum(votes) - votes[rank] + (workers - 1) * self.sum_bits(workers) * -(-sizes[rank] // 8)

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._mean_sign import MeanSignAverager

        shapes = [slot.shape for slot in bucket.slots]
        return MeanSignAverager(
            transport,
            bucket,
            VoteMessage(self.block),
            sum_bits=self.sum_bits(transport.size),
            num_bytes=self.bytes_sent(shapes, bucket.dtype.itemsize, transport.size, transport.rank),
            tag=tag,
        )
