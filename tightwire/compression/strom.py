"""A codec that sends what reaches a threshold, as a sign of that threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from tightwire import kernels
from tightwire.compression._messages import (
    COUNT_BYTES,
    ENTRY_BYTES,
    place,
    spoil,
    write_count,
)
from tightwire.compression.checks import check_ratio, check_threshold
from tightwire.compression.codec import Combine
from tightwire.compression.topk import TopK
from tightwire.compression.widened import WidenedCodec

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class Strom(WidenedCodec):
    """Sends +t or −t for the elements of magnitude t or more: a position and its sign in four bytes; 4 + 4k bytes.

    What an element has beyond ±t is left over, to be sent in later rounds by `+ef`, as in the paper, which has no bound
    on how many elements go (from memory). A message has
    k = max(1, ⌈ratio·n⌉) places; where more elements reach t the k largest of them go, and unused places are zero.

    Attributes:
        t: the threshold, and the magnitude that is sent.
        ratio: of the elements that a message has room for, in (0, 1].
    """

    name: ClassVar[str] = "strom"
    title: ClassVar[str] = "magnitudes that reach a threshold, as signs of it"
    paper: ClassVar[str] = "Strom 2015, Interspeech"
    promise: ClassVar[str] = (
        "The accuracy of floats at 1/846 of the bytes, with a fit threshold (Strom 2015)."
    )
    seen: ClassVar[str] = "Not seen: one threshold does not suit all tensors."
    example: ClassVar[str] = "strom:0.001,ratio=0.01+ef"
    combine: ClassVar[Combine] = "none"
    selects: ClassVar[bool] = True
    absolute: ClassVar[bool] = True

    t: float
    ratio: float = 0.01

    def __post_init__(self) -> None:
        check_ratio(self, self.ratio)
        check_threshold(self, self.t)

    def room(self, numel: int) -> int:
        """Returns k."""
        return TopK(self.ratio).kept(numel)

    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns 4 + 4k, or nothing for nothing."""
        return COUNT_BYTES + ENTRY_BYTES * self.room(numel) if numel else 0

    def _encode(self, x: Tensor, message: Tensor, seed: int) -> None:
        import torch

        k, loops = self.room(x.numel()), kernels.of(x)
        found = kernels.scratch_tensor("found", COUNT_BYTES + 8 * k, torch.uint8, x.device)
        loops.select_above(x, found, k, self.t)
        count = int(found[:COUNT_BYTES].view(torch.int32))
        values = found[COUNT_BYTES + 4 * k :][: 4 * count]
        if math.isfinite(loops.mean_magnitude(values)):
            write_count(message, count)
            loops.encode_sparse_signs(x, found[COUNT_BYTES:], count, self.t, message[COUNT_BYTES:])
        else:
            spoil(message)

    def _decode(self, message: Tensor, out: Tensor, add: bool) -> None:
        place(self, message, self.t, out, add)

    def normal_error(self, numel: int) -> float:
        """Returns 1, the most that it can be: nothing may reach the threshold."""
        return 1.0
