"""A codec that sends the largest elements of one sign, as their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression import _normal
from tightwire.compression._messages import (
    COUNT_BYTES,
    ENTRY_BYTES,
    place,
    spoil,
    write_count,
)
from tightwire.compression.checks import check_ratio
from tightwire.compression.codec import Combine
from tightwire.compression.topk import TopK
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class SBC(WidenedCodec):
    """Sends the mean of the k largest positive elements, or of the k most negative ones, at their positions.

    Algorithm 2: whichever mean is larger in magnitude goes, with up to k = max(1, ⌈ratio·n⌉) positions; the other
    side is left over, for `+ef`. Positions are int32 instead of the paper's Golomb code, so that the size is known
    before encoding; 8 + 4k bytes, unused places being zero.

    Attributes:
        ratio: of the elements that are sent, in (0, 1].
    """

    name: ClassVar[str] = "sbc"
    title: ClassVar[str] = "sparse binary: the largest of one sign, as their mean"
    paper: ClassVar[str] = "Sattler et al. 2018, arXiv:1805.08768, Algorithm 2"
    promise: ClassVar[str] = (
        "Four orders of magnitude fewer bytes at little loss, with local steps (Sattler et al. 2018)."
    )
    seen: ClassVar[str] = "Studied without local steps: more steps are needed."
    example: ClassVar[str] = "sbc:0.01+ef"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True
    orthogonal: ClassVar[bool] = True

    ratio: float

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)

    def room(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 8 + 4k, or nothing for nothing."""
        return COUNT_BYTES + ENTRY_BYTES * self.room(numel) + 4 if numel else 0

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        import torch

        found = kernels.scratch_tensor("found", 8 * self.room(x.numel()), torch.uint8, x.device)
        count, mean = kernels.of(x).select_dominant_sign(x, found)
        if count < 0:
            spoil(message)
            return
        kernels.of(x).encode_sparse_signs(x, found, count, mean, message[COUNT_BYTES:-4])
        write_count(message, count)
        message[-4:] = torch.tensor([mean], dtype=torch.float32).view(torch.uint8)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        import torch

        place(self, message[:-4], float(message[-4:].clone().view(torch.float32)), out, add)

    def contraction(self, numel: int) -> float | None:
        """Returns 1/(n·k²): the mean that is sent is at least a k-th of the largest magnitude."""
        return 1 / max(numel * self.room(numel) ** 2, 1)

    def normal_error(self, numel: int) -> float:
        """Returns that of one side at its mean; see `Codec.normal_error`."""
        return _normal.selecting_signs(self.ratio, one_sided=True)
