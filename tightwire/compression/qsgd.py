"""A codec that rounds stochastically on the scale of the norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire.answers import Rate
from tightwire.compression import _normal
from tightwire.compression._uniform import _UniformCodec
from tightwire.compression.checks import check_block
from tightwire.errors import PlanError
from tightwire.kernels.formats import Grid

if TYPE_CHECKING:
    pass


@final
@dataclass(frozen=True)
class QSGD(_UniformCodec):
    """Sends ‖x‖₂ · sign(xᵢ) · ξᵢ/s per block, ξᵢ ∈ {0 … s} rounded stochastically (equation 3.1); unbiased.

    Levels are packed in 2, 4 or 8 bits, the fewest that hold 2s + 1 values, instead of the paper's Elias code,
    so that the size is known before encoding.

    Attributes:
        s: levels above zero, 1 … 127.
        block: elements that share a norm (the paper's bucket size d); a multiple of 8.
    """

    name: ClassVar[str] = "qsgd"
    title: ClassVar[str] = "random rounding on the scale of the norm"
    paper: ClassVar[str] = "Alistarh et al. 2017, arXiv:1610.02132"
    promise: ClassVar[str] = (
        "SGD's rate times the variance that rounding adds; 8 bits as good as floats (Alistarh et al. 2017)."
    )
    seen: ClassVar[str] = "Seen for 8 bits; with 3 bits the variance costs steps, as it says."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(√((1 + ω)/(nT))), ω = min(d/s², √d/s)",
        assumes="smooth loss, unbiased gradients of bounded second moment",
        speed_up="linear: n, at (1 + ω) times the variance",
        paper="Alistarh et al. 2017, arXiv:1610.02132, theorems 3.4 and 3.5",
    )
    unbiased: ClassVar[bool] = True

    s: int = 127
    block: int = 512

    def __post_init__(self) -> None:
        check_block(self, self.block)
        if not 1 <= self.s <= 127:
            raise PlanError(
                f"qsgd with {self.s} levels does not fit in a byte; give 1 … 127, as in qsgd:7 (4 bits)."
            )

    def grid(self) -> Grid:
        """Returns the grid whose top level is the norm."""
        bits = next(bits for bits in (2, 4, 8) if 2 * self.s + 1 <= 2**bits)
        return Grid(block=self.block, bits=bits, levels=self.s, norm="l2", stochastic=True)

    def contraction(self, numel: int) -> float | None:
        """Returns 1 − min(d/s², √d/s), from lemma 3.1, where that is above 0."""
        d = min(self.block, max(numel, 1))
        delta = 1 - min(d / self.s**2, math.sqrt(d) / self.s)
        return delta if delta > 0 else None

    def normal_error(self, numel: int) -> float:
        """Returns that of multiples of √d/s; see `Codec.normal_error`."""
        step = math.sqrt(min(self.block, max(numel, 1))) / self.s
        return _normal.rounding_to_steps(step, self.s, stochastic=True)
