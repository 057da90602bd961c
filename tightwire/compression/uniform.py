"""Codecs that round every element to a uniform grid."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.checks import check_block
from tightwire.compression.codec import Combine
from tightwire.compression.widened import WidenedCodec
from tightwire.errors import PlanError
from tightwire.kernels.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDINGS = ("nearest", "stochastic")


@dataclass(frozen=True)
class _UniformCodec(WidenedCodec, abc.ABC):
    """Rounds each block to the multiples of its step. Subclasses say which grid.

    A non-finite element makes its whole block decode to NaN; a block below 2⁻¹⁰⁰ stays in the leftover.
    """

    combine: ClassVar[Combine] = "lossy"

    @abc.abstractmethod
    def grid(self) -> Grid:
        """Returns the grid, which the byte formula and the kernels share."""

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 4 bytes per block and the packed codes."""
        return self.grid().wire_bytes(numel)

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        kernels.of(x).quantise(x, message, self.grid(), seed)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        kernels.of(out).dequantise(message, out, self.grid(), add)


@dataclass(frozen=True)
class _AbsmaxCodec(_UniformCodec, abc.ABC):
    """Spreads the levels up to each block's largest magnitude."""

    bits: ClassVar[int]

    block: int = 1024
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        check_block(self, self.block)
        if self.rounding not in _ROUNDINGS:
            raise PlanError(
                f"{self.name} with rounding={self.rounding} does not exist; write {' or '.join(_ROUNDINGS)}."
            )

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Whether rounding is stochastic."""
        return self.rounding == "stochastic"

    def grid(self) -> Grid:
        """Returns the symmetric grid of this many bits; the lowest code is left unused."""
        return Grid(
            block=self.block, bits=self.bits, levels=2 ** (self.bits - 1) - 1, stochastic=self.unbiased
        )

    def contraction(self, numel: int) -> float | None:
        """Returns δ from ‖error‖² ≤ (B−1)·(step/2)² and ‖x‖² ≥ (levels·step)², over a block of B."""
        members, levels = min(self.block, max(numel, 1)), self.grid().levels
        delta = 1 - (members - 1) / (4 * levels**2)
        if self.unbiased:
            return delta if delta > 0 else None
        # Rounding to nearest never adds to an element, and the largest one is sent whole.
        return max(delta, 1 / members)


@final
@dataclass(frozen=True)
class Int8(_AbsmaxCodec):
    """Sends 8-bit integers and one float32 step per block, step = max|x|/127; n + 4·⌈n/block⌉ bytes.

    Attributes:
        block: elements that share a step; a multiple of 8.
        rounding: `nearest`, or `stochastic`, which is unbiased.
    """

    name: ClassVar[str] = "int8"
    title: ClassVar[str] = "8-bit integers, a scale per block"
    paper: ClassVar[str] = "Dettmers 2016, arXiv:1511.04561"
    bits: ClassVar[int] = 8


@final
@dataclass(frozen=True)
class Int4(_AbsmaxCodec):
    """Sends 4-bit integers, two per byte, and one float32 step per block, step = max|x|/7.

    Attributes:
        block: elements that share a step; a multiple of 8.
        rounding: `nearest`, or `stochastic`, which is unbiased.
    """

    name: ClassVar[str] = "int4"
    title: ClassVar[str] = "4-bit integers, a scale per block"
    paper: ClassVar[str] = "Dettmers & Zettlemoyer 2023, arXiv:2212.09720"
    bits: ClassVar[int] = 4

    block: int = 256


@final
@dataclass(frozen=True)
class Int2(_AbsmaxCodec):
    """Sends −1, 0 or 1 times max|x|, four per byte, and one float32 step per block.

    Attributes:
        block: elements that share a step; a multiple of 8.
        rounding: `nearest`, or `stochastic`, which is unbiased.
    """

    name: ClassVar[str] = "int2"
    title: ClassVar[str] = "2-bit integers, a scale per block"
    paper: ClassVar[str] = "Wen et al. 2017, arXiv:1705.07878"
    bits: ClassVar[int] = 2

    block: int = 256


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


@final
@dataclass(frozen=True)
class TernGrad(_UniformCodec):
    """Sends s · sign(xᵢ) · bᵢ with bᵢ ~ Bernoulli(|xᵢ|/s), s = min(max|x|, clip · rms(x)); 2 bits each.

    The paper scales by layer; here it is by block. Without clipping it is unbiased.

    Attributes:
        clip: in root mean squares of the block (the paper's c); 0 for no clipping.
        block: elements that share a scale; a multiple of 8.
    """

    name: ClassVar[str] = "terngrad"
    title: ClassVar[str] = "random ternary gradients"
    paper: ClassVar[str] = "Wen et al. 2017, arXiv:1705.07878"

    clip: float = 2.5
    block: int = 1024

    def __post_init__(self) -> None:
        check_block(self, self.block)
        if not (self.clip == 0 or 1 <= self.clip < math.inf):
            raise PlanError(
                f"terngrad with clip={self.clip} would cut typical elements; give 1 or more, or 0 for none."
            )

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        """Whether nothing is clipped."""
        return self.clip == 0

    def grid(self) -> Grid:
        """Returns the ternary grid."""
        return Grid(block=self.block, bits=2, levels=1, clip=self.clip, stochastic=True)
