"""What every codec asks of its arguments and of the tensors that it is given, before it touches them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tightwire import kernels
from tightwire.compression.codec import Codec
from tightwire.devices import device_named
from tightwire.errors import PlanError, TensorError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tightwire.answers import Member
    from tightwire.devices import Mark


def check_threshold(codec: Codec, t: float) -> None:
    """Checks a threshold.

    Raises:
        PlanError: zero, negative or not finite.
    """
    if not 0 < t < float("inf"):
        raise PlanError(
            f"{codec.name} cannot compare with {t}: give a magnitude above 0, as in {codec.name}:0.001."
        )


def check(codec: Codec, x: Tensor, message: Tensor) -> None:
    """Checks a bucket and the memory of its message.

    Raises:
        TensorError: a dtype, shape or size that `codec` cannot take.
    """
    if str(x.dtype).removeprefix("torch.") not in codec.dtypes:
        raise TensorError(
            f"{codec} cannot take {x.dtype}: it takes {', '.join(codec.dtypes)}; cast, or leave it uncompressed."
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


UNDECODED = (
    "a message of this round cannot be decoded: its indices do not ascend within the bucket. It was corrupted, or "
    "written by another plan; the round is not applied."
)


class FiniteCheck:
    """Whether every element of a tensor is finite, asked for now and looked at later; used again and again.

    Where the memory is the host's the answer is there at once. Elsewhere the extremes are queued behind what fills the
    tensor, and copied to the host behind that; who looks waits for this copy and for nothing that was asked for since:
    `tensor.item()` would wait for a whole stream, with the next forward in it. So is the flag of kernels that met a
    message which cannot be (`kernels.flag_of`), and by the same copy's event it is known.
    """

    def __init__(self, at: torch.device) -> None:
        """Prepares for tensors on a device."""
        self._device, self._at = device_named(at), at
        self._finite: bool | None = True
        self._room: Tensor | None = None
        self._answered: Mark | None = None
        self._flag: Tensor | None = None

    def ask(self, x: Tensor) -> None:
        """Asks of `x`, which may be changed afterwards; an answer that nobody looked at is gone.

        Raises:
            TensorError: the round before, whose answer nobody looked at, had a message that cannot be.
        """
        if self._finite is None and self._flag is not None:
            bool(self)
        if self._device.is_host or x.numel() == 0:
            self._finite = is_finite(x)
            return
        import torch

        if self._room is None:
            self._room = self._device.pinned(2 * x.element_size()).view(x.dtype)
        self._room.fill_(torch.nan)
        self._finite = None
        self._device.copy(torch.stack(x.aminmax()), self._room)  # a NaN anywhere makes both NaN
        if (flag := kernels.flag_if_any(x.device)) is not None:
            if self._flag is None:
                self._flag = self._device.pinned(4).view(torch.int32)
            self._device.copy(flag, self._flag)
            flag.zero_()
        self._answered = self._device.mark(self._at)

    def __bool__(self) -> bool:
        """Returns the last answer, once it is there; True where nothing was asked.

        Raises:
            TensorError: a message of this thread could not be decoded.
        """
        if self._finite is None:
            assert self._answered is not None
            assert self._room is not None
            self._device.wait(self._answered)
            self._finite = bool(self._room.isfinite().all())
            if self._flag is not None and int(self._flag):
                raise TensorError(UNDECODED)
        return self._finite


def require_decoded(at: torch.device) -> None:
    """Makes sure that this thread could decode all messages; blocks where kernels of a device may know of one.

    Raises:
        TensorError: there was one that cannot be.
    """
    flag = kernels.flag_if_any(at)
    if flag is not None and int(flag):
        flag.zero_()
        raise TensorError(UNDECODED)


def is_finite(x: Tensor) -> bool:
    """Whether every element is finite; allocates nothing of its size.

    Whatever is not finite makes the sum so, which takes a third of the time of looking for the extremes. But a sum may
    overflow where no element has.
    """
    if x.numel() == 0 or math.isfinite(x.sum().item()):
        return True
    low, high = x.aminmax()  # a NaN anywhere makes both NaN
    return math.isfinite(low.item()) and math.isfinite(high.item())
