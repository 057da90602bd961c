"""A codec that sends random ternary gradients."""

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
    promise: ClassVar[str] = "No loss of accuracy on AlexNet, less than 2 % on GoogLeNet (Wen et al. 2017)."
    seen: ClassVar[str] = (
        "More steps are needed here: batches are small, and its noise is of the size of the largest element."
    )
    proven: ClassVar[Rate | None] = Rate(
        bound="→ 0 almost surely",
        assumes="one minimum, bounded gradients (by max-norm times 1-norm), rates that fall",
        speed_up="not stated",
        paper="Wen et al. 2017, arXiv:1705.07878, theorem 1",
    )

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

    def normal_error(self, numel: int) -> float:
        """Returns that of 0 and the scale; see `Codec.normal_error`."""
        scale = _normal.largest(min(self.block, max(numel, 1)))
        return _normal.rounding_to((0.0, min(scale, self.clip or scale)), stochastic=True)
