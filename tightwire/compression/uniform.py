"""Codecs that round every element to a uniform grid."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
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
        _check_block(self, self.block)
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


def _check_block(codec: _UniformCodec, block: int) -> None:
    if block < 8 or block % 8 or block > 1 << 20:
        raise PlanError(
            f"{codec.name} with block={block} cannot be packed; give a multiple of 8 between 8 and {1 << 20}."
        )
