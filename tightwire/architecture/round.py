"""One agreement, as all buckets and all ranks see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is common to all buckets in one agreement, and to all ranks.

    Attributes:
        number: of rounds begun, this one included; counted on from a checkpoint.
        seed: of stochastic codecs.
        scale: values are this many times their true size (AMP loss scaling); on a device a tensor of one element there,
            which nobody on the host waits for.
    """

    number: int = 1
    seed: int = 0
    scale: float | Tensor = 1.0

    @property
    def is_scaled(self) -> bool:
        """Whether values may be of another size than their true one."""
        return not isinstance(self.scale, float) or self.scale != 1.0
