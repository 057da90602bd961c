"""One bucket's way to its mean: through the stages of its compression, an averager, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tightwire import kernels
from tightwire.answers import CompressionAnswer, Sender
from tightwire.architecture.round import Round
from tightwire.averaging.averager import Averager
from tightwire.buckets import Bucket, BucketLayout
from tightwire.compression.checks import FiniteCheck
from tightwire.compression.codec import Codec
from tightwire.compression.stage import Outcome, Stage, StageMemory, sender_at, sender_of, wide_dtype


class Spared:
    """Counts what rounds send less than was announced, because sizes depend on content: see `AveragingMethod.bounded`.

    Attributes:
        num_bytes: of this rank, so far.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Adds those of one bucket; from any thread."""
        with self._lock:
            self.num_bytes += num_bytes


class BucketAverager:
    """Averages one bucket in place, as its compression says.

    A round is run, then either kept or dropped: until `keep` is called what is remembered of the rounds before is
    untouched, so that a round which turned out non-finite (law 8) or was skipped leaves no trace. What is
    remembered, is in true units whatever the scale.

    Stages work in float32 where the bucket has 16 bits: what a value loses when it is rounded to the bucket's dtype, in
    which it travels, is left over like what its message does not carry.

    Attributes:
        bucket: holds this worker's values before `run` and the mean after it.
    """

    def __init__(
        self,
        bucket: Bucket,
        compression: Sequence[CompressionAnswer],
        build: Callable[[Sender], Averager],
        *,
        workers: int,
        spared: Spared | None = None,
    ) -> None:
        """Allocates what rounds will need.

        Args:
            bucket: to average.
            compression: a codec or an averaging method, and the stages around it.
            build: builds the bucket's averager for whatever sends in a round; sends nothing.
            workers: how many ranks take part.
            spared: is told of what rounds send less than `bytes_in` them.

        Raises:
            PlanError: a stage that would not work around this sender over its program.
        """
        self.bucket = bucket
        self._check = FiniteCheck(bucket.layout.device)  # of the last mean
        self._spared = spared
        self._compression = tuple(compression)
        self._build = build
        self._main = build(sender_of(compression))
        self._averager = self._main  # of the last run
        self._other: tuple[Sender, Averager] | None = None
        self._votes = self._main.delivery == "voted" and workers > 1
        self._is_absolute = sender_of(compression).absolute and workers > 1
        self._memories = _memories(bucket.layout, compression, workers)
        self._active = self._memories  # in the last run
        for stage in _stages(compression):
            stage.require(self._main.error, sender_of(compression))
        needs_work = not self._main.lossless or bool(self._memories)
        self._work = (
            _room(bucket, self._wide if self._memories else bucket.flat.dtype) if needs_work else None
        )
        self._is_narrow = bool(self._memories) and self._wide != bucket.flat.dtype
        self._mean = _room(bucket, self._wide) if self._is_narrow else bucket.flat
        self._narrow = torch.zeros_like(bucket.flat) if self._is_narrow else None
        self._reads_sent = any(memory.reads_sent for memory in self._memories)
        self._given: Tensor | None = (
            None  # what the averager was given, where somebody asks what it sent of it
        )
        self._sent: Tensor | None = None

    @property
    def finite(self) -> bool:
        """Whether the last mean was finite, the same on every rank; the host waits for it here, if it must."""
        return bool(self._check)

    def bytes_in(self, round_number: int) -> int:
        """Returns the payload bytes that this rank sends in a round."""
        return self._averager_at(round_number).bytes_sent

    def run(self, now: Round) -> None:
        """Replaces the bucket's values by their mean over all ranks.

        Contract: as `Averager.run`; the same round on every rank.
        """
        self._averager = self._averager_at(now.number)
        flat = self.bucket.flat
        if now.is_scaled and not self._memories:
            self._spoil_what_is_cut(flat, now.number)
        if self._memories or self._votes or self._is_absolute:
            self._run_through_stages(flat, now)
        elif self._averager.lossless:
            self._averager.run(flat, flat, seed=now.seed)
        else:
            assert self._work is not None
            self._averager.run(self._work.copy_(flat), flat, seed=now.seed)
        self._check.ask(flat)
        if self._spared is not None:
            self._spared.add(self._averager.spared_bytes)

    def keep(self) -> None:
        """Keeps what the last run taught stages and averager."""
        self._averager.keep()
        if not self._active:
            return
        assert self._work is not None
        exact = self._averager.lossless and not self._is_narrow
        outcome = Outcome(exact=exact, leftover=self._work, sent=self._sent)
        for memory in reversed(self._active):
            outcome = memory.keep(outcome)
        self._work = outcome.leftover

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """Returns what is remembered by tensor name, then by what it is called; shares memory."""
        named: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._main.memory().items():
            named.setdefault(name, {})["averager"] = tensor
        for memory in self._memories:
            for kind, flat in memory.kept().items():
                for name, view in Bucket(self.bucket.layout, flat).views.items():
                    named.setdefault(name, {})[kind] = view
        return named

    @property
    def _wide(self) -> torch.dtype:
        return wide_dtype(self.bucket.layout)

    def _run_through_stages(self, flat: Tensor, now: Round) -> None:
        work = self._work
        assert work is not None
        self._active = self._active_in(self._averager)
        x = work.copy_(flat) if self._is_narrow else flat
        # Votes ask for signs alone, which 16 bits might lose in a quotient.
        if now.is_scaled and (self._memories or self._is_absolute):
            x.div_(now.scale)
        for memory in self._active:
            memory.begin(now.number)
            x = memory.before(x, work)
        if x is not work:
            work.copy_(x)
        self._send(work, flat, now.seed)
        mean = self._mean
        if self._is_narrow:
            mean.copy_(flat)
        for memory in reversed(self._active):
            memory.after(mean)
        if now.is_scaled:
            mean.mul_(now.scale)
        if self._is_narrow:
            flat.copy_(mean)

    def _send(self, work: Tensor, mean: Tensor, seed: int) -> None:
        """Averages `work` into `mean`, leaves in `work` what was not carried, and notes what was sent."""
        given = work if self._narrow is None else self._narrow
        if self._narrow is not None:
            # Rounded to nearest, saturated; the difference stays in `work`.
            kernels.of(work).encode_half(work, given.view(torch.uint8), given.dtype)
        self._sent = None
        if self._reads_sent and self._averager.delivery == "selected":
            before = self._given = given.clone() if self._given is None else self._given.copy_(given)
            self._averager.run(given, mean, seed=seed)
            # What no message carried is left over bit for bit; what was dropped on its way has no mean.
            self._sent = given.ne(before).logical_and_(mean != 0)
        else:
            self._averager.run(given, mean, seed=seed)
        if self._narrow is not None and not self._averager.lossless:
            work.add_(given)

    def _spoil_what_is_cut(self, flat: Tensor, round_number: int) -> None:
        """Makes values Inf that the round's codec would cut: a scaler watches, and comes down where it sees one."""
        sender = sender_at(self._compression, round_number)
        if isinstance(sender, Codec) and sender.largest is not None and flat.numel():
            low, high = flat.aminmax()
            flat.masked_fill_(
                torch.maximum(-low, high) > sender.largest, torch.inf
            )  # nothing waits for a device

    def _active_in(self, averager: Averager) -> tuple[StageMemory, ...]:
        """Returns the stages of a round, from the outside in; in an exact one, down to the first that sends exactly."""
        if averager.lossless:
            for i, memory in enumerate(self._memories):
                if memory.sends_exactly:
                    return self._memories[: i + 1]
        return self._memories

    def _averager_at(self, round_number: int) -> Averager:
        """Returns the round's averager; at most one besides the plan's own is held, to bound memory."""
        sender = sender_at(self._compression, round_number)
        if sender == self._compression[0]:
            return self._main
        if self._other is None or self._other[0] != sender:
            self._other = (sender, self._build(sender))
        return self._other[1]


def _stages(compression: Sequence[CompressionAnswer]) -> list[Stage]:
    """Returns the stages from the outside in."""
    return [stage for stage in reversed(compression) if isinstance(stage, Stage)]


def _memories(
    layout: BucketLayout, compression: Sequence[CompressionAnswer], workers: int
) -> tuple[StageMemory, ...]:
    """Returns what the stages remember, from the outside in."""
    memories = (stage.memory(layout, workers) for stage in _stages(compression))
    return tuple(memory for memory in memories if memory is not None)


def _room(bucket: Bucket, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(bucket.flat, dtype=dtype)
