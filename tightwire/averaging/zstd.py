"""Lossless compression of what is averaged: fewer bytes where bytes repeat, and the same mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.program import split
from tightwire.architecture.allreduce.traffic import PIECE_MULTIPLE
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport

# Of the length of one plane, in the header of a part.
LENGTH_BYTES = 8


@final
@dataclass(frozen=True)
class Zstd(AveragingMethod):
    """Sends each owner its part of the bucket, and the mean of it back to all, as byte planes squeezed by zstd.

    The bytes of all elements that stand at one place travel together: those of sign and exponent repeat, those of
    mantissas do not and travel raw, as does whatever zstd does not shorten. Gradients in float32 or bfloat16 that are
    dense shrink little; those with many zeros much. How much is known when it is squeezed and no sooner: lengths are
    exchanged first, then messages of exactly these. `bytes_sent` is the bound, all planes raw.

    Needs Python 3.14, or the package zstandard, on every rank.

    Attributes:
        level: of zstd, 1 … 19; higher ones are slower than most wires.
        delta: whether elements are exclusive-ored with those of the last round that counted, which pays where few
            bits change. A resumed run starts anew.
    """

    name: ClassVar[str] = "zstd"
    title: ClassVar[str] = "byte planes, each squeezed where that pays, lossless"
    paper: ClassVar[str] = "Collet and Kucherawy 2021, RFC 8878; byte planes: HDF5's shuffle filter"
    promise: ClassVar[str] = "Exact; as many bytes as the data allow (Collet and Kucherawy 2021)."
    seen: ClassVar[str] = "Nothing is lost; sent bytes are counted in every run."
    lossless: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True
    bounded: ClassVar[bool] = True
    # Level 1 squeezes some 0.5 GB/s on such a core as adds float32 at 8 GB/s.
    prior_passes: ClassVar[float] = 16.0
    on_host: ClassVar[bool] = True

    level: int = 1
    delta: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 19:
            raise PlanError(f"zstd has no level {self.level} here: give 1 … 19, as in zstd:3.")

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of one run where nothing shrinks; see `AveragingMethod.bytes_sent`."""
        sizes = split(sum(map(math.prod, shapes)), workers, PIECE_MULTIPLE)
        planes = [itemsize * (size + LENGTH_BYTES) for size in sizes]
        return sum(planes) + (workers - 2) * planes[rank]

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`.

        Raises:
            PlanError: there is no zstd here.
        """
        from tightwire.averaging._packed import PackedAverager
        from tightwire.averaging._zstandard import zstandard
        from tightwire.averaging._zstd import SqueezedPart

        squeezer, dtype = zstandard(self.level), bucket.dtype
        shapes = [slot.shape for slot in bucket.slots]
        return PackedAverager(
            transport,
            bucket,
            lambda numel: SqueezedPart(numel, dtype, squeezer, delta=self.delta),
            num_bytes=self.bytes_sent(shapes, dtype.itemsize, transport.size, transport.rank),
            tag=tag,
        )
