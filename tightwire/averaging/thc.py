"""THC: codes that owners add up without decoding them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.architecture.allreduce.program import split
from tightwire.averaging.method import AveragingMethod, Shape
from tightwire.compression._rotated import check_rotated_block, num_rows, padded
from tightwire.errors import PlanError

if TYPE_CHECKING:
    from tightwire.averaging.averager import Averager
    from tightwire.buckets import BucketLayout
    from tightwire.transport import Transport

NORM_BYTES = 4
# Parts end where a byte of every plane ends.
PART_MULTIPLE = 8
_NORMAL = NormalDist()


@final
@dataclass(frozen=True)
class THC(AveragingMethod):
    """Rotates alike on all workers, rounds to levels of one table, and adds up the table's integers.

    Workers tell each other the norms of their blocks; the largest norm of a block gives all the same range, ±t of its
    root mean squares, with P(|normal| > t) = `p`. A rotated element, cut to that range, is rounded stochastically to
    one of 2^bits levels, which are integers of a table from 0 to `granularity`. An owner of a part adds up integers,
    never decoding, and sends the sums back in as many bits as they need: nothing is lost on the second way. The table
    is the one of least error for normal elements (section 5.2), here among those that are symmetric. Blocks are turned
    twice (see `eden`); the authors' code (github.com/SophiaLi06/BytePS_THC) turns all that is sent together once.

    The paper, whose owners are servers or switches, reports 1.40 to 1.47 times the speed of uncompressed training to
    the same accuracy, at 4 bits up and 8 bits down. Cutting makes a small bias, which `+ef` feeds back.

    Attributes:
        bits: of an element on the way to its owner, 2 to 8.
        granularity: the largest integer of the table, at least 2^bits − 1, at which levels are even.
        p: odds that an element is cut.
        block: elements that are rotated together; a power of two.
    """

    name: ClassVar[str] = "thc"
    title: ClassVar[str] = "rotated, in codes that are added up without decoding"
    paper: ClassVar[str] = "Li et al. 2024, THC, NSDI, arXiv:2302.08545, sections 4 and 5"
    promise: ClassVar[str] = "4 bits, added up without decoding, at the accuracy of floats (Li et al. 2024)."
    seen: ClassVar[str] = "Seen, with feedback."
    example: ClassVar[str] = "thc+ef"

    bits: int = 4
    granularity: int = 30
    p: float = 0.03125
    block: int = 4096

    def __post_init__(self) -> None:
        check_rotated_block("thc", self.block)
        if not 2 <= self.bits <= 8:
            raise PlanError(f"thc cannot send {self.bits} bits of an element: give 2 to 8, as in thc:4.")
        if not 2**self.bits - 1 <= self.granularity <= 1023:
            raise PlanError(
                f"thc with granularity={self.granularity} has no table of {2**self.bits} integers; give "
                f"{2**self.bits - 1} to 1023."
            )
        if not 0 < self.p < 1:
            raise PlanError(
                f"thc with p={self.p} cuts all or nothing: give odds above 0 and below 1, as in p=0.03."
            )

    @property
    def reach(self) -> float:
        """How far from zero elements are cut, in root mean squares: the paper's t_p."""
        return _NORMAL.inv_cdf(1 - self.p / 2)

    @property
    def table(self) -> tuple[int, ...]:
        """The integer of each code, ascending."""
        return best_table(2**self.bits, self.granularity, self.reach)[0]

    @property
    def error(self) -> float:
        """The relative squared error of a mean of normal elements."""
        t, tail = self.reach, self.p / 2
        cut = 2 * ((1 + t * t) * tail - t * _NORMAL.pdf(t))
        return best_table(2**self.bits, self.granularity, t)[1] + cut

    def sum_bits(self, workers: int) -> int:
        """Returns in how many bits a sum travels back."""
        return (workers * self.granularity).bit_length()

    def bytes_sent(self, shapes: Sequence[Shape], itemsize: int, workers: int, rank: int) -> int:
        """Returns the bytes of norms to all, of parts to their owners, and of the own sums to all; see the contract."""
        numel = sum(map(math.prod, shapes))
        parts = split(padded(numel, self.block), workers, PART_MULTIPLE)
        others = workers - 1
        norms = others * NORM_BYTES * num_rows(numel, self.block)
        codes = self.bits * (sum(parts) - parts[rank]) // 8
        return norms + codes + others * self.sum_bits(workers) * parts[rank] // 8

    def build(self, transport: Transport, bucket: BucketLayout, *, tag: int) -> Averager:
        """Builds the averager of one bucket; see `AveragingMethod.build`."""
        from tightwire.averaging._thc import Coding, THCAverager

        shapes, workers = [slot.shape for slot in bucket.slots], transport.size
        num_bytes = self.bytes_sent(shapes, bucket.dtype.itemsize, workers, transport.rank)
        coding = Coding(
            table=self.table,
            bits=self.bits,
            sum_bits=self.sum_bits(workers),
            reach=self.reach,
            block=self.block,
            error=self.error,
        )
        sizes = split(padded(bucket.numel, self.block), workers, PART_MULTIPLE)
        return THCAverager(transport, bucket, coding, sizes, num_bytes=num_bytes, tag=tag)


@functools.cache
def best_table(size: int, granularity: int, reach: float) -> tuple[tuple[int, ...], float]:
    """Returns the symmetric table of least error for normal elements within ±reach, and that error.

    The levels of the lower half are chosen one after the other: what a choice costs depends on the level before it
    alone. Rounding x between levels a and b stochastically costs (b − x)(x − a).

    >>> best_table(4, 3, 2.0)[0], best_table(4, 8, 2.0)[0]
    ((0, 1, 2, 3), (0, 3, 5, 8))
    """
    places = [reach * (2 * level / granularity - 1) for level in range(granularity + 1)]
    last = (granularity - 1) // 2
    # Of the best choices so far, by the level chosen last: what they cost, and which they are.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for _ in range(size // 2 - 1):
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for level in range(1, last + 1):
            found = [
                (cost + 2 * _rounding(places[before], places[level]), (*chosen, level))
                for before, (cost, chosen) in best.items()
                if before < level
            ]
            if found:
                longer[level] = min(found)
        best = longer
    cost, half = min(
        (cost + _rounding(places[level], places[granularity - level]), chosen)
        for level, (cost, chosen) in best.items()
    )
    return (*half, *(granularity - level for level in reversed(half))), cost


def _rounding(a: float, b: float) -> float:
    """Returns ∫(b − x)(x − a)φ(x)dx between a and b."""
    mass = _NORMAL.cdf(b) - _NORMAL.cdf(a)
    first = _NORMAL.pdf(a) - _NORMAL.pdf(b)
    second = mass + a * _NORMAL.pdf(a) - b * _NORMAL.pdf(b)
    return (a + b) * first - a * b * mass - second
