"""The contract of averaging methods: what that talks while it compresses.

A codec's messages are made alone and carried by any program. An averaging method has rounds of its own, in which what a
worker sends depends on what it heard.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tightwire.answers import Answers, Refusal, Sender, text_with
from tightwire.compression import Codec, Stage
from tightwire.compression.stage import refuse

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport

Shape = tuple[int, ...]

# How many runners one averager may have under way on one transport.
TAGS = 4


@dataclass(frozen=True)
class AveragingMethod(Sender, abc.ABC):
    """Says what is sent, and by which exchange; a frozen value, and the averagers it builds do the work.

    Class attributes:
        lossless: whether the mean is exact up to rounding.
        unbiased: whether the mean's expectation is the exact mean, so that leftovers may be dropped.
        votes: whether what comes out stands for the mean without being one: its size is the same whatever the size
            of what came in, nothing is left over, and the law of the mean does not hold.
        bounded: whether `bytes_sent` is a bound, because sizes depend on content. Its averagers agree on lengths before
            they send, and say by `spared_bytes` how much less than the bound that is.
        no_feedback: why what is left over is not to be sent again; empty where it may be.
        wire_version: of its messages and their order; see `Codec`. A codec inside counts for itself.
    """

    bounded: ClassVar[bool] = False
    no_feedback: ClassVar[str] = ""

    @abc.abstractmethod
    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the payload bytes that `rank` sends in one run: exactly what a counting transport sees.

        Args:
            shapes: of the bucket's tensors, in order; dimensions from the slowest in memory to the fastest.
            itemsize: bytes per element.
            workers: how many.
            rank: whose bytes.
        """

    def expected_bytes(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes that a run may be expected to send, for predictions; arguments as for `bytes_sent`.

        That is `bytes_sent`, unless sizes depend on content and there is a prior for that of gradients.
        """
        return self.bytes_sent(shapes, itemsize, workers, rank)

    @abc.abstractmethod
    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; sends nothing.

        Args:
            transport: between the ranks.
            bucket: its tensors, dtype and device.
            tag: the first of `TAGS` that are the averager's own; the same on every rank.
        """

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a place that is not the codec's, an architecture chosen for codecs, and feedback that cannot be."""
        if plan.compression[0] != self or any(
            isinstance(s, Codec | AveragingMethod) for s in plan.compression[1:]
        ):
            others = [str(stage) for stage in plan.compression if isinstance(stage, Stage)]
            return Refusal(
                reason=f"{plan.compression_text} has more than one way to compress: {self} goes alone.",
                nearest=(text_with(plan, compression="+".join([str(self), *others])),),
            )
        if str(plan.architecture) != "allreduce":
            return Refusal(
                reason=f"{self} cannot travel by {plan.architecture}: it brings an exchange of its own.",
                nearest=(text_with(plan, architecture="allreduce"),),
            )
        stages = [stage for stage in plan.compression if isinstance(stage, Stage)]
        kept = [stage for stage in stages if stage.serves_dense]
        if not self.no_feedback or kept == stages:
            return None
        odd = "+".join(str(stage) for stage in stages if stage not in kept)
        return refuse(plan, f"{self}+{odd} cannot work: {self.no_feedback}.", kept)
