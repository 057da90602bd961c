"""A codec that sends powers of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.answers import Rate
from tightwire.compression import _normal
from tightwire.compression.checks import check_block
from tightwire.compression.codec import Combine
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class Natural(WidenedCodec):
    """Sends each element as one of the two powers of two around it, at random, so that it is right on average.

    E‖C(x) − x‖² ≤ ‖x‖²/8 (theorem 1). The paper sends a sign and 8 bits of exponent; here it is a byte: a sign
    and 7 bits of exponent below the block's largest, under which (2⁻¹²⁶ of it) elements count as zero.

    Attributes:
        block: elements that share a top exponent, one byte; a multiple of 8.
    """

    name: ClassVar[str] = "natural"
    title: ClassVar[str] = "random rounding to powers of two"
    paper: ClassVar[str] = "Horváth et al. 2019, arXiv:1905.10988"
    promise: ClassVar[str] = "9/8 of the variance at a quarter of the bytes (Horváth et al. 2019)."
    seen: ClassVar[str] = "Seen."
    proven: ClassVar[Rate | None] = Rate(
        bound="O(√((1 + 1/8)/(nT)))",
        assumes="smooth non-convex loss, bounded variance",
        speed_up="linear: n, at 9/8 of the variance",
        paper="Horváth et al. 2019, arXiv:1905.10988, theorems 1 and 4",
    )
    combine: ClassVar[Combine] = "lossy"
    unbiased: ClassVar[bool] = True

    block: int = 1024

    def __post_init__(self) -> None:
        check_block(self, self.block)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns n + ⌈n/block⌉."""
        return numel + -(-numel // self.block)

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        kernels.of(x).encode_powers(x, message, self.block, seed)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        kernels.of(out).decode_powers(message, out, self.block, add)

    def contraction(self, numel: int) -> float | None:
        """Returns 7/8."""
        return 7 / 8

    def normal_error(self, numel: int) -> float:
        """Returns that of powers of two; see `Codec.normal_error`."""
        return _normal.rounding_to((0.0, *(2.0**j for j in range(-20, 4))), stochastic=True)
