"""The codec contract: how one worker's bucket becomes bytes and comes back.

A codec is a frozen value: local (it never communicates) and stateless (randomness comes from a seed; whatever
remembers something between rounds is a stage or an averager). It fills memory that it is given and allocates none.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from tightwire.answers import Answers, Delivery, Refusal, Sender, text_with

if TYPE_CHECKING:
    from torch import Tensor

Combine = Literal["exact", "lossy", "none"]


@dataclass(frozen=True)
class Codec(Sender, abc.ABC):
    """Turns a bucket into a message of known size, and a message into a bucket.

    Class attributes say what a program may do with it:
        combine: whether two messages can become the message of their sum: `exact` (nothing more is lost),
            `lossy` (decode, add, encode again: the second loss is the combining rank's), or `none`
            (only gather-type programs carry it).
        sums_as: a torch dtype name when the message, seen as an array of that dtype, may be summed elementwise
            by a backend's native all-reduce; None otherwise. The empty string stands for the bucket's own dtype.
        largest: the largest magnitude of its format, to which it cuts finite values; None where nothing is cut. Sums of
            such messages are sums of values that were divided by the number of workers before, so that they fit.
        selects: whether messages carry chosen elements only, and leave the others over bit for bit.
        orthogonal: whether what is sent and what is left over are orthogonal: a message is shorter than its value.
        dtypes: names of the torch dtypes that it takes; float32 is one of them. One that computes in float32 leaves out
            float64, whose digits and largest elements it cannot hold.
        lossless: whether decode(encode(x)) == x, always.
        unbiased: whether E[decode(encode(x))] == x, so that the leftover may be dropped.
        wire_version: of the message's format, to be raised with every change of what bytes mean: ranks that have
            different ones must not meet, and messages carry no header that would tell.
    """

    combine: ClassVar[Combine]
    sums_as: ClassVar[str | None] = None
    largest: ClassVar[float | None] = None
    selects: ClassVar[bool] = False
    orthogonal: ClassVar[bool] = False
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16", "float64")

    @abc.abstractmethod
    def wire_bytes(self, numel: int, itemsize: int = 4) -> int:
        """Returns the exact size of the message for `numel` elements of `itemsize` bytes each."""

    @abc.abstractmethod
    def encode(self, x: Tensor, message: Tensor, *, seed: int = 0) -> None:
        """Writes the message of `x` and leaves in `x` what the message does not carry.

        Args:
            x: (numel,) contiguous, of one of its `dtypes`; holds the leftover
                x − decode(message) afterwards (all zeros for a lossless codec, which may leave `x` untouched
                instead: callers read `lossless`). A non-finite element must make the decoded message non-finite.
            message: (wire_bytes(numel, itemsize),) uint8, contiguous; overwritten whole.
            seed: of this message's randomness; the same seed gives the same message on every device.

        Raises:
            TensorError: a dtype this codec cannot take.
        """

    @abc.abstractmethod
    def decode(self, message: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Writes (or adds) the decoded message to `out`, (numel,) contiguous.

        Raises:
            TensorError: a message whose size does not fit `out`, or whose content cannot be valid.
        """

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a second codec: one message has one encoding."""
        first, *others = plan.compression
        if not any(isinstance(other, Codec) for other in others):
            return None
        stages = [str(other) for other in others if not isinstance(other, Codec)]
        return Refusal(
            reason=f"{plan.compression_text} has more than one codec: one message has one encoding.",
            nearest=(text_with(plan, compression="+".join([str(first), *stages])),),
        )

    @abc.abstractmethod
    def normal_error(self, numel: int) -> float:
        """Returns E‖x − decode(encode(x))‖²/‖x‖² for independent normal elements, from which errors of means follow."""

    def contraction(self, numel: int) -> float | None:
        """Returns δ of E‖x − decode(encode(x))‖² ≤ (1 − δ)‖x‖², or None where no such bound holds."""
        return 1.0 if self.lossless else None

    def shared_levels(self, num_ranks: int) -> int | None:
        """Returns L where values may travel as integers from −L to L, multiples of a step that all ranks share.

        A switch adds those of `num_ranks` workers without decoding them. None where a message is no such thing.
        """
        return None

    @property
    def delivery(self) -> Delivery:
        """What arrives of a bucket."""
        return "exact" if self.lossless else "selected" if self.selects else "rounded"
