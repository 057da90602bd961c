"""DoubleSqueeze: compressed on the way to an owner, and again on the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.answers import Rate
from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.catalogue import parse_compression
from tightwire.compression import Codec
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport


@final
@dataclass(frozen=True)
class DoubleSqueeze(AveragingMethod):
    """Sends each owner its part of the bucket by a codec, and the owner's mean of it to all by the same codec.

    Algorithm 1, every worker being the server of a part. An owner's own part stays uncompressed on the way in, so
    that under `+ef` its leftover, n times the second error, enters after decoding, as the server's does in the
    paper. Any codec serves, also one whose messages have no sum.

    Attributes:
        codec: its text, as in `doublesqueeze:topk:0.01` or `doublesqueeze:onebit`.
    """

    name: ClassVar[str] = "doublesqueeze"
    title: ClassVar[str] = "compressed to the owners and back"
    paper: ClassVar[str] = "Tang et al. 2019, arXiv:1905.05957"
    promise: ClassVar[str] = "The rate of SGD though both ways are compressed (Tang et al. 2019)."
    seen: ClassVar[str] = (
        "Seen for momenta in one bit; with top-k the way back costs more steps than one way alone."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="O(1/√(nT) + 1/T^(2/3) + 1/T)",
        assumes="smooth non-convex loss, bounded variance, bounded errors of the codec",
        speed_up="linear: n, once T is above n³",
        paper="Tang et al. 2019, arXiv:1905.05957, corollary 2",
    )
    example: ClassVar[str] = "doublesqueeze:topk:0.01+ef"

    codec: str = "efsign"

    def __post_init__(self) -> None:
        (codec, *others) = parse_compression(self.codec)
        if not isinstance(codec, Codec) or others or codec.lossless:
            raise PlanError(
                f"doublesqueeze cannot send {self.codec}: give one codec that compresses, as in "
                "doublesqueeze:topk:0.01; stages such as +ef go behind it."
            )

    @property
    def sender(self) -> Codec:
        """The codec itself."""
        codec = parse_compression(self.codec)[0]
        assert isinstance(codec, Codec)
        return codec

    @property
    def absolute(self) -> bool:  # type: ignore[override]
        """Whether the codec is."""
        return self.sender.absolute

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of all parts but the own, and of the own mean n − 1 times; see `AveragingMethod`."""
        sizes = split(sum(map(math.prod, shapes)), workers, PIECE_MULTIPLE)
        parts = [self.sender.wire_bytes(size, itemsize) for size in sizes]
        return sum(parts) - parts[rank] + (workers - 1) * parts[rank]

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._double_squeeze import DoubleSqueezeAverager

        shapes = [slot.shape for slot in bucket.slots]
        num_bytes = self.bytes_sent(shapes, bucket.dtype.itemsize, transport.size, transport.rank)
        return DoubleSqueezeAverager(transport, bucket, self.sender, num_bytes=num_bytes, tag=tag)
