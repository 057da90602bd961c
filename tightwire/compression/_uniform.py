"""What codecs share that round every element to a grid."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tightwire import kernels
from tightwire.compression.codec import Combine
from tightwire.compression.widened import WidenedCodec
from tightwire.kernels.formats import Grid

if TYPE_CHECKING:
    from torch import Tensor


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
