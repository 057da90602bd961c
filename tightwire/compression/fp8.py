"""A codec that sends 8-bit floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression import _normal
from tightwire.compression.checks import check_block
from tightwire.compression.codec import Combine
from tightwire.compression.widened import WidenedCodec
from tightwire.errors import PlanError
from tightwire.kernels.formats import E4M3, E5M2, Fp8

if TYPE_CHECKING:
    from torch import Tensor


_FORMATS = {"e4m3": E4M3, "e5m2": E5M2}


@final
@dataclass(frozen=True)
class Float8(WidenedCodec):
    """Sends an 8-bit float per element, rounded to nearest even, and one float32 step per block.

    The step puts the block's largest magnitude at the format's. A block below 2⁻¹⁰⁰ stays in the leftover.

    Attributes:
        form: `e4m3` (3 bits of mantissa) or `e5m2` (2 bits, and a wider range).
        block: elements that share a step; a multiple of 8.
    """

    name: ClassVar[str] = "fp8"
    title: ClassVar[str] = "8-bit floats, a scale per block"
    paper: ClassVar[str] = "Micikevicius et al. 2022, arXiv:2209.05433"
    promise: ClassVar[str] = "Trains as 16 bits do (Micikevicius et al. 2022)."
    seen: ClassVar[str] = "Seen."
    combine: ClassVar[Combine] = "lossy"

    form: str = "e4m3"
    block: int = 1024

    def __post_init__(self) -> None:
        check_block(self, self.block)
        if self.form not in _FORMATS:
            raise PlanError(f"fp8 has no format {self.form}; write {' or '.join(_FORMATS)}, as in fp8:e5m2.")

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns n + 4·⌈n/block⌉."""
        return numel + 4 * -(-numel // self.block)

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        kernels.of(x).encode_fp8(x, message, self.block, self._format())

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        kernels.of(out).decode_fp8(message, out, self.block, self._format(), add)

    def _format(self) -> Fp8:
        return _FORMATS[self.form]

    def contraction(self, numel: int) -> float | None:
        """Returns δ from half a unit in the last place of normal values, and half a spacing below them."""
        form, members = self._format(), min(self.block, max(numel, 1))
        relative = 2.0 ** -(form.mantissa + 1)
        absolute = 2.0 ** (-form.bias - form.mantissa) / form.top
        return 1 - relative**2 - members * absolute**2

    def normal_error(self, numel: int) -> float:
        """Returns the rounding to the mantissa; see `Codec.normal_error`."""
        return _normal.rounding_to_float(self._format().mantissa)
