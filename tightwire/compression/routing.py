"""Routing by size and dimension: which tensors are not worth compressing and travel dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from tightwire.answers import CompressionAnswer
from tightwire.compression.casts import Identity
from tightwire.compression.stage import Stage
from tightwire.errors import PlanError


@final
@dataclass(frozen=True)
class Least(Stage):
    """Sends tensors that are smaller, or have fewer dimensions, as they are, in buckets of their own.

    Attributes:
        tensor_bytes: the least size of a tensor worth compressing.
        dims: the least number of dimensions: 2 sends biases and norms as they are.
    """

    name: ClassVar[str] = "min"
    title: ClassVar[str] = "small or flat tensors travel dense"
    paper: ClassVar[str] = "Lin et al. 2018, arXiv:1712.01887; Vogels et al. 2019, arXiv:1905.13727"
    promise: ClassVar[str] = "Small tensors cost little and bear compression badly (Lin et al. 2018)."
    seen: ClassVar[str] = "Seen within dgc and top-k."
    example: ClassVar[str] = "topk:0.01+ef+min:4KiB,dims=2"
    place: ClassVar[int] = 6
    mixes: ClassVar[bool] = True

    tensor_bytes: int = 0
    dims: int = 0

    def __post_init__(self) -> None:
        if self.tensor_bytes <= 0 and self.dims <= 0:
            raise PlanError(
                "min without a bound lets everything pass: give a size or dims, as in min:4KiB,dims=2."
            )

    def compresses(self, num_bytes: int, dims: int) -> bool:
        """Whether the tensor reaches both bounds."""
        return num_bytes >= self.tensor_bytes and dims >= self.dims


def compression_for(
    compression: Sequence[CompressionAnswer], num_bytes: int, dims: int
) -> tuple[CompressionAnswer, ...]:
    """Returns how one tensor of a plan travels: as the plan says, or dense with the stages that serve dense too.

    >>> from tightwire.plan import parse_compression
    >>> plan = parse_compression("topk:0.01+ef+momentum:0.9+min:4KiB")
    >>> "+".join(map(str, compression_for(plan, 400, 1)))
    'none+momentum:0.9'
    """
    stages = [stage for stage in compression[1:] if isinstance(stage, Stage)]
    if all(stage.compresses(num_bytes, dims) for stage in stages):
        return tuple(compression)
    return (Identity(), *(stage for stage in stages if stage.serves_dense))
