"""The stage contract: what stands around a codec, and what it remembers of a bucket from round to round."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tightwire.answers import Answers, CompressionAnswer, Member, Refusal, Sender, text_with

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tightwire.buckets import BucketLayout


def zeros(bucket: BucketLayout) -> Tensor:
    """Returns flat memory for what is remembered of a bucket: zeros of its size, on its device, float32 at least."""
    import torch

    return torch.zeros(bucket.numel, dtype=wide_dtype(bucket), device=bucket.device)


def wide_dtype(bucket: BucketLayout) -> torch.dtype:
    """Returns the dtype of what stages see and remember: the bucket's, and float32 where it has 16 bits.

    A sum in 16 bits forgets what is smaller than its last bit, in most rounds all of a small gradient.
    """
    import torch

    return torch.promote_types(bucket.dtype, torch.float32)


@dataclass(kw_only=True)
class Outcome:
    """What became of the values that a round sent, told from the innermost stage outwards.

    Attributes:
        exact: every element arrived whole: nothing is left over, and `leftover` means nothing.
        leftover: (numel,) what did not arrive, in memory for the taking: a stage that keeps it puts other memory in its
            place, so that stages further out must not read it.
        sent: (numel,) bool, the elements that were chosen and arrived; None where there was no choice: something of
            every element arrived, or a stage further in sends something else than these elements.
    """

    exact: bool
    leftover: Tensor
    sent: Tensor | None = None


class StageMemory(abc.ABC):
    """What a stage does with one bucket's values, and remembers of them.

    A round calls `begin` and `before`, lets the averager run, and calls `after`; `keep` follows only if the round
    counts, so that one which was dropped leaves no trace. All tensors are flat, of the bucket's size, and of its dtype
    or, where that has 16 bits, float32.

    Class attributes:
        reads_sent: whether `keep` looks at which elements were sent.
        sends_exactly: whether, in rounds that are exact, stages further in do nothing: what they hold back stays back,
            so that the mean is that of this round's values alone.
    """

    reads_sent: ClassVar[bool] = False
    sends_exactly: ClassVar[bool] = False

    def begin(self, round_number: int) -> None:
        """Learns which round comes, counted from 1."""
        return

    @abc.abstractmethod
    def before(self, x: Tensor, out: Tensor) -> Tensor:
        """Returns what is to be sent for `x`: in `out`, which may be `x`, or in memory that nobody may write to."""

    def after(self, mean: Tensor) -> None:
        """Turns the mean of what was sent into the mean of what came in, in place."""
        return

    def keep(self, outcome: Outcome) -> Outcome:
        """Learns from the round just run; returns what the stage outside this one is told."""
        return outcome

    def kept(self) -> Mapping[str, Tensor]:
        """Returns what must survive a checkpoint, by what it is called; shares memory."""
        return {}


@dataclass(frozen=True)
class Stage(CompressionAnswer):
    """Something around a codec or an averaging method: it changes what is encoded, or when, or for which tensors.

    Each stage stands around all that is to its left: in `topk:0.01+ef+momentum:0.9` a gradient first meets
    momentum, then error feedback, then top-k. The order is fixed by `place`; a plan that has another is refused.

    Class attributes:
        place: from the inside out; stages of one place do the same in different ways, and exclude each other.
        serves_dense: whether it does anything where nothing is left over.
        mixes: whether some rounds, beyond the first ones, or some tensors go uncompressed.
        copies: of a bucket, in float32 where it has 16 bits, that it holds from round to round.
    """

    place: ClassVar[int]
    copies: ClassVar[int] = 0
    mixes: ClassVar[bool] = False

    def sender_at(self, sender: Sender, round_number: int) -> Sender:
        """Returns what sends in a round, counted from 1, where `sender` would without this stage."""
        return sender

    def compresses(self, num_bytes: int, dims: int) -> bool:
        """Whether a tensor of this size and number of dimensions is compressed; if not it travels dense."""
        return True

    def memory(self, bucket: BucketLayout, workers: int) -> StageMemory | None:
        """Returns what this stage does with one bucket's values from round to round, or None for nothing."""
        return None

    def require(self, error: float | None, codec: Sender) -> None:
        """Checks that the stage works around what sends, over the program that carries it; when buckets are built.

        Args:
            error: the relative squared error of the mean that the averager declares, or None where it declares none.
            codec: what sends.

        Raises:
            PlanError: a stage that would not settle.
        """
        return

    def refusal(self, plan: Answers) -> Refusal | None:
        """Refuses a stage without a codec before it, one that can do nothing, given twice, or out of order."""
        sender, *others = plan.compression
        if isinstance(sender, Stage):
            return Refusal(
                reason=f"{self} alone compresses nothing: it goes after the codec whose messages it changes.",
                nearest=(text_with(plan, compression=f"topk:0.01+{self}"),),
            )
        if not self.serves_dense and sender.lossless:
            return refuse(
                plan,
                f"{sender}+{self} can do nothing: {sender} is lossless, nothing is left over.",
                [other for other in others if other.serves_dense],
            )
        stages = [other for other in others if isinstance(other, Stage)]
        rivals = [stage for stage in stages if stage.place == self.place]
        if len(rivals) > 1:
            why = (
                f"{self} twice: once is all that it can do"
                if len(set(rivals)) == 1
                else f"{' and '.join(map(str, rivals))}, which exclude each other"
            )
            chosen = [s for s in dict.fromkeys(stages) if s.place != self.place or s == rivals[0]]
            return refuse(plan, f"{plan.compression_text} has {why}.", chosen)
        in_order = sorted(stages, key=lambda stage: stage.place)
        if stages != in_order:
            return refuse(
                plan, f"{plan.compression_text} has its stages out of order: they go inside out.", in_order
            )
        return None


def refuse(plan: Answers, reason: str, stages: Iterable[Member]) -> Refusal:
    """Refuses `plan`; nearest to it is its sender with these stages instead."""
    texts = [str(plan.compression[0]), *map(str, stages)]
    return Refusal(reason=reason, nearest=(text_with(plan, compression="+".join(texts)),))


def sender_of(compression: Sequence[CompressionAnswer]) -> Sender:
    """Returns what makes the messages; it comes first."""
    sender = compression[0]
    assert isinstance(sender, Sender), sender
    return sender


def sender_at(compression: Sequence[CompressionAnswer], round_number: int) -> Sender:
    """Returns what sends in a round, counted from 1: the plan's codec, or what its stages put in its place."""
    sender = sender_of(compression)
    for stage in compression[1:]:
        assert isinstance(stage, Stage), stage
        sender = stage.sender_at(sender, round_number)
    return sender
