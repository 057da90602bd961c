"""Codecs that send one bit per element."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression.checks import check_block
from tightwire.compression.codec import Combine
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _SignCodec(WidenedCodec, abc.ABC):
    """Sends the sign bit of every element, and per block what it stands for. Both are meant for `+ef`."""

    combine: ClassVar[Combine] = "lossy"
    orthogonal: ClassVar[bool] = True
    two_sided: ClassVar[bool]

    block: int = 1024

    def __post_init__(self) -> None:
        check_block(self, self.block)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns a bit per element, rounded up to bytes, and 4 or 8 bytes per block."""
        return (8 if self.two_sided else 4) * -(-numel // self.block) + -(-numel // 8)

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        kernels.of(x).encode_signs(x, message, self.block, self.two_sided)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        kernels.of(out).decode_signs(message, out, self.block, self.two_sided, add)

    def contraction(self, numel: int) -> float | None:
        """Returns 1/d, the least of ‖x‖₁²/(d·‖x‖₂²) over blocks of d."""
        return 1 / min(self.block, max(numel, 1))

    def normal_error(self, numel: int) -> float:
        """Returns 1 − 2/π: the mean magnitude is √(2/π); see `Codec.normal_error`."""
        return 1 - 2 / math.pi


@final
@dataclass(frozen=True)
class EFSign(_SignCodec):
    """Sends (‖x‖₁/d) · sign(x) per block of d (algorithm 1, where it is per layer).

    Attributes:
        block: elements that share a scale; a multiple of 8.
    """

    name: ClassVar[str] = "efsign"
    title: ClassVar[str] = "signs, times the mean magnitude"
    paper: ClassVar[str] = "Karimireddy et al. 2019, arXiv:1901.09847"
    promise: ClassVar[str] = (
        "With feedback as good as SGD; without, it need not converge (Karimireddy et al. 2019)."
    )
    seen: ClassVar[str] = "The second is seen, and that feedback repairs most of it."
    two_sided: ClassVar[bool] = False


@final
@dataclass(frozen=True)
class OneBit(_SignCodec):
    """Sends, per block, the mean of its positive elements or that of its negative ones (the paper: per column).

    Attributes:
        block: elements that share the two means; a multiple of 8.
    """

    name: ClassVar[str] = "onebit"
    title: ClassVar[str] = "signs, times the mean of each"
    paper: ClassVar[str] = "Seide et al. 2014, Interspeech, section 3"
    promise: ClassVar[str] = "One bit with feedback, at no loss in speech (Seide et al. 2014)."
    seen: ClassVar[str] = "Not seen under plain SGD, which so long a feedback asks for here."
    two_sided: ClassVar[bool] = True
