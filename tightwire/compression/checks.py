"""What every codec asks of its arguments and of the tensors that it is given, before it touches them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tightwire.compression.codec import Codec
from tightwire.errors import PlanError, TensorError

if TYPE_CHECKING:
    from torch import Tensor

if TYPE_CHECKING:
    from torch import Tensor

    from tightwire.answers import Member
    from tightwire.compression.codec import Codec


def check_threshold(codec: Codec, t: float) -> None:
    """Checks a threshold.

    Raises:
        PlanError: zero, negative or not finite.
    """
    if not 0 < t < float("inf"):
        raise PlanError(
            f"{codec.name} cannot compare with {t}: give a magnitude above 0, as in {codec.name}:0.001."
        )


FLOATS = ("torch.float32", "torch.bfloat16", "torch.float16", "torch.float64")


def check(codec: Codec, x: Tensor, message: Tensor) -> None:
    """Checks a bucket and the memory of its message.

    Raises:
        TensorError: a dtype, shape or size that `codec` cannot take.
    """
    if str(x.dtype) not in FLOATS:
        raise TensorError(
            f"{codec} cannot take {x.dtype}: it takes {', '.join(FLOATS)}; cast, or leave it uncompressed."
        )
    if x.dim() != 1 or not x.is_contiguous():
        raise TensorError(
            f"{codec} takes flat contiguous tensors, seen shape {tuple(x.shape)}; pass x.view(-1)."
        )
    num_bytes = codec.wire_bytes(x.numel(), x.element_size())
    if str(message.dtype) != "torch.uint8" or message.dim() != 1 or not message.is_contiguous():
        raise TensorError(
            f"{codec} takes messages as flat contiguous uint8, seen {message.dtype} {tuple(message.shape)}."
        )
    if message.numel() != num_bytes:
        raise TensorError(
            f"{codec} sends {x.numel()} elements of {x.dtype} in {num_bytes} bytes, seen a message of "
            f"{message.numel()}: truncated, or written by another plan or version; nothing was applied."
        )


def check_block(codec: Codec, block: int) -> None:
    """Checks how many elements share a scale.

    Raises:
        PlanError: not a multiple of 8, which whole bytes need, or unreasonable.
    """
    if block < 8 or block % 8 or block > 1 << 20:
        raise PlanError(
            f"{codec.name} with block={block} cannot be packed; give a multiple of 8 from 8 to {1 << 20}."
        )


def check_ratio(member: Member, ratio: float) -> None:
    """Checks a share of elements.

    Raises:
        PlanError: not in (0, 1].
    """
    if not 0 < ratio <= 1:
        raise PlanError(
            f"{member.name} cannot keep a share of {ratio}: give one in (0, 1], as in {member.example}."
        )


class FiniteCheck:
    """Whether every element of a tensor is finite, asked for now and looked at later.

    Where the memory is the host's the answer is there at once. Elsewhere the sum is queued behind what fills the
    tensor, and the host waits for it where it asks: nothing waits while averages are still on their way.
    """

    def __init__(self, x: Tensor, *, is_host: bool) -> None:
        """Begins; `x` stays as it is until somebody has asked."""
        self._x = x
        self._finite = is_finite(x) if is_host or x.numel() == 0 else None
        self._sum = x.sum() if self._finite is None else None

    def __bool__(self) -> bool:
        """Waits for the answer; asked by whoever follows what filled the tensor."""
        if self._finite is None:
            assert self._sum is not None
            self._finite = math.isfinite(self._sum.item()) or is_finite(self._x)
            self._sum = None
        return self._finite


def is_finite(x: Tensor) -> bool:
    """Whether every element is finite; allocates nothing of its size.

    Whatever is not finite makes the sum so, which takes a third of the time of looking for the extremes. But a sum may
    overflow where no element has.
    """
    if x.numel() == 0 or math.isfinite(x.sum().item()):
        return True
    low, high = x.aminmax()  # a NaN anywhere makes both NaN
    return math.isfinite(low.item()) and math.isfinite(high.item())
