"""A codec that rounds stochastically to levels that double, on the scale of the norm."""

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
class NUQSGD(_UniformCodec):
    """Sends ‖x‖₂ · sign(xᵢ) · hᵢ per block, hᵢ ∈ {0, 2⁻ˢ … ½, 1} rounded stochastically; unbiased.

    Levels are packed in 2, 4 or 8 bits, the fewest that hold 2s + 3 values, instead of the paper's Elias code,
    so that the size is known before encoding.

    Attributes:
        s: the lowest level above zero is 2⁻ˢ; 0 … 126.
        block: elements that share a norm (the paper's bucket); a multiple of 8.
    """

    name: ClassVar[str] = "nuqsgd"
    title: ClassVar[str] = "random rounding to levels that double, on the scale of the norm"
    paper: ClassVar[str] = "Ramezani-Kebrya et al. 2021, NUQSGD, arXiv:1908.06077"
    promise: ClassVar[str] = "Less variance than qsgd at the same bits (Ramezani-Kebrya et al. 2021)."
    seen: ClassVar[str] = "Seen."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(√((1 + ω)/(nT))), ω = O(√d) at few levels",
        assumes="smooth loss, unbiased gradients of bounded second moment",
        speed_up="linear: n, at (1 + ω) times the variance",
        paper="Ramezani-Kebrya et al. 2021, arXiv:1908.06077, theorems 1 and 4",
    )
    unbiased: ClassVar[bool] = True

    s: int = 6
    block: int = 512

    def __post_init__(self) -> None:
        check_block(self, self.block)
        if not 0 <= self.s <= 126:
            raise PlanError(
                f"nuqsgd with levels down to 2**-{self.s} does not fit in a byte; give 0 … 126, as in nuqsgd:6 "
                "(4 bits)."
            )

    def grid(self) -> Grid:
        """Returns the grid whose top level is the norm."""
        levels = self.s + 1
        bits = next(bits for bits in (2, 4, 8) if 2 * levels + 1 <= 2**bits)
        return Grid(block=self.block, bits=bits, levels=levels, norm="l2", stochastic=True, doubling=True)

    def contraction(self, numel: int) -> float | None:
        """Returns 7/8 − min(d/4ˢ⁺¹, √d/2ˢ), where that is above 0.

        Between levels ratio 2 apart the variance is at most x²/8; below the lowest, at most 4⁻ˢ/4 and x/2ˢ.
        """
        d = min(self.block, max(numel, 1))
        delta = 7 / 8 - min(d / 4 ** (self.s + 1), math.sqrt(d) / 2**self.s)
        return delta if delta > 0 else None

    def normal_error(self, numel: int) -> float:
        """Returns that of levels from √d/2ˢ to √d; see `Codec.normal_error`."""
        norm = math.sqrt(min(self.block, max(numel, 1)))
        levels = (0.0, *(norm / 2**j for j in range(min(self.s, 64), -1, -1)))
        return _normal.rounding_to(levels, stochastic=True)
